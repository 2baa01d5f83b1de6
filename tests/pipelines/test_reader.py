import gc
import os
import threading

import pytest

from pipelines.reader import Members, ShardReader


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


@pytest.fixture
def preads(monkeypatch):
    """(offset, size) of every pread, in order."""
    calls = []
    pread = os.pread

    def recorded(descriptor, size, offset):
        calls.append((offset, size))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", recorded)
    return calls


def open_files(path):
    """Descriptors of this process on files beside `path`."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith(str(path.parent))]


def test_near_members_come_in_one_read_and_far_ones_in_their_own(shard, preads):
    data = shard.read_bytes()
    offsets, sizes = [100, 300, 1000, 100_000, 100_512, 50], [150, 10, 512, 512, 30, 7]
    views = ShardReader().read(Members(shard, offsets, sizes))
    assert [bytes(view) for view in views] == [data[o : o + n] for o, n in zip(offsets, sizes, strict=True)]
    assert preads == [(100, 1412), (100_000, 542), (50, 7)]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such advice")
def test_the_disk_is_told_of_exactly_what_will_be_read(shard, preads, monkeypatch):
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, size, what: advised.append((offset, size)))
    reader = ShardReader()
    wanted = Members(shard, [100, 300, 1000, 100_000, 100_512, 50], [150, 10, 512, 512, 30, 7])
    reader.expect(wanted)
    assert preads == []
    reader.read(wanted)
    assert advised == preads == [(100, 1412), (100_000, 542), (50, 7)]


def test_a_file_that_ends_early_gives_short_views(shard):
    end = shard.stat().st_size
    views = ShardReader().read(Members(shard, [end - 600, end - 10, end + 90], [500, 20, 20]))
    assert [len(view) for view in views] == [500, 10, 0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        ShardReader().read(Members(tmp_path / "absent.tar", [0], [1]))


def test_descriptors_are_bounded_and_closed(tmp_path):
    paths = [tmp_path / f"{n}.tar" for n in range(12)]
    for n, path in enumerate(paths):
        path.write_bytes(b"%02d" % n * 100)
    reader = ShardReader(max_open=4)
    for _ in range(2):
        for n, path in enumerate(paths):
            assert bytes(reader.read(Members(path, [2], [2]))[0]) == b"%02d" % n
            assert len(open_files(path)) <= 4
    reader.close()
    gc.collect()
    assert open_files(paths[0]) == []


def test_threads_that_evict_each_others_files_read_the_right_bytes(tmp_path):
    paths = [tmp_path / f"{n}.tar" for n in range(8)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * 4096)
    reader, wrong = ShardReader(max_open=2), []

    def work(seed):
        for i in range(400):
            n = (i * 5 + seed * 3) % len(paths)
            if bytes(reader.read(Members(paths[n], [i], [64]))[0]) != bytes([n]) * 64:
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_removed_file_is_let_go_with_the_next_opened(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(b"some bytes")
    reader = ShardReader()
    reader.read(Members(first, [0], [4]))
    first.unlink()
    assert bytes(reader.read(Members(first, [5], [5]))[0]) == b"bytes"
    reader.read(Members(second, [0], [4]))
    assert list(reader._files) == [second], "an open descriptor keeps a removed file's bytes on disk"
