"""A bucket's dataset on this machine: a bounded cache of whole files that is laid out like the dataset itself.

`<cache>/datasets/<id>/` holds `origin.json` (the URI), manifest.json, episodes.arrow and, of the shards, what was asked
for. The id hashes the URI and the manifest, so that a dataset that changed has a mirror of its own. So whatever reads a
local dataset reads this one: only opening a file goes through `open_file` or `present`, which fetch what is not there.

A file is downloaded under a temporary name, checked against the size and sha256 of the manifest, fsynced and renamed:
killed at any moment, no process ever sees a part of it. A file that was there before is hashed once by each process
that uses it (about 1.5 GB/s), and fetched again if it was damaged. Processes share a mirror; one downloads a file, and
the others wait for its lock. Over the limit, $LEWM_CACHE_GB (50), the shards used longest ago are removed, of any
dataset; who has one open keeps it until it lets go. Downloads under way count in full, so that together they stay
within the limit, too; each holds a lock on its temporary file, which tells it from what a killed process left. A tar
too large for the limit is not kept: `open_file` then reads ranges of the object, and only those.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from shards.atomic import TMP_SUFFIX, file_sha256, publish, temporary, write_atomically
from shards.cache import cache_directory
from shards.manifest import EPISODES, MANIFEST, Manifest, load
from shards.remote import Remote

ORIGIN = "origin.json"
DEFAULT_GB = 50.0
_LARGE = 1 << 20
_WAIT = 0.05
"""Seconds between looks at whether another download has ended."""


def cache_limit() -> int:
    """Most bytes that mirrors may take: $LEWM_CACHE_GB, else 50 GB."""
    text = os.environ.get("LEWM_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ValueError(f"LEWM_CACHE_GB is {text!r}: give a number of gigabytes, or 0 to keep no shard")
    return int(limit * 1e9)


def open_mirror(uri: str) -> Path:
    """The mirror of the dataset at a URI, as it is now, with its manifest and `episodes.arrow`.

    ValueError when there is no dataset or its manifest is damaged; OSError when the bucket does not answer.
    """
    remote = Remote(uri)
    try:
        text = remote.read(MANIFEST)
    except FileNotFoundError:
        raise ValueError(f"{uri} is not a dataset: there is no {MANIFEST}; `lewm shards push` writes one") from None
    identity = hashlib.sha256(remote.uri.encode() + b"\n" + text).hexdigest()[:16]
    mirror = cache_directory() / "datasets" / identity
    (mirror / "shards").mkdir(parents=True, exist_ok=True)
    if not _holds(mirror / MANIFEST, text):
        write_atomically(mirror / MANIFEST, text)
    load(mirror)  # refused before the mirror counts
    origin = json.dumps({"uri": remote.uri}).encode()
    if not _holds(mirror / ORIGIN, origin):
        write_atomically(mirror / ORIGIN, origin)
    present(mirror / EPISODES)
    return mirror


def present(path: Path) -> Path:
    """`path`, fetched first if it is a mirror's and not there, or damaged. A local path is given back."""
    origin = _origin(path)
    if origin is not None:
        expected = _expected(*origin, path)
        with _thread_lock(path):
            if not _is_whole(path, *expected):
                _fetch(*origin, path, *expected)
        # The time of its last use. The cache may be somebody else's.
        with contextlib.suppress(PermissionError):
            os.utime(path)
    return path


class LocalFile:
    """An open descriptor, closed with the last reference to it."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def removed(self) -> bool:
        """Whether the file has no name any more, so that only its descriptors keep it on disk."""
        return os.fstat(self._descriptor).st_nlink == 0

    def read(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset`; fewer where the file ends."""
        if size > _LARGE:  # so much memory would be taken, whatever there is to read
            size = min(size, max(0, os.fstat(self._descriptor).st_size - offset))
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return memoryview(data)


