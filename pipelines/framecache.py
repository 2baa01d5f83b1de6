"""A dataset's frames, decoded once and kept in a file that every process on the machine maps.

`<cache>/frames/<digest>.u8` is 4096 bytes of header, JSON padded with spaces, and then the pixels of all frames, uint8,
episode after episode in canonical order: a copy of memory takes the place of decoding. The digest names the content, so
that a file is never out of date. It is written under a temporary name and renamed when it is whole, by one process that
holds a lock while the others wait; a killed writer's leftovers are removed by the next. The cache directory is bounded:
files that were used longest ago make room.

64 px frames take 12 KB each instead of 2 to 3, 224 px frames 151 KB instead of 17.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipelines.decode import FrameReader
from pipelines.episodes import EpisodeTable
from shards.atomic import TMP_SUFFIX, publish, temporary
from shards.cache import cache_directory
from shards.dataset import Dataset

_log = logging.getLogger(__name__)

_HEADER = 4096
_RESERVE = 1 << 30
"""Bytes of a disk that the cache leaves free."""
_CHUNK = 64
"""Frames decoded at a time."""
_LOG_SECONDS = 5.0


class CacheError(ValueError):
    """The decoded frames cannot be kept: too little disk or too low a limit."""


def frames_path(dataset: Dataset) -> Path:
    """Where a dataset's decoded frames are or would be."""
    return cache_directory() / "frames" / f"{dataset.digest}.u8"


def decoded_bytes(dataset: Dataset) -> int:
    """Bytes of all frames of a dataset, decoded."""
    return (int(dataset.lengths.sum()) + len(dataset)) * dataset.size**2 * 3


def is_cached(dataset: Dataset) -> bool:
    """Whether a dataset's decoded frames are there."""
    path = frames_path(dataset)
    return path.exists() and _is_whole(path, dataset)


def map_frames(dataset: Dataset, *, threads: int, limit: int) -> np.ndarray:
    """All frames of a dataset (frames, h, w, 3) uint8, read-only, mapped; decoded first where that was not yet done.

    `limit` is the most bytes that the cache's frames may take. CacheError when they do not fit, DamagedEpisodeError
    when a frame cannot be decoded.
    """
    path = frames_path(dataset)
    if not is_cached(dataset):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                if not is_cached(dataset):
                    _build(path, dataset, threads, limit)
        except OSError as error:
            raise CacheError(
                f"the decoded frames of {dataset.path} cannot be written to {path}: {error}: "
                f"set LEWM_CACHE to another directory, or stream"
            ) from error
    # The time of the last use. A directory of somebody else's may be read-only.
    with contextlib.suppress(PermissionError):
        os.utime(path)
    shape = (int(dataset.lengths.sum()) + len(dataset), dataset.size, dataset.size, 3)
    return np.memmap(path, np.uint8, "r", _HEADER, shape).view(np.ndarray)


def decode_all(
    table: EpisodeTable, sink: Callable[[int, np.ndarray], None], *, threads: int, name: str = "decoding frames"
) -> None:
    """Decode every frame of a table's episodes: `sink(first, images)` gets them, `first` counted through the episodes,
    in no order, from several threads, in memory that is used again. DamagedEpisodeError as soon as there is one."""
    firsts = np.cumsum(table.lengths + 1) - (table.lengths + 1)
    order = iter(np.argsort(table.shards(), kind="stable").tolist())
    lock, stop = threading.Lock(), threading.Event()
    errors: list[BaseException] = []
    done, total = 0, int(table.lengths.sum()) + len(table.lengths)
    reader = FrameReader(table)

    def work() -> None:
        nonlocal done
        images = np.empty((_CHUNK, table.size, table.size, 3), np.uint8)
        try:
            while not stop.is_set():
                with lock:
                    at = next(order, None)
                if at is None:
                    return
                frames, episode = int(table.lengths[at]) + 1, table.arrays(int(table.numbers[at]))
                for begin in range(0, frames, _CHUNK):
                    count = min(_CHUNK, frames - begin)
                    reader.decode(reader.fetch(episode, slice(begin, begin + count)), images)
                    sink(int(firsts[at]) + begin, images[:count])
                    with lock:
                        done += count
        except BaseException as error:
            errors.append(error)
            stop.set()

    workers = [threading.Thread(target=work, name=f"decode-all-{n}", daemon=True) for n in range(threads)]
    began = logged = time.monotonic()
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(_LOG_SECONDS / 10)
                if (now := time.monotonic()) - logged >= _LOG_SECONDS and done:
                    logged, left = now, (now - began) / done * (total - done)
                    _log.info("%s: %d of %d, %.0f frames/s, ETA %.0f s", name, done, total, done / (now - began), left)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        reader.close()
    if errors:
        raise errors[0]
    _log.info("%s: %d in %.1f s", name, total, time.monotonic() - began)


def _build(path: Path, dataset: Dataset, threads: int, limit: int) -> None:
    need = _HEADER + decoded_bytes(dataset)
    for leftover in path.parent.glob(f"{path.name}.*{TMP_SUFFIX}"):
        leftover.unlink()
    _make_room(path.parent, dataset, need, limit)
    row = dataset.size**2 * 3
    tmp = temporary(path)
    descriptor = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _write(descriptor, memoryview(_header(dataset)), 0)
        decode_all(
            EpisodeTable(dataset, None),
            lambda first, images: _write(descriptor, images.data.cast("B"), _HEADER + first * row),
            threads=threads,
            name=f"decoding the frames of {dataset.path} into {path}",
        )
        os.fsync(descriptor)
        publish(tmp, path)
    finally:
        os.close(descriptor)
        tmp.unlink(missing_ok=True)


def _make_room(directory: Path, dataset: Dataset, need: int, limit: int) -> None:
    """Remove the files used longest ago until `need` bytes fit; CacheError when they cannot."""
    what = f"the decoded frames of {dataset.path} take {need / 1e9:.1f} GB"
    if need > limit:
        raise CacheError(f"{what}, over the limit of {limit / 1e9:.1f} GB for the cache: raise cache_gb or stream")
    kept = sorted(((path.stat(), path) for path in directory.glob("*.u8")), key=lambda each: each[0].st_mtime)
    held = sum(stat.st_size for stat, _ in kept)
    for stat, path in kept:
        if held + need <= limit and shutil.disk_usage(directory).free >= need + _RESERVE:
            break
        _log.info("removing %s, last used %s, to make room", path, time.ctime(stat.st_mtime))
        path.unlink(missing_ok=True)
        held -= stat.st_size
    free = shutil.disk_usage(directory).free
    if free < need + _RESERVE:
        raise CacheError(
            f"{what}, but {directory} has {free / 1e9:.1f} GB free, of which {_RESERVE / 1e9:.1f} stay so: "
            f"set LEWM_CACHE to a larger disk, or stream"
        )


def _header(dataset: Dataset) -> bytes:
    frames = int(dataset.lengths.sum()) + len(dataset)
    record = {"format": "lewm decoded frames 1", "digest": dataset.digest, "frames": frames, "size": dataset.size}
    return json.dumps(record).encode().ljust(_HEADER)


def _is_whole(path: Path, dataset: Dataset) -> bool:
    with path.open("rb") as file:
        header = file.read(_HEADER)
        return header == _header(dataset) and os.fstat(file.fileno()).st_size == _HEADER + decoded_bytes(dataset)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is writing %s: waiting for it", path.with_suffix(".u8"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
