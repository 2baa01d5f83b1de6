"""A bucket's dataset on this machine: a bounded cache of whole files that is laid out like the dataset itself.

`<cache>/datasets/<id>/` holds `origin.json` (the URI), manifest.json, episodes.arrow and, of the shards, what was asked
for. The id hashes the URI and the manifest, so that a dataset that changed has a mirror of its own. So whatever reads a
local dataset reads this one: only opening a file goes through `open_file` or `present`, which fetch what is not there.

A file is downloaded under a temporary name, checked against the size and sha256 of the manifest, fsynced and renamed:
killed at any moment, no process ever sees a part of it. Processes share a mirror; one downloads a file, and the others
wait for its lock. Over the limit, $LEWM_CACHE_GB (50), the shards used longest ago are removed, of any dataset; who has
one open keeps it until it lets go. A tar too large for the limit is not kept: `open_file` then reads ranges of the
object, and only those.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from shards.atomic import TMP_SUFFIX, publish, temporary, write_atomically
from shards.cache import cache_directory
from shards.manifest import EPISODES, MANIFEST, Manifest, load
from shards.remote import Remote

ORIGIN = "origin.json"
DEFAULT_GB = 50.0
_LARGE = 1 << 20


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
    if not (mirror / ORIGIN).exists():
        write_atomically(mirror / MANIFEST, text)
        load(mirror)  # refused before the mirror counts
        write_atomically(mirror / ORIGIN, json.dumps({"uri": remote.uri}).encode())
    present(mirror / EPISODES)
    return mirror


def present(path: Path) -> Path:
    """`path`, fetched first if it is a mirror's and not there, or of another size. A local path is given back."""
    origin = _origin(path)
    if origin is not None:
        expected = _expected(*origin, path)
        if not _is_whole(path, expected[0]):
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
    """Copy a dataset to a bucket: its shards, then episodes.arrow, the manifest last, so that what is there is whole at
    any moment. A shard of the same name and size is taken for the same; so a push that was interrupted goes on.

    Returns the bytes sent; `on_file(done, total)` counts files. ValueError when the directory is no dataset, or the
    bucket holds one of other episodes than the beginning of this one.
    """
    manifest, remote = load(directory), Remote(uri)
    there = remote.names()
    names = [f"shards/{shard.name}{suffix}" for shard in manifest.shards for suffix in (".tar", ".arrow")]
    foreign = sorted(name for name in there if name.startswith("shards/") and name not in names)
    if foreign:
        raise ValueError(f"{uri} holds shards of another dataset ({foreign[0]}): choose another place")
    sent = 0
    for done, name in enumerate([*names, EPISODES, MANIFEST], 1):
        size = (directory / name).stat().st_size
        if name not in names or there.get(name) != size:
            remote.upload(directory / name, name)
            sent += size
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


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _fetch(remote: Remote, mirror: Path, path: Path, size: int, sha256: str) -> None:
    if path.suffix == ".tar" and size > cache_limit():
        raise OSError(f"{remote.uri}: {path.name} has {size / 1e9:.1f} GB, more than LEWM_CACHE_GB lets the cache hold")
    with _locked(path):
        if _is_whole(path, size):  # another process was faster
            return
        for leftover in path.parent.glob(f"{path.name}.*{TMP_SUFFIX}"):
            leftover.unlink(missing_ok=True)  # of a process that was killed: its lock is gone
        _make_room(size)
        tmp = temporary(path)
        try:
            with tmp.open("xb") as file:
                remote.download(_name(mirror, path), file, size, sha256)
                file.flush()
                os.fsync(file.fileno())
            publish(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)


_in_process = threading.Lock()
_locks: dict[Path, threading.Lock] = {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One thread of one process at a time; the lock of a process that is killed is free again."""
    with _in_process:
        lock = _locks.setdefault(path, threading.Lock())
    with lock, path.with_name(f".{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(size: int) -> None:
    """Remove the shards that were used longest ago until `size` more bytes are within the limit."""
    limit = cache_limit()
    found = []
    for path in (cache_directory() / "datasets").glob("*/shards/*"):
        if path.suffix in (".tar", ".arrow"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
    total = sum(each for _, each, _ in found)
    for _, each, path in sorted(found):
        if total + size <= limit:
            return
        path.unlink(missing_ok=True)
        total -= each
