"""The benchmark's contenders do the work that they are timed for."""

import gc
import json
import subprocess
import sys
import warnings
from itertools import islice

import numpy as np
import pytest

from infra.bench import loader, peers
from pipelines.windows import WindowSpec
from tests.helpers import make_dataset

SPEC = loader.SPEC


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"), 4, steps=12, size=16, shard_episodes=2)


def test_stock_webdataset_gives_the_windows_asked_for(dataset):
    episodes = {hash(dataset.keys[i]): dataset.read_episode(i) for i in range(4)}
    for visit, each in ((1, 1), (3, 3), (0, SPEC.count(12))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pipeline that is left leaves its file open
            taken = list(islice(peers.web_windows(dataset, SPEC, visit, seed=0), 2 * each))
            gc.collect()
        assert [len({episode for *_, episode in part}) for part in (taken[:each], taken[each:])] == [1, 1]
        for frames, action, episode in taken:
            whole = episodes[episode]
            at = next(t for t in range(12) if np.array_equal(whole.action[t : t + 1], action))
            # Pillow's decoder rounds differently from libjpeg-turbo's
            difference = frames.astype(int) - whole.frames[at + SPEC.unique_offsets]
            assert np.abs(difference).mean() < 2


def test_hdf5_windows_are_exact(dataset, tmp_path):
    pytest.importorskip("hdf5plugin")
    told = []
    peers.write_hdf5(dataset, tmp_path / "frames.h5", told.append)
    assert told == [1, 2, 3, 4]
    windows = peers.Hdf5Windows(tmp_path / "frames.h5", dataset.lengths, SPEC)
    assert len(windows) == 4 * SPEC.count(12)
    for number in (0, 10, 11, len(windows) - 1):
        frames, action, episode = windows[number]
        whole = dataset.read_episode(episode)
        start = SPEC.first_start + number % SPEC.count(12)
        np.testing.assert_array_equal(frames, whole.frames[start + SPEC.unique_offsets])
        np.testing.assert_array_equal(action, whole.action[start : start + 1])


@pytest.mark.parametrize("spec", [SPEC, WindowSpec(history=2, frame_skip=3)])
def test_hdf5_frames_are_read_as_slices(dataset, tmp_path, spec):
    pytest.importorskip("hdf5plugin")
    h5py = pytest.importorskip("h5py")
    peers.write_hdf5(dataset, tmp_path / "frames.h5", lambda _: None)
    windows = peers.Hdf5Windows(tmp_path / "frames.h5", dataset.lengths, spec)
    asked = []

    class Column:
        def __init__(self, column):
            self._column = column

        def __getitem__(self, rows):
            asked.append(rows)
            return self._column[rows]

    with h5py.File(tmp_path / "frames.h5", "r") as file:
        windows._file = {name: Column(file[name]) for name in ("pixels", "action")}
        frames, _, episode = windows[0]
    assert [type(rows) for rows in asked] == [slice, slice]
    expected = dataset.read_episode(episode).frames[spec.first_start + spec.unique_offsets]
    np.testing.assert_array_equal(frames, expected)


def test_the_command_measures_every_contender(dataset, tmp_path):
    command = [sys.executable, "-c", "from infra.cli import entry; entry()", "bench", "loader", "--data"]
    command += [str(dataset.path), "--turns", "1", "--seconds", "0.05", "--batch", "4", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", "--csv", str(tmp_path / "out.csv")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = {row["contender"]: row for row in json.loads(done.stdout)["rows"]}
    for name in (loader.FLOOR, "lewm, stream", "lewm, memmap", "WebDataset, all windows a visit"):
        assert rows[name]["windows_per_second"] > 0
        assert rows[name]["ratio"] == pytest.approx(
            rows[name]["windows_per_second"] / rows[loader.FLOOR]["windows_per_second"]
        )
    assert len((tmp_path / "out.csv").read_text().splitlines()) == len(rows) + 1
