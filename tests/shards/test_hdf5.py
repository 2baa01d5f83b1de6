import os
import signal
import subprocess
import sys

import h5py
import hdf5plugin
import numpy as np
import pytest

from shards.dataset import Dataset
from shards.hdf5 import ImportConfig, import_hdf5
from shards.manifest import committed
from shards.verify import verify

CONFIG = ImportConfig("lewm/pusht", dt=0.1, encoding="raw", shard_episodes=2)
LENGTHS = (5, 9, 2, 7, 4)


def write(path, lengths=LENGTHS, size=12, **replaced):
    """A file as stable-worldmodel writes it: the last row's action and the first row's reward are NaN."""
    rng = np.random.default_rng(7)
    total, offsets = sum(lengths), np.cumsum([0, *lengths[:-1]])
    columns = {
        "pixels": rng.integers(0, 256, (total, size, size, 3), np.uint8),
        "action": rng.normal(size=(total, 2)).astype(np.float32),
        "proprio": rng.normal(size=(total, 4)),
        "state": rng.normal(size=(total, 7)).astype(np.float32),
        "reward": rng.normal(size=total),
        "step_idx": np.concatenate([np.arange(n) for n in lengths]),
        "ep_len": np.array(lengths, np.int32),
        "ep_offset": np.array(offsets, np.int64),
    } | replaced
    columns["action"][offsets + np.array(lengths) - 1] = np.nan
    with h5py.File(path, "w", libver="latest") as file:
        for name, values in columns.items():
            if values is not None:
                chunks = (1, *values.shape[1:]) if values.ndim > 1 else None
                keywords = hdf5plugin.Blosc(cname="zstd") if chunks else {}
                file.create_dataset(name, data=values, chunks=chunks, **keywords)
    return columns


def test_every_value_arrives(tmp_path):
    columns = write(tmp_path / "x.h5")
    columns["reward"][0] = np.nan
    seen = []
    manifest = import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]
    assert (manifest.n_episodes, manifest.n_steps) == (5, sum(LENGTHS) - 5)
    dataset = Dataset.open(tmp_path / "out")
    assert [c.name for c in dataset.columns] == [f"state_{i}" for i in range(7)] + [f"proprio_{i}" for i in range(4)]
    assert (dataset.environment, dataset.manifest.common.dt, dataset.size) == ("lewm/pusht", 0.1, 12)
    for number, (begin, rows) in enumerate(zip(columns["ep_offset"], LENGTHS, strict=True)):
        episode, at = dataset.read_episode(number), slice(begin, begin + rows)
        assert episode.info.number == number
        np.testing.assert_array_equal(episode.frames, columns["pixels"][at])
        np.testing.assert_array_equal(episode.action, columns["action"][at][:-1])
        np.testing.assert_array_equal(episode.reward, columns["reward"][at][1:].astype(np.float32))
        state = np.concatenate([columns["state"][at], columns["proprio"][at]], axis=1)
        np.testing.assert_array_equal(episode.state, state.astype(np.float32))
    assert verify(tmp_path / "out").ok


def test_without_reward_and_state(tmp_path):
    write(tmp_path / "x.h5", reward=None, state=None, proprio=None)
    import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.columns == ()
    assert not dataset.reward(1).any()


KILLED = """
import os, signal, sys
from pathlib import Path
from shards.hdf5 import import_hdf5
from tests.shards.test_hdf5 import CONFIG
def on_episode(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
import_hdf5(Path(sys.argv[1]), Path(sys.argv[2]), CONFIG, on_episode)
"""


@pytest.mark.parametrize("at", [1, 4])
def test_a_killed_import_goes_on(tmp_path, at):
    write(tmp_path / "x.h5")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "x.h5"), str(tmp_path / "out"), str(at)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    assert subprocess.run(command, check=False, env=environment).returncode == -signal.SIGKILL
    before = {name: (tmp_path / f"out/shards/{name}.tar").stat().st_mtime_ns for name in committed(tmp_path / "out")}
    assert len(before) == (at - 1) // 2
    digest = import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG).digest
    assert digest == import_hdf5(tmp_path / "x.h5", tmp_path / "whole", CONFIG).digest
    assert verify(tmp_path / "out").problems == ()
    for name, time in before.items():
        assert (tmp_path / f"out/shards/{name}.tar").stat().st_mtime_ns == time


