import dataclasses
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import warnings
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.compat import WebDataset

from shards import atomic
from shards.codec import decode_frame
from shards.dataset import Dataset
from shards.index import ShardIndex
from shards.manifest import assemble, committed, committed_keys, digest_of
from shards.members import scan
from shards.split import split_of
from shards.verify import verify
from shards.writer import ShardWriter
from tests.helpers import COLUMNS, make_dataset, make_episode


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"), 12, steps=(3, 12))


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_reads_back_what_was_written(tmp_path, encoding):
    dataset = make_dataset(tmp_path, 5, steps=(2, 9), shard_episodes=2, encoding=encoding)
    assert len(dataset) == 5
    assert len(dataset.manifest.shards) == 3
    assert (dataset.environment, dataset.size, dataset.action_size) == ("dmc/cartpole-swingup", 16, 2)
    assert dataset.columns == COLUMNS
    for i in range(5):
        original = make_episode(i, int(dataset.lengths[i]))
        episode = dataset.read_episode(i)
        assert dataset.keys[i] == original.info.key
        assert dataset.info(i) == episode.info == original.info
        for name, inline in (("action", dataset.action(i)), ("reward", dataset.reward(i)), ("state", dataset.state(i))):
            np.testing.assert_array_equal(getattr(episode, name), getattr(original, name))
            np.testing.assert_array_equal(inline, getattr(original, name))
            assert not inline.flags.writeable
            assert not inline.flags.owndata
        if encoding == "raw":
            np.testing.assert_array_equal(episode.frames, original.frames)
        else:
            assert np.abs(episode.frames.astype(int) - original.frames).mean() < 3


def test_any_frame_is_one_pread(dataset):
    members, episode = dataset.frame_members(4), dataset.read_episode(4)
    assert members.offset.dtype == np.uint64
    assert members.size.dtype == np.uint32
    assert len(members.offset) == len(members.size) == dataset.lengths[4] + 1
    descriptor = os.open(members.path, os.O_RDONLY)
    data = os.pread(descriptor, int(members.size[2]), int(members.offset[2]))
    os.close(descriptor)
    np.testing.assert_array_equal(decode_frame(data, dataset.size), episode.frames[2])


def test_stock_webdataset_reads_the_shards(dataset):
    urls = [str(dataset.path / "shards" / f"{shard.name}.tar") for shard in dataset.manifest.shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # WebDataset leaves closing to the garbage collector
        samples: list[dict[str, Any]] = list(cast(Any, WebDataset(urls, shardshuffle=False).decode("rgb8")))
        gc.collect()
    assert [sample["__key__"] for sample in samples] == list(dataset.keys)
    for i, sample in enumerate(samples):
        episode = dataset.read_episode(i)
        frames = [sample[f"{t:05d}.jpg"] for t in range(len(episode) + 1)]
        assert np.abs(np.stack(frames).astype(int) - episode.frames).mean() < 1  # another libjpeg
        np.testing.assert_array_equal(sample["action.npy"], episode.action)
        np.testing.assert_array_equal(sample["reward.npy"], episode.reward)
        np.testing.assert_array_equal(sample["state.npy"], episode.state)
        assert sample["json"]["info"]["environment"] == "dmc/cartpole-swingup"


def test_equal_episodes_give_equal_bytes_with_nobody_in_the_headers(tmp_path):
    for name in ("a", "b"):
        make_dataset(tmp_path / name, 4)
    a, b = ((tmp_path / name / "shards/part-00000.tar") for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    with tarfile.open(a) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "lewm", "lewm", 0o444)}


