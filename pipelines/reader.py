"""Bytes of tar members: one `pread` for members that lie close together, none for the rest of the shard.

What will be read soon can be said before (`expect`): a disk then works at many reads at once, where a thread would wait
for one after the other. Where the shards are in the page cache that changes nothing.

A frame of 64 px takes 2 to 3 KB, and a `pread` from the page cache costs more in system call than in copying that much,
so gaps of up to 16 KB are read along and dropped. Descriptors are kept open, at most `max_open` of them, the first
opened closed first: to note every use would take longer than the read. Threads share a reader: `pread` has no file
position, and a descriptor that was evicted closes when the last thread that still reads from it lets go. A shard of a
bucket is fetched when it is opened, or read in the same ranges if it is too large to keep (`shards.mirror`).
"""

import threading
from collections.abc import Iterator
from pathlib import Path

from shards.mirror import LocalFile, RemoteFile, open_file

MAX_GAP = 16 << 10


class ShardReader:
    """Reads members of shards. Thread-safe; holds `max_open` descriptors at most, and one a reading thread."""

    def __init__(self, max_open: int = 128) -> None:
        self._max_open = max_open
        self._files: dict[Path, LocalFile | RemoteFile] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, offsets: list[int], sizes: list[int]) -> list[memoryview]:
        """The bytes of members at `offsets` of `sizes`, in their order.

        A view shorter than its size says that the file ends there. OSError when the file cannot be opened or read.
        """
        file = self._file(path)
        views: list[memoryview] = []
        for begin, end, first, after in _ranges(offsets, sizes):
            data = file.read(begin, end - begin)
            views += [data[offsets[n] - begin : offsets[n] - begin + sizes[n]] for n in range(first, after)]
        return views

    def expect(self, path: Path, offsets: list[int], sizes: list[int]) -> None:
        """Have the disk fetch what a `read` of the same members will ask for, and do not wait. OSError when the file
        cannot be opened."""
        file = self._file(path)
        for begin, end, _, _ in _ranges(offsets, sizes):
            file.expect(begin, end - begin)

    def close(self) -> None:
        """Let go of every descriptor; a later `read` opens them again."""
        with self._lock:
            self._files.clear()

    def _file(self, path: Path) -> LocalFile | RemoteFile:
        if (file := self._files.get(path)) is not None:
            return file
        opened = open_file(path)  # it may take a download, for which other threads need not wait
        with self._lock:
            for other in [other for other, file in self._files.items() if file.removed]:
                del self._files[other]  # removed from the cache for the new one's sake, and only now from the disk
            if path not in self._files and len(self._files) >= self._max_open:
                del self._files[next(iter(self._files))]
            return self._files.setdefault(path, opened)


def _ranges(offsets: list[int], sizes: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """(begin, end, first, after): the bytes that are read together, and which members they hold."""
    span = offsets[-1] + sizes[-1] - offsets[0]
    if 0 <= span - sum(sizes) <= MAX_GAP and offsets == sorted(offsets):  # a window's frames, nearly always
        yield offsets[0], offsets[0] + span, 0, len(offsets)
        return
    i = 0
    while i < len(offsets):
        begin, end = offsets[i], offsets[i] + sizes[i]
        after = i + 1
        while after < len(offsets) and 0 <= offsets[after] - end <= MAX_GAP:
            end = offsets[after] + sizes[after]
            after += 1
        yield begin, end, i, after
        i = after
