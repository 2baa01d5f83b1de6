"""Whole readers under random damage, in a child whose memory and processor time are bounded: ValueError or OSError, and
nothing else. A blow-up is a MemoryError there, a hang the end of the child's time."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.codec import canonical_json, encode, info_record, npy_bytes
from shards.dataset import Dataset
from shards.foreign import ForeignConfig, index_tar
from shards.members import MAX_EPISODE_BYTES
from shards.tar import TarWriter
from tests.helpers import make_dataset, make_episode

CHILD = """
import resource, shutil, sys
from contextlib import suppress
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[4])
from pipelines.loader import Loader
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
from shards.foreign import ForeignConfig, index_tar
from shards.hdf5 import ImportConfig, import_hdf5
from shards.verify import verify
from tests.shards.test_hdf5 import write

what, place, cases = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(list(what.encode()))
taken = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), taken + (1 << 30)))
resource.setrlimit(resource.RLIMIT_CPU, (200, 200))

def damage(path, least=0):
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 5)):
        at, new = int(rng.integers(least, len(data))), rng.bytes(int(rng.integers(1, 9)))
        data[at : at + len(new)] = new[: len(data) - at]
    path.unlink()  # an earlier mapping may be alive
    path.write_bytes(data if rng.random() < 0.8 else data[: int(rng.integers(len(data)))])

def load_all(path):
    with Loader(Dataset.open(path), WindowSpec(history=1), split=None, batch_size=2, seed=0) as loader:
        for _, batch in zip(range(loader.steps_per_epoch), loader):
            pass

def read_all(path):
    dataset = Dataset.open(path)
    for i in range(len(dataset)):
        dataset.read_episode(i)

done = 0
for case in range(cases):
    here = place / f"{what}-{case}"
    shutil.copytree(place / "sound", here)
    tars, indexes = sorted((here / "shards").glob("*.tar")), sorted((here / "shards").glob("*.arrow"))
    if what == "index":
        indexes[0].unlink()
        damage(tars[0])
        call = lambda: index_tar(tars[0], ForeignConfig("lab/x", 0.1))
    elif what == "import":
        write(here / "x.h5")
        damage(here / "x.h5")
        call = lambda: import_hdf5(here / "x.h5", here / "out", ImportConfig("lab/x", 0.1))
    else:
        damage([tars[0], indexes[0], here / "manifest.json", here / "episodes.arrow"][case % 4])
        call = lambda: {"read": read_all, "load": load_all, "verify": verify}[what](here)
    with suppress(ValueError, OSError):
        call()
        done += 1
    shutil.rmtree(here)
print("survived", cases, "of which read", done)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("bounded")
    make_dataset(place / "sound", 4, steps=3, size=8, shard_episodes=2)
    return place


@pytest.mark.parametrize("cases", [80, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["index", "read", "load", "verify", "import"])
def test_random_damage_is_an_error_within_bounds(place, what, cases):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", CHILD, what, str(place), str(cases), root]
    child = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=400, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout.startswith(f"survived {cases}")


def many_frames(path, frames, size):
    """A tar of one sample that claims `frames` frames of `size` px, each a copy of one small JPEG of that size."""
    import numpy as np
    import simplejpeg

    jpeg = simplejpeg.encode_jpeg(np.zeros((size, size, 3), np.uint8))
    with path.open("wb") as file:
        writer = TarWriter(file)
        for t in range(frames):
            writer.write(f"bomb.{t:05d}.jpg", jpeg)
        writer.write("bomb.action.npy", npy_bytes(np.zeros((frames - 1, 1), np.float32)))
        writer.close()


def test_an_episode_of_many_large_frames_is_refused_before_one_is_decoded(tmp_path, monkeypatch):
    """A few KB a frame in the tar, 12 MB in memory."""
    frames = MAX_EPISODE_BYTES // (3 * 2048**2) + 1
    (tmp_path / "shards").mkdir()
    many_frames(tmp_path / "shards/bomb.tar", frames, 2048)
    assert (tmp_path / "shards/bomb.tar").stat().st_size < 64 << 20
    monkeypatch.setattr("shards.foreign.decode_frame", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(ValueError, match=rf"{frames} frames of 2048 px take .* over the limit"):
        index_tar(tmp_path / "shards/bomb.tar", ForeignConfig("lab/x", 0.1))


def test_a_sample_that_claims_many_large_frames_is_refused_before_memory_is_taken(tmp_path):
    from shards.codec import decode, parse_metadata

    episode = make_episode(0, steps=3)
    members = dict(encode(episode, "jpeg"))
    record = {"encoding": "jpeg-q95-420", "steps": 99_000, "action_size": 2, "return": 0.0}
    claim = canonical_json({**record, "info": {**info_record(episode.info), "size": 2048}})
    with pytest.raises(ValueError, match="99001 frames of 2048 px take"):
        parse_metadata(episode.info.key, claim)
    with pytest.raises(ValueError, match="over the limit"):
        decode(episode.info.key, {**members, "json": claim})
    assert len(Dataset.open(make_dataset(tmp_path / "sound", 2).path)) == 2