class RemoteFile:
    """An object that is read in ranges and not kept."""

    removed = False

    def __init__(self, remote: Remote, name: str) -> None:
        self._remote, self._name = remote, name

    def read(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset`; fewer where the object ends."""
        return memoryview(self._remote.read(self._name, offset, size))


def open_file(path: Path) -> LocalFile | RemoteFile:
    """A dataset's file for reading ranges; of a mirror's, the file once it is fetched, or the object if it is too large
    for the cache."""
    origin = _origin(path)
    if origin is None:
        return LocalFile(path)
    if path.suffix == ".tar" and _expected(*origin, path)[0] > cache_limit():
        return RemoteFile(origin[0], _name(origin[1], path))
    while True:
        try:
            return LocalFile(present(path))
        except FileNotFoundError:
            if not path.parent.exists():
                raise
            # Removed to make room between the two: fetched again.


def push(directory: Path, uri: str, on_file: Callable[[int, int], None] | None = None) -> int:
    """Copy a dataset to a bucket: its shards, each tar before its index, then episodes.arrow, and the manifest last.

    An index tells of its tar's bytes, so a shard whose index is there is there, and a push that was interrupted goes on
    after it. Where the bucket holds a part of this dataset, its readers refuse it between the last two files.

    Returns the bytes sent; `on_file(done, total)` counts files. ValueError when the directory is no dataset, or the
    bucket holds a shard that is not one of its; nothing is then sent.
    """
    manifest, remote = load(directory), Remote(uri)
    there = remote.names()
    names = [f"shards/{shard.name}{suffix}" for shard in manifest.shards for suffix in (".tar", ".arrow")]
    foreign = sorted(name for name in there if name.startswith("shards/") and name not in names)
    kept: set[str] = set()
    for shard in manifest.shards:
        tar, index = f"shards/{shard.name}.tar", f"shards/{shard.name}.arrow"
        if index in there:
            if hashlib.sha256(remote.read(index)).hexdigest() != shard.index_sha256:
                foreign.append(index)
            elif there.get(tar) == shard.tar_bytes:
                kept |= {tar, index}
    if foreign:
        raise ValueError(f"{uri} holds shards of another dataset ({foreign[0]}): choose another place")
    sent = 0
    for done, name in enumerate([*names, EPISODES, MANIFEST], 1):
        if name not in kept:
            remote.upload(directory / name, name)
            sent += (directory / name).stat().st_size
        if on_file is not None:
            on_file(done, len(names) + 2)
    return sent


def _origin(path: Path) -> tuple[Remote, Path] | None:
    """The bucket that a mirror's file is from, and the mirror; None for a path that is no mirror's."""
    for directory in (path.parent, path.parent.parent):
        remote = _remote_of(directory)
        if remote is not None:
            return remote, directory
    return None


@lru_cache(maxsize=256)
def _remote_of(directory: Path) -> Remote | None:
    if directory.parent != cache_directory() / "datasets" or not (directory / ORIGIN).exists():
        return None
    return Remote(json.loads((directory / ORIGIN).read_text())["uri"])


@lru_cache(maxsize=16)
def _manifest_of(directory: Path) -> Manifest:
    return load(directory)


def _name(mirror: Path, path: Path) -> str:
    return path.relative_to(mirror).as_posix()


def _expected(remote: Remote, mirror: Path, path: Path) -> tuple[int, str]:
    """Size and sha256 that the manifest says of a file."""
    manifest = _manifest_of(mirror)
    if path.name == EPISODES:
        return manifest.episodes_bytes, manifest.episodes_sha256
    for shard in manifest.shards:
        if shard.name == path.stem:
            if path.suffix == ".tar":
                return shard.tar_bytes, shard.tar_sha256
            return shard.index_bytes, shard.index_sha256
    raise FileNotFoundError(2, f"{remote.uri} has no such file", str(path))


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


_hashed: set[tuple[Path, int]] = set()
"""Files, with their inodes, that this process has found to have their sha256."""


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        status = path.stat()
        if status.st_size != size:
            return False
        if (path, status.st_ino) not in _hashed:
            if file_sha256(path) != sha256:
                return False
            _hashed.add((path, status.st_ino))
    except FileNotFoundError:
        return False
    return True


def _fetch(remote: Remote, mirror: Path, path: Path, size: int, sha256: str) -> None:
    if path.suffix == ".tar" and size > cache_limit():
        raise OSError(f"{remote.uri}: {path.name} has {size / 1e9:.1f} GB, more than LEWM_CACHE_GB lets the cache hold")
    with _process_lock(path.with_name(f".{path.name}.lock")):
        if _is_whole(path, size, sha256):  # another process was faster
            return
        path.unlink(missing_ok=True)  # damaged
        tmp = temporary(path)
        try:
            with _reserved(tmp, size) as file:
                remote.download(_name(mirror, path), file, size, sha256)
                file.flush()
                os.fsync(file.fileno())
                publish(tmp, path)
                _hashed.add((path, os.fstat(file.fileno()).st_ino))
        finally:
            tmp.unlink(missing_ok=True)


_guard = threading.Lock()
_thread_locks: dict[Path, threading.Lock] = {}


def _thread_lock(path: Path) -> threading.Lock:
    """The lock of a file in this process."""
    with _guard:
        return _thread_locks.setdefault(path, threading.Lock())


@contextlib.contextmanager
def _process_lock(path: Path) -> Iterator[None]:
    """One holder of the lock file at a time; that of a process that is killed is free again."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reserved(tmp: Path, size: int) -> IO[bytes]:
    """A new, locked file of `size` bytes (a hole as yet), once there is room for it beside the other downloads."""
    while True:
        with _process_lock(cache_directory() / "datasets" / ".lock"):
            if _make_room(size):
                file = tmp.open("xb")
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(size)
                return file
        time.sleep(_WAIT)


def _make_room(size: int) -> bool:
    """Remove what killed processes left, and the shards that were used longest ago until `size` more bytes are within
    the limit. False when they are not, because of downloads under way."""
    datasets, limit = cache_directory() / "datasets", cache_limit()
    under_way = 0
    for tmp in [*datasets.glob(f"*/shards/*{TMP_SUFFIX}"), *datasets.glob(f"*/{EPISODES}.*{TMP_SUFFIX}")]:
        with contextlib.suppress(FileNotFoundError), tmp.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                tmp.unlink()
            except BlockingIOError:
                under_way += os.fstat(file.fileno()).st_size
    found = []
    for path in datasets.glob("*/shards/*"):
        if path.suffix in (".tar", ".arrow"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
    total = under_way + sum(each for _, each, _ in found)
    for _, each, path in sorted(found):
        if total + size <= limit:
            break
        path.unlink(missing_ok=True)
        total -= each
    return total + size <= limit or not under_way
