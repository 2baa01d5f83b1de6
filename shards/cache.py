"""What can be made again, kept within one limit: shards fetched from buckets, and decoded frames.

    <cache>/datasets/<id>/shards/<name>.tar, .arrow    see `shards.mirror`
    <cache>/frames/<digest>.u8                         see `pipelines.framecache`

All of it together takes at most $LEWM_CACHE_GB (100), and leaves a gigabyte of the disk free: what was used longest ago
makes room. A file is written under a temporary name, for which its whole size is reserved first, and renamed when it is
whole; whoever writes one holds a lock on it, which tells it from what a killed process left. A file that is removed
while it is open or mapped lives on for those who use it.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shards.atomic import TMP_SUFFIX

_log = logging.getLogger(__name__)

DEFAULT_GB = 100.0
_RESERVE = 1 << 30
"""Bytes of a disk that the cache leaves free."""
_WAIT = 0.05
"""Seconds between looks at whether another download has ended."""


class CacheError(ValueError):
    """What should be kept has no room, or cannot be written."""


def cache_directory() -> Path:
    """$LEWM_CACHE, else `lewm` in the user's cache directory."""
    if chosen := os.environ.get("LEWM_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "lewm"


def cache_limit() -> int:
    """Most bytes that the cache may take: $LEWM_CACHE_GB, else 100 GB."""
    text = os.environ.get("LEWM_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise ValueError(f"LEWM_CACHE_GB is {text!r}: give a number of gigabytes, or 0 to keep nothing")
    return int(limit * 1e9)


@contextlib.contextmanager
def locked(path: Path, doing: str = "writing") -> Iterator[None]:
    """Hold the lock of a file, which need not exist; it ends with the process, however that ends."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is %s %s: waiting for it", doing, path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def reserve(tmp: Path, size: int, *, needed: bool = False) -> IO[bytes]:
    """A new, locked file of `size` bytes (a hole as yet), open for writing, once there is room for it.

    Downloads under way are waited for. CacheError when there is no room without them either; a file that is `needed`
    comes into being whatever the limit, but not beyond the disk.
    """
    while True:
        with locked(cache_directory() / "cache"):
            room = make_room(size)
            if room.enough or (needed and not room.downloads and room.on_disk >= size):
                file = tmp.open("x+b")
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(size)
                return file
        if not room.downloads:
            raise CacheError(_no_room(size, room))
        time.sleep(_WAIT)


@dataclass(frozen=True, slots=True)
class Room:
    """What `make_room` came to: whether there is enough, the bytes that could be taken on the disk and under the limit,
    and whether downloads under way hold some of them."""

    enough: bool
    on_disk: int
    under_limit: int
    downloads: bool


@dataclass(slots=True)
class _Kept:
    """One file of the cache, which may have several names."""

    size: int
    used: float = 0.0
    paths: list[Path] = field(default_factory=list)


def make_room(size: int) -> Room:
    """Remove what killed processes left, and the files used longest ago until `size` more bytes fit. A file too large
    for the limit removes nothing. Call it under the lock of `cache`."""
    directory, limit = cache_directory(), cache_limit()
    under_way = holes = 0
    downloads = False
    for tmp in [*directory.glob(f"datasets/*/**/*{TMP_SUFFIX}"), *directory.glob(f"frames/*{TMP_SUFFIX}")]:
        with contextlib.suppress(FileNotFoundError), tmp.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                tmp.unlink()
            except BlockingIOError:
                status = os.fstat(file.fileno())
                under_way += status.st_size
                holes += max(0, status.st_size - 512 * status.st_blocks)
                downloads |= tmp.parent != directory / "frames"
    kept: dict[int, _Kept] = {}
    for pattern in ("datasets/*/shards/*.tar", "datasets/*/shards/*.arrow", "frames/*.u8"):
        for path in directory.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entry = kept.setdefault(status.st_ino, _Kept(status.st_size))
                entry.used = max(entry.used, status.st_mtime)
                entry.paths.append(path)
    total = under_way + sum(each.size for each in kept.values())

    def room() -> Room:
        on_disk = max(0, shutil.disk_usage(directory).free - holes - _RESERVE)
        under_limit = max(0, limit - total)
        return Room(size <= min(on_disk, under_limit), on_disk, under_limit, downloads)

    for each in sorted(kept.values(), key=lambda each: each.used):
        if size > limit or room().enough:
            break
        for path in each.paths:
            _log.info("removing %s, last used %s, to make room", path, time.ctime(each.used))
            path.unlink(missing_ok=True)
        total -= each.size
    return room()


def touch(path: Path) -> None:
    """Note that a file was used now. The cache may be somebody else's, who forbids it."""
    with contextlib.suppress(PermissionError):
        try:
            os.utime(path)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise


def _no_room(size: int, room: Room) -> str:
    directory = cache_directory()
    if size > room.under_limit:
        held = f"{directory} keeps at most {cache_limit() / 1e9:.1f} GB: raise LEWM_CACHE_GB"
    else:
        held = f"{directory} has {room.on_disk / 1e9:.1f} GB to give: set LEWM_CACHE to a larger disk"
    return f"{size / 1e9:.1f} GB have no room in the cache; {held}"
