"""Datasets in a bucket, on a real S3 server: the same as on disk, also where answers fail, are cut off or are wrong."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards import mirror
from shards.cache import cache_directory, make_room
from shards.dataset import Dataset
from shards.manifest import MANIFEST, to_bytes
from shards.mirror import open_file, open_mirror, origin_of, present
from shards.push import push
from shards.remote import ATTEMPTS, Remote
from shards.verify import verify
from tests.helpers import make_dataset
from tests.remote import BUCKET, bucket_server


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch, bucket_server(patch) as proxy:
        yield proxy


def forget():
    """What this process knows of the cache, as if it had just begun."""
    mirror._remote_of.cache_clear()
    mirror._manifest_of.cache_clear()
    mirror._hashed.clear()


@pytest.fixture
def proxy(server, monkeypatch, tmp_path):
    """The server, without faults, and an empty cache."""
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shards.remote._PAUSE", 0.001)
    forget()
    server.fault = lambda method, path: None
    server.requests.clear()
    return server


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("local") / "data", n=12, shard_episodes=4, size=32)


@pytest.fixture(scope="module")
def uri(server, local):
    place = f"s3://{BUCKET}/sets/one"
    push(local.path, place)
    return place


def resend(place, path, data, tmp_path):
    """Put other bytes in the place of an object."""
    (tmp_path / "resent").write_bytes(data)
    Remote(place).upload(tmp_path / "resent", f"shards/{path.name}")


def gets(proxy, suffix):
    return [(path, wanted) for method, path, wanted in proxy.requests if method == "GET" and path.endswith(suffix)]


def test_a_bucket_is_read_like_a_directory(proxy, local, uri):
    dataset = Dataset.open(uri)
    assert (dataset.location, dataset.digest, len(dataset)) == (uri, local.digest, len(local))
    for i in range(len(local)):
        there, here = dataset.read_episode(i), local.read_episode(i)
        assert there.info == here.info
        for name in ("frames", "action", "reward", "state"):
            np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert verify(uri).ok
    before = len(proxy.requests)
    assert Dataset.open(uri).read_episode(3).info.number == local.read_episode(3).info.number
    names = {path.split("?")[0].rsplit("/", 1)[1] for _, path, _ in proxy.requests[before:]}
    assert names == {MANIFEST}, "only the manifest is asked for again"


def test_only_what_is_read_is_fetched(proxy, local, uri):
    Dataset.open(uri).read_episode(0)
    tars = {path for path, _ in gets(proxy, ".tar")}
    assert len(tars) == 1


@pytest.mark.parametrize("fault", ["error", "reset", "truncate"])
def test_what_fails_for_a_while_is_tried_again(proxy, local, uri, fault):
    seen: Counter[str] = Counter()

    def fail_first(method, path):
        seen[path] += 1
        return fault if method == "GET" and seen[path] <= 2 else None

    proxy.fault = fail_first
    dataset = Dataset.open(uri)
    np.testing.assert_array_equal(dataset.read_episode(5).frames, local.read_episode(5).frames)
    assert max(seen.values()) >= 3


@pytest.mark.parametrize("fault", ["error", "reset", "truncate"])
def test_what_fails_for_good_is_named(proxy, local, uri, fault):
    dataset = Dataset.open(uri)
    proxy.fault = lambda method, path: fault if path.endswith(".tar") and method == "GET" else None
    with pytest.raises(ValueError, match=rf"s3://{BUCKET}/sets/one/shards/.*\.tar.*attempts"):
        dataset.read_episode(0)
    assert not list(cache_directory().rglob("*.tar"))
    assert not list(cache_directory().rglob("*.tmp"))
    proxy.fault = lambda method, path: None
    assert dataset.read_episode(0).info.number == local.read_episode(0).info.number


def test_attempts_are_bounded(proxy):
    proxy.fault = lambda method, path: "error"
    with pytest.raises(OSError, match=f"{ATTEMPTS} attempts"):
        Remote(f"s3://{BUCKET}/sets/one").read(MANIFEST)
    assert ATTEMPTS <= len(proxy.requests) <= 3 * ATTEMPTS


def test_what_is_not_there_is_said_at_once(proxy):
    with pytest.raises(ValueError, match=rf"s3://{BUCKET}/none is not a dataset"):
        Dataset.open(f"s3://{BUCKET}/none")
    assert len(proxy.requests) <= 4
    for wrong in ("s3://", f"s3://{BUCKET}/../x", "s3:///x", f"s3://{BUCKET}//x"):
        with pytest.raises(ValueError, match="no URI of a bucket"):
            Dataset.open(wrong)


def test_an_object_with_other_bytes_is_refused(proxy, local, tmp_path):
    place = f"s3://{BUCKET}/sets/changed"
    push(local.path, place)
    tar = next((local.path / "shards").glob("*.tar"))
    changed = tmp_path / "changed.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    changed.write_bytes(data)
    Remote(place).upload(changed, f"shards/{tar.name}")
    with pytest.raises(ValueError, match=rf"{tar.name}: its bytes do not have its sha256"):
        Dataset.open(place).read_episode(0)
    report = verify(place)
    assert [tar.name in problem for problem in report.problems] == [True]
    changed.write_bytes(data[:-512])
    Remote(place).upload(changed, f"shards/{tar.name}")
    assert f"it has {len(data) - 512} bytes, not {len(data)}" in verify(place).problems[0]


def test_a_large_shard_is_read_in_ranges_and_not_kept(proxy, local, uri, monkeypatch):
    monkeypatch.setenv("LEWM_CACHE_GB", "0")
    dataset = Dataset.open(uri)
    np.testing.assert_array_equal(dataset.read_episode(2).frames, local.read_episode(2).frames)
    assert not list(cache_directory().rglob("*.tar"))
    size = sum(dataset.frame_members(2).size)
    ((_, wanted),) = gets(proxy, ".tar")
    first, last = map(int, wanted.removeprefix("bytes=").split("-"))
    assert size <= last - first + 1 < dataset.manifest.shards[0].tar_bytes
    monkeypatch.setenv("LEWM_CACHE_GB", "much")
    with pytest.raises(ValueError, match="LEWM_CACHE_GB is 'much'"):
        dataset.read_episode(7)


def test_the_cache_stays_within_its_limit_and_open_files_live_on(proxy, local, uri, monkeypatch):
    sizes = [shard.tar_bytes + shard.index_bytes for shard in local.manifest.shards]
    limit = sum(sizes[:2]) + max(sizes) // 3
    monkeypatch.setenv("LEWM_CACHE_GB", str(limit / 1e9))
    dataset = Dataset.open(uri)
    tars = [open_mirror(uri) / "shards" / f"{shard.name}.tar" for shard in dataset.manifest.shards]
    held = open_file(tars[0])
    os.utime(tars[0], (1, 1))
    for round_ in range(2):
        for i in range(len(dataset)):
            assert dataset.read_episode(i).info.number == local.read_episode(i).info.number, round_
            kept = [path for path in cache_directory().rglob("shards/*") if path.suffix in (".tar", ".arrow")]
            assert sum(path.stat().st_size for path in kept) <= limit
    assert bytes(held.read(0, 512)) == (local.path / "shards" / tars[0].name).read_bytes()[:512]


def test_downloads_under_way_count(proxy, uri, monkeypatch):
    dataset = Dataset.open(uri)
    shards = dataset.manifest.shards
    limit = max(shard.tar_bytes for shard in shards) * 3 // 2
    monkeypatch.setenv("LEWM_CACHE_GB", str(limit / 1e9))
    first, second = (dataset.path / "shards" / f"{shard.name}.tar" for shard in shards[:2])
    reached, go_on = threading.Event(), threading.Event()

    def hold(method, path):
        if method == "GET" and path.endswith(first.name):
            reached.set()
            go_on.wait(60)

    proxy.fault = hold
    threads = [threading.Thread(target=present, args=(path,)) for path in (first, second)]
    threads[0].start()
    assert reached.wait(60)
    assert not make_room(shards[1].tar_bytes).enough, "there is room only once the first is done"
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert second.exists()
    assert not first.exists()


def test_a_damaged_or_partial_file_in_the_cache_is_not_served(proxy, local, uri):
    dataset = Dataset.open(uri)
    tar = present(dataset.frame_members(0).path)
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    assert present(tar).read_bytes() == whole
    files = [tar, tar.with_suffix(".arrow"), dataset.path / "episodes.arrow", dataset.path / MANIFEST]
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
        forget()
        np.testing.assert_array_equal(Dataset.open(uri).read_episode(0).frames, local.read_episode(0).frames)
        assert path.read_bytes() == whole


_FETCH = "import sys; from shards.mirror import present; from pathlib import Path; present(Path(sys.argv[1]))"


def test_a_killed_download_leaves_nothing_that_is_served(proxy, local, uri):
    dataset = Dataset.open(uri)
    tar = open_mirror(uri) / "shards" / f"{dataset.manifest.shards[0].name}.tar"
    reached, go_on = threading.Event(), threading.Event()

    def hold(method, path):
        if method == "GET" and path.endswith(".tar"):
            reached.set()
            go_on.wait(60)

    proxy.fault = hold
    process = subprocess.Popen([sys.executable, "-c", _FETCH, str(tar)])
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    go_on.set()
    assert not tar.exists()
    assert list(tar.parent.glob(f"{tar.name}.*.tmp"))
    proxy.fault = lambda method, path: None
    assert present(tar).stat().st_size == dataset.manifest.shards[0].tar_bytes
    assert not list(tar.parent.glob("*.tmp"))
    stray = tar.with_name(f"{dataset.manifest.shards[2].name}.tar.0123abcd.tmp")
    stray.write_bytes(b"of a process that is gone")
    present(tar.with_name(f"{dataset.manifest.shards[1].name}.tar"))
    assert not stray.exists(), "also where another file is fetched"


def test_processes_and_threads_fetch_a_file_once(proxy, uri):
    dataset = Dataset.open(uri)
    tar = open_mirror(uri) / "shards" / f"{dataset.manifest.shards[1].name}.tar"
    proxy.fault = lambda method, path: time.sleep(0.3) if path.endswith(".tar") else None
    processes = [subprocess.Popen([sys.executable, "-c", _FETCH, str(tar)]) for _ in range(2)]
    threads = [threading.Thread(target=present, args=(tar,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(gets(proxy, ".tar")) == 1


@pytest.mark.parametrize("limit", [0.5, 1.2])
def test_verify_reads_the_bucket_whatever_the_cache_holds(proxy, local, tmp_path, monkeypatch, limit):
    place = f"s3://{BUCKET}/sets/read-{limit}"
    push(local.path, place)
    for i in range(len(local)):
        Dataset.open(place).read_episode(i)
    largest = max(shard.tar_bytes + shard.index_bytes for shard in local.manifest.shards)
    monkeypatch.setenv("LEWM_CACHE_GB", str(limit * largest / 1e9))
    report = verify(place)
    assert (report.problems, report.directory) == ((), place)
    assert report.bytes == sum(shard.tar_bytes + shard.index_bytes for shard in local.manifest.shards)
    for path in sorted((local.path / "shards").iterdir())[:2]:
        whole = path.read_bytes()
        for data in (whole[:700] + bytes([whole[700] ^ 1]) + whole[701:], whole + b"0"):
            resend(place, path, data, tmp_path)
            (problem,) = verify(place).problems
            assert f"{place}/shards/{path.name}" in problem
        resend(place, path, whole, tmp_path)
    assert verify(place).ok


def test_an_interrupted_push_goes_on_and_shows_no_dataset_before_its_end(proxy, local):
    place = f"s3://{BUCKET}/sets/pushed"
    proxy.fault = lambda method, path: "error" if method == "PUT" and "part-00008.tar" in path else None
    with pytest.raises(OSError, match=r"part-00008\.tar"):
        push(local.path, place)
    with pytest.raises(ValueError, match="is not a dataset"):
        Dataset.open(place)
    proxy.fault = lambda method, path: None
    proxy.requests.clear()
    push(local.path, place)
    assert not [path for method, path, _ in proxy.requests if method == "PUT" and "part-00000" in path]
    assert verify(place).ok


def test_another_dataset_is_not_overwritten(proxy, uri, tmp_path):
    other = make_dataset(tmp_path / "other", n=12, shard_episodes=4, size=32, seed=5)
    with pytest.raises(ValueError, match=r"holds shards of another dataset \(shards/part-00000.arrow\)"):
        push(other.path, uri)
    for path in (other.path / "shards").iterdir():
        path.rename(path.with_name(path.name.replace("part", "other")))
    (other.path / MANIFEST).unlink()
    from shards.manifest import assemble

    assemble(other.path)
    with pytest.raises(ValueError, match="holds shards of another dataset"):
        push(other.path, uri)
    assert verify(uri).ok


def test_extra_and_missing_objects_are_named(proxy, local):
    place = f"s3://{BUCKET}/sets/odd"
    push(local.path, place)
    remote = Remote(place)
    remote.upload(next((local.path / "shards").glob("*.tar")), "shards/stray.tar")
    remote._fs.delete_file(f"{BUCKET}/sets/odd/shards/part-00004.arrow")
    problems = verify(place).problems
    assert len(problems) == 2
    assert any("stray is extra" in problem for problem in problems)
    assert any("part-00004.arrow" in problem for problem in problems)


def test_a_pickled_dataset_opens_at_its_uri(proxy, uri):
    import pickle

    dataset = pickle.loads(pickle.dumps(Dataset.open(uri)))
    assert dataset.location == uri
    assert isinstance(dataset.path, Path)


def test_what_a_bucket_lacks_is_an_error_and_no_endless_search(proxy, local):
    place = f"s3://{BUCKET}/sets/lacking"
    push(local.path, place)
    Remote(place)._fs.delete_file(f"{BUCKET}/sets/lacking/shards/part-00000.tar")
    dataset = Dataset.open(place)
    result = []
    thread = threading.Thread(target=lambda: result.append(catch(lambda: open_file(dataset.frame_members(0).path))))
    thread.daemon = True
    thread.start()
    thread.join(60)
    (error,) = result
    assert isinstance(error, FileNotFoundError)
    assert (str(error).split(": ")[0], error.errno) == (f"{place}/shards/part-00000.tar", errno.ENOENT)
    assert len(gets(proxy, ".tar")) <= 1


def catch(call):
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return error


def test_a_file_that_is_always_removed_is_an_error(proxy, uri, monkeypatch):
    tar = Dataset.open(uri).frame_members(0).path
    fetched = []
    monkeypatch.setattr(mirror, "present", lambda path: fetched.append(path))
    with pytest.raises(OSError, match=rf"{uri}/shards/.*\.tar was removed from the cache as often"):
        open_file(tar)
    assert fetched == [tar] * mirror._ATTEMPTS


def test_what_is_forbidden_is_said_at_once(proxy):
    proxy.fault = lambda method, path: "forbid"
    with pytest.raises(PermissionError, match=rf"s3://{BUCKET}/sets/one/manifest\.json") as caught:
        Remote(f"s3://{BUCKET}/sets/one").read(MANIFEST)
    assert caught.value.errno == errno.EACCES
    assert len(proxy.requests) <= 2


def test_no_attempt_is_made_of_attempts(proxy, local, uri):
    dataset = Dataset.open(uri)
    proxy.fault = lambda method, path: "error" if path.endswith(".tar") and method == "GET" else None
    with pytest.raises(OSError, match=f"{ATTEMPTS} attempts"):
        present(dataset.frame_members(0).path)
    assert len(gets(proxy, ".tar")) == ATTEMPTS


def test_damage_in_a_bucket_is_told_from_its_absence(proxy, local, tmp_path):
    place = f"s3://{BUCKET}/sets/spoilt"
    push(local.path, place)
    path = local.path / "shards" / "part-00000.tar"
    resend(place, path, path.read_bytes()[:-1] + b"1", tmp_path)
    error = catch(lambda: present(Dataset.open(place).frame_members(0).path))
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO, "which the loader may skip, as it may on a disk"
    assert str(error).startswith(place)


def test_a_changed_dataset_takes_over_what_is_the_same(proxy, tmp_path):
    place = f"s3://{BUCKET}/sets/grown"
    directory = make_dataset(tmp_path / "growing", n=4, shard_episodes=2, size=32).path
    push(directory, place)
    before = Dataset.open(place)
    for i in range(len(before)):
        before.read_episode(i)
    more = make_dataset(tmp_path / "more", n=6, shard_episodes=2, size=32).path
    push(more, place)
    proxy.requests.clear()
    after = Dataset.open(place)
    for i in range(len(after)):
        after.read_episode(i)
    assert after.path != before.path
    assert {path.rsplit("/", 1)[1] for path, _ in gets(proxy, ".tar")} == {"part-00004.tar"}
    assert {path.rsplit("/", 1)[1] for path, _ in gets(proxy, ".arrow")} == {"episodes.arrow", "part-00004.arrow"}


def test_what_has_two_names_takes_room_once(proxy, tmp_path, monkeypatch):
    place = f"s3://{BUCKET}/sets/twice"
    directory = make_dataset(tmp_path / "growing", n=4, shard_episodes=2, size=32).path
    push(directory, place)
    present(Dataset.open(place).frame_members(0).path)
    push(make_dataset(tmp_path / "more", n=6, shard_episodes=2, size=32).path, place)
    tar = present(Dataset.open(place).frame_members(0).path)
    assert tar.stat().st_nlink == 2
    held = {path.stat().st_ino: path.stat().st_size for path in cache_directory().glob("datasets/*/shards/*")}
    size = tar.stat().st_size
    monkeypatch.setenv("LEWM_CACHE_GB", str((sum(held.values()) + size) / 1e9 + 1e-9))
    assert make_room(size - 1).enough
    assert tar.exists()
    assert make_room(2 * size).enough
    assert not list(cache_directory().glob(f"datasets/*/shards/{tar.name}")), "both names go"


def test_what_is_sent_is_the_dataset_of_the_beginning(proxy, tmp_path):
    """More is collected, and the manifest written anew, while the first shard is on its way."""
    place = f"s3://{BUCKET}/sets/moving"
    directory = make_dataset(tmp_path / "moving", n=4, shard_episodes=2, size=32).path
    digest = Dataset.open(directory).digest
    more = make_dataset(tmp_path / "more", n=6, shard_episodes=2, size=32).path
    grown = []

    def grow(done, total):
        if not grown:
            for name in ("shards/part-00004.tar", "shards/part-00004.arrow", "episodes.arrow", MANIFEST):
                shutil.copy(more / name, directory / name)
        grown.append(done)

    push(directory, place, grow)
    assert Dataset.open(place).digest == digest != Dataset.open(directory).digest
    assert verify(place).ok


def test_a_damaged_file_is_not_sent(proxy, tmp_path):
    place = f"s3://{BUCKET}/sets/unsent"
    directory = make_dataset(tmp_path / "damaged", n=4, shard_episodes=2, size=32).path
    tar = directory / "shards" / "part-00002.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{tar} is not the file that manifest\.json names"):
        push(directory, place)
    with pytest.raises(ValueError, match="is not a dataset"):
        Dataset.open(place)


def test_a_damaged_manifest_is_named_by_its_uri(proxy, local):
    place = f"s3://{BUCKET}/sets/misnamed"
    push(local.path, place)
    Remote(place).write(MANIFEST, (local.path / MANIFEST).read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"^{place}/manifest\.json is damaged"):
        Dataset.open(place)
    assert origin_of(local.path / MANIFEST) == str(local.path / MANIFEST)


@pytest.mark.parametrize("name", [MANIFEST, "episodes.arrow"])
def test_verify_reports_what_is_damaged_in_a_bucket(proxy, local, name):
    place = f"s3://{BUCKET}/sets/reported-{name.split('.')[0]}"
    push(local.path, place)
    data = bytearray((local.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    Remote(place).write(name, bytes(data))
    report = verify(place)
    assert not report.ok
    assert all(problem.startswith(f"{place}/{name} is damaged") for problem in report.problems), report.problems
    Remote(place)._fs.delete_file(f"{BUCKET}/sets/reported-{name.split('.')[0]}/{name}")
    assert any(name in problem for problem in verify(place).problems)


def test_verify_compares_a_buckets_manifest_with_its_shards(proxy, local):
    place = f"s3://{BUCKET}/sets/forged"
    push(local.path, place)
    common = replace(local.manifest.common, quality="full")
    Remote(place).write(MANIFEST, to_bytes(replace(local.manifest, common=common)))
    assert verify(place).problems == (f"{place}: the manifest's common is not that of the shards",)