def test_the_index_says_where_the_members_are(dataset):
    index = ShardIndex.open(dataset.path / "shards/part-00004.arrow")
    told = [(key, *member) for row, key in enumerate(index.keys) for member in index.members(row)]
    assert told == [(m.key, m.suffix, m.offset, m.size) for m in scan(index.tar)]
    with tarfile.open(index.tar) as tar:
        assert told == [(*m.name.split(".", 1), m.offset_data, m.size) for m in tar]


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(7)), cuts=st.sets(st.integers(1, 6)), encoding=st.sampled_from(["jpeg", "raw"]))
def test_digest_and_statistics_do_not_depend_on_the_sharding(tmp_path_factory, order, cuts, encoding):
    directory, reference = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("reference")
    bounds = [0, *sorted(cuts), 7]
    for shard, (begin, end) in enumerate(pairwise(bounds)):
        with ShardWriter(directory, f"s{shard}", encoding) as writer:
            for number in order[begin:end]:
                writer.write(make_episode(number, steps=3 + number, size=8))
    with ShardWriter(reference, "all", encoding) as writer:
        for number in range(7):
            writer.write(make_episode(number, steps=3 + number, size=8))
    one, other = assemble(directory), assemble(reference)
    assert one.digest == other.digest
    for name in ("pixel_mean", "pixel_std", "action_mean", "action_std", "state_mean", "state_std"):
        np.testing.assert_array_equal(getattr(one.statistics, name), getattr(other.statistics, name))
    a, b = Dataset.open(directory), Dataset.open(reference)
    assert list(a.keys) == list(b.keys)
    assert (a.lengths == b.lengths).all()
    assert (a.splits == b.splits).all()
    np.testing.assert_array_equal(a.state(5), b.state(5))


def test_episodes_without_state_columns(tmp_path):
    episode = make_episode(0, steps=3)
    with ShardWriter(tmp_path, "a") as writer:
        info = dataclasses.replace(episode.info, columns=())
        writer.write(dataclasses.replace(episode, info=info, state=np.zeros((4, 0), np.float32)))
    assemble(tmp_path)
    dataset = Dataset.open(tmp_path)
    assert dataset.state(0).shape == dataset.read_episode(0).state.shape == (4, 0)
    assert verify(tmp_path).ok


def test_digest_depends_on_every_byte(tmp_path):
    digests = {make_dataset(tmp_path / "a", 3).digest, make_dataset(tmp_path / "b", 4).digest}
    digests.add(make_dataset(tmp_path / "c", 3, encoding="raw").digest)
    digests.add(make_dataset(tmp_path / "d", 3, dt=0.04).digest)
    assert len(digests) == 4
    assert digest_of([("b", b"2"), ("a", b"1")]) == digest_of([("a", b"1"), ("b", b"2")])


