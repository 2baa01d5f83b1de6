import io
import json
import tarfile

import numpy as np
import pytest
import simplejpeg
from webdataset.writer import TarWriter

from shards.codec import npy_bytes
from shards.dataset import Dataset
from shards.foreign import ForeignConfig, index_tar, unindexed
from shards.manifest import assemble
from shards.split import split_of
from shards.verify import verify
from tests.helpers import make_dataset, make_episode

CONFIG = ForeignConfig("lab/pusher", dt=0.1, camera="top")


def sample(number, **replaced):
    """A sample as another program might write it: JPEG of another quality, halved chroma, and its own json."""
    episode = make_episode(number, steps=5, size=24)
    frames = {f"{t:05d}.jpg": simplejpeg.encode_jpeg(f, quality=80) for t, f in enumerate(episode.frames)}
    members = {"action.npy": npy_bytes(episode.action), "json": b'{"label": "mine"}'}
    return {"__key__": f"Lab/run_{number}", **frames, **members} | replaced


def write(path, *samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer = TarWriter(file, encoder=False)
        for each in samples:
            writer.write({name: value for name, value in each.items() if value is not None})
        writer.close()
    return path


def test_a_foreign_tar_becomes_a_dataset_and_is_not_touched(tmp_path):
    state = np.arange(18, dtype=np.float32).reshape(6, 3)
    rewards = np.arange(5, dtype=np.float32)
    tar = write(
        tmp_path / "shards/other.tar",
        *(sample(n, **{"state.npy": npy_bytes(state * n), "reward.npy": npy_bytes(rewards)}) for n in range(4)),
    )
    before, seen = tar.read_bytes(), []
    assert unindexed(tmp_path) == [tar]
    assert index_tar(tar, CONFIG, seen.append) == 4
    assert seen == [1, 2, 3, 4]
    assert unindexed(tmp_path) == []
    assemble(tmp_path)
    assert tar.read_bytes() == before
    dataset = Dataset.open(tmp_path)
    assert list(dataset.keys) == [f"Lab/run_{n}" for n in range(4)]
    assert list(dataset.splits) == [split_of(key) for key in dataset.keys]
    assert (dataset.environment, dataset.manifest.common.camera, dataset.size) == ("lab/pusher", "top", 24)
    for n in range(4):
        episode = dataset.read_episode(n)
        wanted = [simplejpeg.decode_jpeg(sample(n)[f"{t:05d}.jpg"]) for t in range(6)]
        np.testing.assert_array_equal(episode.frames, np.stack(wanted))
        np.testing.assert_array_equal(episode.action, make_episode(n, steps=5).action)
        np.testing.assert_array_equal(episode.state, state * n)
        np.testing.assert_array_equal(episode.reward, rewards)
        assert episode.info.sample == dataset.keys[n]
    assert verify(tmp_path).problems == ()
    damaged = bytearray(before)
    damaged[3000] ^= 1
    tar.write_bytes(damaged)
    assert not verify(tmp_path).ok


def test_rewards_state_and_json_may_be_absent(tmp_path):
    index_tar(write(tmp_path / "shards/a.tar", sample(0, json=None), sample(1, json=None)), CONFIG)
    assemble(tmp_path)
    dataset = Dataset.open(tmp_path)
    assert dataset.columns == ()
    assert dataset.read_episode(1).reward.tolist() == [0] * 5
    assert verify(tmp_path).problems == ()


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_an_index_of_our_own_that_was_lost_comes_back(tmp_path, encoding):
    digest = make_dataset(tmp_path, 3, steps=4, encoding=encoding).digest
    path = tmp_path / "shards/part-00000.arrow"
    before = path.read_bytes()
    path.unlink()
    index_tar(path.with_suffix(".tar"), CONFIG)
    assert (path.read_bytes() == before) == (encoding == "raw")  # pixel sums are of the frames that were decoded
    assert assemble(tmp_path).digest == digest
    assert verify(tmp_path).problems == ()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample(0, **{"action.npy": None})], "sample Lab/run_0: member action.npy is missing"),
        ([sample(0, **{"00002.jpg": None})], "member 00003.jpg stands where 00002.jpg should"),
        ([sample(0, **{"00005.jpg": None})], r"action.npy is \[5, 2\]; 5 frames need \[4, actions\]"),
        ([sample(0, **{"depth.npy": npy_bytes(np.zeros(3, np.float32))})], "member depth.npy is unknown"),
        ([sample(0, **{"00003.jpg": b"\xff\xd8"})], r"member 00003.jpg"),
        ([sample(0, **{"00000.jpg": simplejpeg.encode_jpeg(np.zeros((8, 9, 3), np.uint8))})], "frames are square"),
        ([sample(0, **{"00001.jpg": simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))})], "8x8 YCbCr"),
        ([sample(0, **{"action.npy": npy_bytes(np.full((5, 2), np.nan, np.float32))})], "not finite"),
        ([sample(0, **{"state.npy": npy_bytes(np.zeros((5, 1), np.float32))})], "state is"),
        ([sample(0), sample(1), sample(0)], "do not stand together"),
        ([sample(0, **{"cls.pyd": b"x"})], "type 'pyd' is not read"),
        ([], "the tar has no sample"),
    ],
)
def test_what_is_no_episode_is_refused(tmp_path, samples, message):
    tar = write(tmp_path / "shards/a.tar", *samples)
    with pytest.raises(ValueError, match=message):
        index_tar(tar, CONFIG)
    assert [path.name for path in tar.parent.iterdir()] == ["a.tar"]


def test_a_key_in_the_json_of_another_program_does_not_count(tmp_path):
    info = json.dumps({"info": {"sample": "../../x"}, "encoding": "raw"}).encode()
    index_tar(write(tmp_path / "shards/a.tar", sample(0, json=info)), CONFIG)
    assert assemble(tmp_path).n_episodes == 1


def test_a_compressed_tar_is_refused(tmp_path):
    (tmp_path / "shards").mkdir()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    (tmp_path / "shards/a.tar").write_bytes(data.getvalue().ljust(2048, b"\0"))
    with pytest.raises(ValueError, match="no tar header"):
        index_tar(tmp_path / "shards/a.tar", CONFIG)
