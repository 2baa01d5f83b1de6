"""A bucket's dataset on this machine: a cache of whole files that is laid out like the dataset itself.

`<cache>/datasets/<id>/` holds `origin.json` (the URI), manifest.json, episodes.arrow and, of the shards, what was asked
for. The id hashes the URI and the manifest, so that a dataset that changed has a mirror of its own, which takes over
the files that are the same. So whatever reads a local dataset reads this one: only opening a file goes through
`open_file` or `present`, which fetch what is not there.

A file is downloaded under a temporary name, checked against the size and sha256 of the manifest, fsynced and renamed:
killed at any moment, no process ever sees a part of it. A file that was there before is hashed once by each process
that uses it (about 1.5 GB/s), and fetched again if it was damaged. Processes share a mirror; one downloads a file, and
the others wait for its lock. Shards make room for each other (`shards.cache`). A tar too large for the cache is not
kept: `open_file` then reads ranges of the object, and only those.
"""

import contextlib
import errno
import hashlib
import json
import os
import threading
from functools import lru_cache
from pathlib import Path

from shards.atomic import file_sha256, publish, temporary, write_atomically
from shards.cache import cache_directory, cache_limit, locked, reserve, touch
from shards.manifest import EPISODES, MANIFEST, Manifest, load, parse
from shards.remote import Remote

ORIGIN = "origin.json"
_LARGE = 1 << 20
_ATTEMPTS = 5
"""How often a file is fetched that others remove before it can be opened."""


def open_mirror(uri: str) -> Path:
    """The mirror of the dataset at a URI, as it is now, with its manifest and `episodes.arrow`.

    ValueError when there is no dataset or its manifest is damaged; OSError when the bucket does not answer.
    """
    remote = Remote(uri)
    try:
        text = remote.read(MANIFEST)
    except FileNotFoundError:
        raise ValueError(f"{uri} is not a dataset: there is no {MANIFEST}; `lewm shards push` writes one") from None
    parse(text, f"{remote.uri}/{MANIFEST}")
    identity = hashlib.sha256(remote.uri.encode() + b"\n" + text).hexdigest()[:16]
    mirror = cache_directory() / "datasets" / identity
    (mirror / "shards").mkdir(parents=True, exist_ok=True)
    if not _holds(mirror / MANIFEST, text):
        write_atomically(mirror / MANIFEST, text)
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
        touch(path)
    return path


def origin_of(path: Path) -> str:
    """The name that a file has for people: its URI for a mirror's, its path for any other."""
    origin = _origin(path)
    return str(path) if origin is None else f"{origin[0].uri}/{_name(origin[1], path)}"


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

    def expect(self, offset: int, size: int) -> None:
        """Have the disk fetch `size` bytes from `offset` into the page cache, and do not wait."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)


class RemoteFile:
    """An object that is read in ranges and not kept."""

    removed = False

    def __init__(self, remote: Remote, name: str) -> None:
        self._remote, self._name = remote, name

    def read(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset`; fewer where the object ends."""
        return memoryview(self._remote.read(self._name, offset, size))

    def expect(self, offset: int, size: int) -> None:
        """Nothing: what is read ahead would have nowhere to stay."""


def open_file(path: Path) -> LocalFile | RemoteFile:
    """A dataset's file for reading ranges; of a mirror's, the file once it is fetched, or the object if it is too large
    for the cache."""
    origin = _origin(path)
    if origin is None:
        return LocalFile(path)
    if path.suffix == ".tar" and _expected(*origin, path)[0] > cache_limit():
        return RemoteFile(origin[0], _name(origin[1], path))
    for _ in range(_ATTEMPTS):
        present(path)
        with contextlib.suppress(FileNotFoundError):  # removed, to make room, between the two
            return LocalFile(path)
    raise OSError(
        errno.ENOSPC, f"{origin_of(path)} was removed from the cache as often as it was fetched: raise LEWM_CACHE_GB"
    )


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
    with locked(path, "fetching"):
        if _is_whole(path, size, sha256) or _take_over(path, size, sha256):  # another process was faster
            return
        path.unlink(missing_ok=True)  # damaged
        tmp = temporary(path)
        try:
            with reserve(tmp, size, needed=True) as file:
                remote.download(_name(mirror, path), file, size, sha256)
                file.flush()
                os.fsync(file.fileno())
                publish(tmp, path)
                _hashed.add((path, os.fstat(file.fileno()).st_ino))
        finally:
            tmp.unlink(missing_ok=True)


def _take_over(path: Path, size: int, sha256: str) -> bool:
    """Give a file that another mirror has a further name here. Whether there was one."""
    for twin in (cache_directory() / "datasets").glob(f"*/{path.relative_to(path.parents[1])}"):
        if twin.parents[1] != path.parents[1] and _is_whole(twin, size, sha256):
            tmp = temporary(path)
            try:
                os.link(twin, tmp)
                publish(tmp, path)
            except FileNotFoundError:  # removed, to make room, meanwhile
                continue
            finally:
                tmp.unlink(missing_ok=True)
            return _is_whole(path, size, sha256)
    return False


_guard = threading.Lock()
_thread_locks: dict[Path, threading.Lock] = {}


def _thread_lock(path: Path) -> threading.Lock:
    """The lock of a file in this process."""
    with _guard:
        return _thread_locks.setdefault(path, threading.Lock())