def test_another_import_into_the_same_directory_is_refused(tmp_path):
    write(tmp_path / "x.h5")
    import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)
    write(tmp_path / "y.h5", action=np.zeros((sum(LENGTHS), 2), np.float32))
    with pytest.raises(ValueError, match="is of another import"):
        import_hdf5(tmp_path / "y.h5", tmp_path / "out", CONFIG)
    write(tmp_path / "z.h5", lengths=(3, 3))
    with pytest.raises(ValueError, match="which this import does not write"):
        import_hdf5(tmp_path / "z.h5", tmp_path / "out", CONFIG)


N = sum(LENGTHS)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"pixels": None}, "there is no column 'pixels'"),
        ({"ep_len": None}, "there is no column 'ep_len'"),
        ({"pixels": np.zeros((N, 8, 9, 3), np.uint8)}, "frames are 8x9; they must be square"),
        ({"pixels": np.zeros((N, 3, 8, 8), np.uint8)}, r"pixels is uint8\[27, 3, 8, 8\]"),
        ({"pixels": np.zeros((N, 8, 8, 3), np.float32)}, r"pixels is float32"),
        ({"pixels": np.zeros((1, 2049, 2049, 3), np.uint8)}, "at most 2048"),
        ({"reward": np.zeros(N - 1)}, "27 rows of numbers"),
        ({"state": np.full((N, 2), np.nan)}, r"episode 0 \(rows 0 to 4\).*not finite"),
        ({"state": np.full((N, 2), 1e300)}, "not finite"),
        ({"ep_len": np.array((5, 9, 1, 7, 4))}, "episode 2 has 1 rows"),
        ({"ep_len": np.array((5, 9, 2, 7, 5))}, "episode 4 has 5 rows from row 23"),
        ({"ep_len": np.array((5, 9, 2, 7))}, "ep_len has 4 episodes"),
        ({"ep_offset": np.array((-1, 5, 14, 16, 23))}, "episode 0 has 5 rows from row -1"),
        ({"ep_offset": np.array((2**63 - 1, 5, 14, 16, 23))}, "episode 0"),
        ({"ep_len": np.array((2**62, 9, 2, 7, 4))}, "episode 0"),
    ],
)
def test_other_layouts_are_refused(tmp_path, replaced, message):
    write(tmp_path / "x.h5", **replaced)
    with pytest.raises(ValueError, match=message):
        import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)


def test_columns_in_other_files_are_not_followed(tmp_path):
    write(tmp_path / "secret.h5")
    for kind in ("external", "soft", "virtual", "raw"):
        write(tmp_path / "x.h5", state=None)
        with h5py.File(tmp_path / "x.h5", "a") as file:
            if kind == "external":
                file["state"] = h5py.ExternalLink("secret.h5", "state")
            elif kind == "soft":
                file["state"] = h5py.SoftLink("/proprio")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((N, 7), np.float32)
                layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "state", (N, 7))
                file.create_virtual_dataset("state", layout)
            else:
                file.create_dataset("state", (N, 7), np.uint8, external=[("/etc/passwd", 0, N * 7)])
        with pytest.raises(ValueError, match="state is no column of this file"):
            import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)
    write(tmp_path / "x.h5")
    (tmp_path / "x.h5").write_bytes((tmp_path / "x.h5").read_bytes()[:300])
    with pytest.raises(ValueError, match="not an HDF5 file, or cut off"):
        import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)


def test_without_h5py_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"pip install 'lewm\[hdf5\]'"):
        import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)


def test_wide_columns_count_towards_an_episode(tmp_path, monkeypatch):
    """432 bytes of pixels a row do not hide 12,000 of state."""
    monkeypatch.setattr("shards.hdf5.MAX_EPISODE_BYTES", 100_000)
    write(tmp_path / "x.h5", lengths=(5, 9), state=np.zeros((14, 3000), np.float32))
    with pytest.raises(ValueError, match=r"episode 1 has 9 rows .*possible are 2 to 8 of 14 rows"):
        import_hdf5(tmp_path / "x.h5", tmp_path / "out", CONFIG)
