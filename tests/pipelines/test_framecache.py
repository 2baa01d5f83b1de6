import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import framecache
from pipelines.decode import DamagedEpisodeError
from pipelines.framecache import frames_path, is_cached, map_frames
from shards import cache
from shards.cache import CacheError, cache_directory
from shards.dataset import Dataset
from shards.manifest import to_bytes
from tests.helpers import make_dataset


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frames"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"), 7, steps=(1, 130), size=8, shard_episodes=2)


def names(directory):
    return {path.name for path in directory.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("threads", [1, 3])
def test_holds_every_frame_as_a_full_decode_has_it(dataset, directory, threads):
    assert not is_cached(dataset)
    frames = map_frames(dataset, threads=threads)
    expected = np.concatenate([dataset.read_episode(i).frames for i in range(len(dataset))])
    np.testing.assert_array_equal(frames, expected)
    assert not frames.flags.writeable
    assert is_cached(dataset)
    assert names(directory) == {f"{dataset.digest}.u8"}


def test_is_written_once_and_never_for_another_dataset(dataset, tmp_path, monkeypatch):
    map_frames(dataset, threads=1)
    other = make_dataset(tmp_path / "other", 2, size=8, seed=5)
    assert not is_cached(other)
    monkeypatch.setattr(framecache, "decode_all", lambda *_, **__: pytest.fail("decoded again"))
    assert len(map_frames(dataset, threads=1)) == int((dataset.lengths + 1).sum())


@pytest.mark.parametrize("damage", ["cut off", "another header"])
def test_a_file_that_is_not_whole_is_written_again(dataset, damage):
    expected = map_frames(dataset, threads=1).copy()
    path = frames_path(dataset)
    if damage == "cut off":
        os.truncate(path, path.stat().st_size - 1)
    else:
        with path.open("r+b") as file:
            file.write(b"x")
    assert not is_cached(dataset)
    np.testing.assert_array_equal(map_frames(dataset, threads=1), expected)


def test_a_damaged_frame_is_named_and_nothing_is_left(dataset, tmp_path, directory):
    shutil.copytree(dataset.path, tmp_path / "copy")
    damaged = Dataset.open(tmp_path / "copy")
    members = damaged.frame_members(3)
    with members.path.open("r+b") as file:
        file.seek(int(members.offset[1]))
        file.write(bytes(int(members.size[1])))
    with pytest.raises(DamagedEpisodeError, match=r"00001\.jpg"):
        map_frames(damaged, threads=2)
    assert names(directory) == set()


def test_leftovers_of_a_killed_writer_are_removed(dataset, directory):
    directory.mkdir(parents=True)
    (directory / f"{dataset.digest}.u8.0badcafe.tmp").write_bytes(b"half")
    map_frames(dataset, threads=1)
    assert names(directory) == {f"{dataset.digest}.u8"}


def test_what_was_used_longest_ago_makes_room(dataset, tmp_path, directory, monkeypatch):
    others = [make_dataset(tmp_path / f"{seed}", 2, steps=3, size=8, seed=seed) for seed in (1, 2, 3)]
    need = [framecache.decoded_bytes(each) + 4096 for each in others]
    monkeypatch.setenv("LEWM_CACHE_GB", str((sum(need[:2]) + 1) / 1e9))
    for at, other in enumerate(others[:2]):
        map_frames(other, threads=1)
        os.utime(frames_path(other), (at, at))
    map_frames(others[0], threads=1)
    held = map_frames(others[2], threads=1)
    assert names(directory) == {f"{others[0].digest}.u8", f"{others[2].digest}.u8"}
    with pytest.raises(CacheError, match=r"keeps at most 0\.0 GB: raise LEWM_CACHE_GB, or stream"):
        map_frames(dataset, threads=1)
    assert names(directory) == {f"{others[0].digest}.u8", f"{others[2].digest}.u8"}, "it would not have helped"
    frames_path(others[2]).unlink()
    assert held.sum() == map_frames(others[2], threads=1).sum(), "what is mapped lives on"


def test_a_short_disk_is_said_in_one_line(dataset, monkeypatch, directory):
    usage = shutil.disk_usage(directory.parents[1])
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(CacheError, match=r"0\.0 GB have no room in the cache; .* has 0\.0 GB.*LEWM_CACHE") as caught:
        map_frames(dataset, threads=1)
    assert "\n" not in str(caught.value)


def test_frames_of_other_bytes_are_not_kept(dataset, tmp_path, directory):
    """A JPEG that was swapped for another decodes well; after the tar is mended, the cache has what is right."""
    shutil.copytree(dataset.path, tmp_path / "copy")
    damaged = Dataset.open(tmp_path / "copy")
    i = int(np.argmax(damaged.lengths))
    members = damaged.frame_members(i)
    whole = members.path.read_bytes()
    sizes = members.size.tolist()
    one, other = next((a, b) for a, n in enumerate(sizes) for b in range(a + 1, len(sizes)) if n == sizes[b])
    begins, n = members.offset.tolist(), sizes[one]
    swapped = bytearray(whole)
    swapped[begins[one] : begins[one] + n] = whole[begins[other] : begins[other] + n]
    swapped[begins[other] : begins[other] + n] = whole[begins[one] : begins[one] + n]
    assert bytes(swapped) != whole
    members.path.write_bytes(swapped)
    with pytest.raises(DamagedEpisodeError, match=rf"{damaged.keys[i]}.*do not have its sha256"):
        map_frames(damaged, threads=2)
    assert names(directory) == set()
    members.path.write_bytes(whole)
    np.testing.assert_array_equal(map_frames(damaged, threads=2), map_frames(dataset, threads=2))


def test_a_digest_that_is_not_the_episodes_is_refused(dataset, tmp_path, directory):
    other = make_dataset(tmp_path / "other", 2, size=8, seed=9)
    (other.path / "manifest.json").write_bytes(to_bytes(replace(other.manifest, digest=dataset.digest)))
    with pytest.raises(ValueError, match=r"claims digest .*, its episodes have"):
        map_frames(Dataset.open(other.path), threads=1)
    assert names(directory) == set()


def test_a_file_removed_before_it_is_mapped_is_written_again(dataset, monkeypatch):
    whole, times = framecache._is_whole, []

    def then_removed(path, dataset):
        found = whole(path, dataset)
        if found and not times:
            times.append(path.unlink())
        return found

    map_frames(dataset, threads=1)
    monkeypatch.setattr(framecache, "_is_whole", then_removed)
    assert len(map_frames(dataset, threads=1)) == int((dataset.lengths + 1).sum())
    assert len(times) == 1


def test_a_directory_that_cannot_be_is_said_too(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot be written"):
        map_frames(dataset, threads=1)


SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from pipelines.framecache import map_frames
from shards.dataset import Dataset
print(map_frames(Dataset.open(sys.argv[1]), threads=1).sum())
"""


def test_processes_share_one_file_that_one_of_them_writes(dataset, directory):
    command = [sys.executable, "-c", SCRIPT, str(dataset.path)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert sum(err.count(" in ") for _, err in results if "decoding" in err) == 1
    assert names(directory) == {f"{dataset.digest}.u8"}


def test_the_directory_is_the_users_unless_chosen(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("LEWM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/lewm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "lewm"
