"""A dataset's frames, decoded once and kept in a file that every process on the machine maps.

`<cache>/frames/<digest>.u8` is 4096 bytes of header, JSON padded with spaces, and then the pixels of all frames, uint8,
episode after episode in canonical order: a copy of memory takes the place of decoding. The digest names the content, so
that a file is never out of date, and it is checked while the file is written: every episode's bytes against the index,
and all of them against the digest. One process writes, under a temporary name, while the others wait; the file makes
room for itself, as the shards of buckets do (`shards.cache`).

64 px frames take 12 KB each instead of 2 to 3, 224 px frames 151 KB instead of 17.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipelines.decode import UNREADABLE, DamagedEpisodeError, decode_into
from pipelines.episodes import EpisodeTable
from shards.atomic import publish, temporary
from shards.cache import CacheError, cache_directory, locked, reserve, touch
from shards.codec import frame_suffix
from shards.dataset import Dataset

_log = logging.getLogger(__name__)

_HEADER = 4096
_ATTEMPTS = 3
"""How often a file is written that others remove before it can be mapped."""
_CHUNK = 64
"""Frames decoded at a time."""
_LOG_SECONDS = 5.0


def frames_path(dataset: Dataset) -> Path:
    """Where a dataset's decoded frames are or would be."""
    return cache_directory() / "frames" / f"{dataset.digest}.u8"


def decoded_bytes(dataset: Dataset) -> int:
    """Bytes of all frames of a dataset, decoded."""
    return (int(dataset.lengths.sum()) + len(dataset)) * dataset.size**2 * 3


def is_cached(dataset: Dataset) -> bool:
    """Whether a dataset's decoded frames are there."""
    return _is_whole(frames_path(dataset), dataset)


def map_frames(dataset: Dataset, *, threads: int) -> np.ndarray:
    """All frames of a dataset (frames, h, w, 3) uint8, read-only, mapped; decoded first where that was not yet done.

    CacheError when they do not fit, DamagedEpisodeError when a frame cannot be decoded or is not what it was.
    """
    path = frames_path(dataset)
    shape = (int(dataset.lengths.sum()) + len(dataset), dataset.size, dataset.size, 3)
    for _ in range(_ATTEMPTS):
        if not is_cached(dataset):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with locked(path):
                    if not is_cached(dataset):
                        _build(path, dataset, threads)
            except OSError as error:
                raise CacheError(
                    f"the decoded frames of {dataset.location} cannot be written to {path}: {error}: "
                    f"set LEWM_CACHE to another directory, or stream"
                ) from error
        with contextlib.suppress(FileNotFoundError):  # removed, to make room, since
            frames = np.memmap(path, np.uint8, "r", _HEADER, shape).view(np.ndarray)
            touch(path)
            return frames
    raise CacheError(f"{path} was removed as often as it was written: raise LEWM_CACHE_GB, or stream")


def decode_all(
    table: EpisodeTable, sink: Callable[[int, np.ndarray], None], *, threads: int, name: str = "decoding frames"
) -> None:
    """Decode every frame of a table's episodes: `sink(first, images)` gets them, `first` counted through the episodes,
    in no order, from several threads, in memory that is used again. DamagedEpisodeError as soon as there is an episode
    whose bytes do not have their sha256, or a frame that cannot be decoded."""
    firsts = np.cumsum(table.lengths + 1) - (table.lengths + 1)
    order = iter(np.argsort(table.shards(), kind="stable").tolist())
    lock, stop = threading.Lock(), threading.Event()
    errors: list[BaseException] = []
    done, total = 0, int(table.lengths.sum()) + len(table.lengths)

    def work() -> None:
        nonlocal done
        images = np.empty((_CHUNK, table.size, table.size, 3), np.uint8)
        try:
            while not stop.is_set():
                with lock:
                    at = next(order, None)
                if at is None:
                    return
                for begin, count in _decode_episode(*table.locate(int(table.numbers[at])), images):
                    sink(int(firsts[at]) + begin, images[:count])
                    with lock:
                        done += count
                    if stop.is_set():
                        return
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
    if errors:
        raise errors[0]
    _log.info("%s: %d in %.1f s", name, total, time.monotonic() - began)


def _decode_episode(dataset: Dataset, i: int, images: np.ndarray) -> Iterator[tuple[int, int]]:
    """Decode the frames of an episode into `images`, as many as there is room for at a time: (first, count) of each
    time. DamagedEpisodeError, at the end at the latest, when its bytes are not what they were."""
    key, frames = dataset.keys[i], int(dataset.lengths[i]) + 1
    member = frame_suffix(0, dataset.manifest.common.encoding)
    try:
        members = dataset.members(i)
        views = dict(members)
        for begin in range(0, frames, len(images)):
            count = min(len(images), frames - begin)
            for step in range(begin, begin + count):
                member = frame_suffix(step, dataset.manifest.common.encoding)
                decode_into(views[member], images[step - begin])
            yield begin, count
        member = "*"
        dataset.check_members(i, members)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in UNREADABLE:
            raise
        raise DamagedEpisodeError(dataset.frame_members(i).path, key, f"{key}.{member}", str(error)) from error


def _build(path: Path, dataset: Dataset, threads: int) -> None:
    row = dataset.size**2 * 3
    tmp = temporary(path)
    try:
        file = reserve(tmp, _HEADER + decoded_bytes(dataset))
    except CacheError as error:
        raise CacheError(f"the decoded frames of {dataset.location} do not fit: {error}, or stream") from error
    try:
        with file:
            _write(file.fileno(), memoryview(_header(dataset)), 0)
            decode_all(
                EpisodeTable(dataset, None),
                lambda first, images: _write(file.fileno(), images.data.cast("B"), _HEADER + first * row),
                threads=threads,
                name=f"decoding the frames of {dataset.location} into {path}",
            )
            dataset.check_digest()
            os.fsync(file.fileno())
            publish(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def _header(dataset: Dataset) -> bytes:
    frames = int(dataset.lengths.sum()) + len(dataset)
    record = {"format": "lewm decoded frames 1", "digest": dataset.digest, "frames": frames, "size": dataset.size}
    return json.dumps(record).encode().ljust(_HEADER)


def _is_whole(path: Path, dataset: Dataset) -> bool:
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
            return header == _header(dataset) and os.fstat(file.fileno()).st_size == _HEADER + decoded_bytes(dataset)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