def test_statistics_are_those_of_the_training_frames_as_given(dataset):
    train = [make_episode(i, int(dataset.lengths[i])) for i in dataset.indices("train")]
    assert 0 < len(train) < len(dataset)
    assert dataset.manifest.statistics_from == "train"
    s = dataset.manifest.statistics
    pixels = np.concatenate([e.frames.reshape(-1, 3) for e in train]).astype(float)
    np.testing.assert_allclose(s.pixel_mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(s.pixel_std, pixels.std(0), rtol=1e-12)
    for name in ("action", "state"):
        values = np.concatenate([getattr(e, name) for e in train]).astype(float)
        np.testing.assert_allclose(getattr(s, f"{name}_mean"), values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(getattr(s, f"{name}_std"), values.std(0), rtol=1e-12)


def test_constant_columns_have_std_one(tmp_path):
    with ShardWriter(tmp_path, "a") as writer:
        for number in range(4):
            episode = make_episode(number, steps=5 + number)
            episode.state[:, 1] = 0.1
            episode.frames[:] = 7
            writer.write(episode)
    statistics = assemble(tmp_path).statistics
    assert statistics.state_std[1] == 1
    assert statistics.state_mean[1] == np.float32(0.1)
    assert statistics.state_std[0] != 1
    assert statistics.pixel_std.tolist() == [1, 1, 1]


def test_without_training_episodes_statistics_are_of_all(tmp_path):
    number = next(n for n in range(100) if split_of(make_episode(n, 1).info.key) == "test")
    with ShardWriter(tmp_path, "a") as writer:
        writer.write(make_episode(number))
    assert assemble(tmp_path).statistics_from == "all"


def test_indices_partition_the_episodes(dataset):
    parts = [dataset.indices(split) for split in ("train", "validation", "test")]
    assert sorted(np.concatenate(parts)) == list(range(12)) == list(dataset.indices())
    assert all(dataset.splits[i] == split_of(dataset.keys[i]) for i in range(12))
    assert dataset.manifest.splits["train"] == len(parts[0])
    with pytest.raises(ValueError, match="'trian'"):
        dataset.indices("trian")


def test_opening_reads_no_index_and_holds_no_descriptor(tmp_path):
    dataset = make_dataset(tmp_path, 6, shard_episodes=1)
    for path in (tmp_path / "shards").iterdir():
        path.rename(path.with_name(path.name + ".away"))
    dataset = Dataset.open(tmp_path)
    assert len(dataset) == 6
    assert dataset.lengths.sum() == 120
    with pytest.raises(ValueError, match=r"part-00002.arrow is missing"):
        dataset.action(2)
    for path in (tmp_path / "shards").iterdir():
        path.rename(path.with_suffix(""))
    before = len(os.listdir("/proc/self/fd"))
    states = [dataset.state(i) for i in range(6)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(states) == 6


def test_pickles_as_its_path_and_refuses_to_change(tmp_path):
    dataset = make_dataset(tmp_path, 3)
    data = pickle.dumps(dataset)
    np.testing.assert_array_equal(pickle.loads(data).state(1), dataset.state(1))
    index = ShardIndex.open(tmp_path / "shards/part-00000.arrow")
    assert pickle.loads(pickle.dumps(index)).keys == index.keys
    with ShardWriter(tmp_path, "more") as writer:
        writer.write(make_episode(7))
    assemble(tmp_path)
    with pytest.raises(ValueError, match="changed while it was in use"):
        pickle.loads(data)


def test_keys_are_a_sequence(dataset):
    assert dataset.keys.index(dataset.keys[5]) == 5
    assert dataset.keys[3:5] == list(dataset.keys)[3:5]
    assert dataset.keys[-1] == list(dataset.keys)[-1]
    assert dataset.keys[2] in dataset.keys
    assert "x" not in dataset.keys
    with pytest.raises(ValueError, match="no episode"):
        dataset.keys.index("zzz")
    with pytest.raises(IndexError):
        dataset.state(12)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_a_path_that_is_no_dataset_is_named(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"nothing is not a dataset.*lewm collect"):
        Dataset.open(tmp_path / "nothing")


def test_shards_without_a_manifest_are_told_apart(tmp_path):
    with ShardWriter(tmp_path, "a") as writer:
        writer.write(make_episode(0))
    with pytest.raises(ValueError, match="unfinished collection"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("keywords", [{"dt": 0.04}, {"versions": {"mujoco": "4.0.0"}}, {"action_size": 3}, {"size": 8}])
def test_refuses_to_mix_episodes_that_differ(tmp_path, keywords):
    make_dataset(tmp_path, 2)
    with ShardWriter(tmp_path, "other") as writer:
        writer.write(make_episode(9, **keywords))
    with pytest.raises(ValueError, match=f"episodes differ in {next(iter(keywords))}.*keep them in separate datasets"):
        assemble(tmp_path)


def test_refuses_an_episode_twice(tmp_path):
    make_dataset(tmp_path, 2)
    with ShardWriter(tmp_path, "again") as writer:
        writer.write(make_episode(1))
        with pytest.raises(ValueError, match="already has episode"):
            writer.write(make_episode(1))
    with pytest.raises(ValueError, match="0-00000001 is in shard again and in shard part-00000"):
        assemble(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a.b", "/x"])
def test_shard_names_stay_in_the_dataset(tmp_path, name):
    with pytest.raises(ValueError, match="shard name"):
        ShardWriter(tmp_path, name)


def test_a_committed_shard_is_never_overwritten(tmp_path):
    make_dataset(tmp_path, 2)
    with pytest.raises(ValueError, match="already committed"):
        ShardWriter(tmp_path, "part-00000")
    first, second = ShardWriter(tmp_path, "race"), ShardWriter(tmp_path, "race")
    first.write(make_episode(5))
    second.write(make_episode(6))
    first.commit()
    with pytest.raises(ValueError, match="another process"):
        second.commit()
    assert assemble(tmp_path).n_episodes == 3
    assert verify(tmp_path).ok
    assert not verify(tmp_path).leftovers


def test_an_exception_or_an_empty_shard_leaves_nothing(tmp_path):
    def fail():
        with ShardWriter(tmp_path, "a") as writer:
            writer.write(make_episode(0))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(ValueError, match="no episode"), ShardWriter(tmp_path, "b"):
        pass
    assert list((tmp_path / "shards").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import webdataset.writer
from shards.manifest import assemble
from shards.writer import ShardWriter
from tests.helpers import make_episode

def dying(function):
    def wrapped(*arguments, **keywords):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return wrapped

os.fsync, os.replace = dying(os.fsync), dying(os.replace)
for directory in sorted(Path(sys.argv[1]).iterdir()):
    left = int(directory.name)
    child = os.fork()
    if not child:
        with ShardWriter(directory, "late") as writer:
            writer.write(make_episode(20))
        assemble(directory)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
MOMENTS = 13
"""Twelve calls of fsync and rename: tar, index; rename of the tar, directory; rename of the index (the fifth, and the
commit), directory; three for each of the two files that `assemble` writes. The thirteenth writer survives."""


def test_killed_at_any_moment_leaves_a_dataset_that_assembles(tmp_path):
    original = make_dataset(tmp_path / "original", 2)
    for moment in range(MOMENTS):
        shutil.copytree(original.path, tmp_path / "killed" / f"{moment:02d}")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    killed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert killed.stdout.split() == [str(-signal.SIGKILL)] * (MOMENTS - 1) + ["0"]

    for moment in range(MOMENTS):
        directory = tmp_path / "killed" / f"{moment:02d}"
        foreign = directory / "shards" / "foreign.tar"
        foreign.write_bytes(b"not ours")
        atomic.remove_leftovers(directory)
        assert foreign.exists()
        foreign.unlink()
        names = ["late", "part-00000"] if moment > 4 else ["part-00000"]
        assert committed(directory) == names
        assert sorted(path.name for path in (directory / "shards").iterdir()) == [
            f"{name}.{suffix}" for name in names for suffix in ("arrow", "tar")
        ]
        manifest = assemble(directory)
        assert (manifest.digest == original.digest) == (len(names) == 1)
        assert len(committed_keys(directory)) == manifest.n_episodes == 1 + len(names)
        assert verify(directory).problems == ()


def test_temporary_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "shards").mkdir()
    names = ["thesis.tmp", "notes.txt.tmp", "notes.txt.0123abcd.tmp", "x.tar.0123ABCD.tmp", ".tmp", "x.json.tmp"]
    foreign = [folder / name for folder in (tmp_path, tmp_path / "shards") for name in names]
    ours = [tmp_path / "manifest.json.0123abcd.tmp"]
    ours += [tmp_path / "shards" / f"x.{suffix}.0123abcd.tmp" for suffix in ("tar", "arrow")]
    for path in foreign + ours:
        path.write_bytes(b"")
    assert sorted(atomic.remove_leftovers(tmp_path)) == sorted(ours)
    assert all(path.exists() for path in foreign)
    assert not any(path.exists() for path in ours)


def test_a_retry_in_the_same_run_replaces_a_tar_without_index(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").write_bytes(b"half")
    with ShardWriter(tmp_path, "a") as writer:
        writer.write(make_episode(0))
    assert assemble(tmp_path).n_episodes == 1
    assert verify(tmp_path).ok


def test_assemble_refuses_a_shard_without_its_tar(tmp_path):
    make_dataset(tmp_path, 2)
    tar = tmp_path / "shards/part-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"part-00000.tar has"):
        assemble(tmp_path)
    tar.unlink()
    with pytest.raises(ValueError, match=r"part-00000.tar is missing"):
        assemble(tmp_path)
    with pytest.raises(ValueError, match="no committed shard"):
        assemble(tmp_path / "elsewhere")
