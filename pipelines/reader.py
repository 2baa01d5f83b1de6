"""Bytes of tar members: one `pread` for members that lie close together, none for the rest of the shard.

A frame of 64 px takes 2 to 3 KB, and a `pread` from the page cache costs more in system call than in copying that much,
so gaps of up to 16 KB are read along and dropped. Descriptors are kept open, at most `max_open` of them, the least
recently used closed first. Threads share a reader: `pread` has no file position, and a descriptor that was evicted
closes when the last thread that still reads from it lets go.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

MAX_GAP = 16 << 10


class ShardReader:
    """Reads members of local shards. Thread-safe; holds `max_open` descriptors at most, and one a reading thread."""

    def __init__(self, max_open: int = 128) -> None:
        self._max_open = max_open
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, offsets: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
        """The bytes of members at `offsets` of `sizes`, in their order.

        A view shorter than its size says that the file ends there. OSError when the file cannot be opened or read.
        """
        file = self._file(path)
        views: list[memoryview] = []
        i = 0
        while i < len(offsets):
            begin, end = offsets[i], offsets[i] + sizes[i]
            after = i + 1
            while after < len(offsets) and 0 <= offsets[after] - end <= MAX_GAP:
                end = offsets[after] + sizes[after]
                after += 1
            data = file.read(begin, end - begin)
            views += [data[offsets[n] - begin : offsets[n] - begin + sizes[n]] for n in range(i, after)]
            i = after
        return views

    def close(self) -> None:
        """Let go of every descriptor; a later `read` opens them again."""
        with self._lock:
            self._files.clear()

    def _file(self, path: Path) -> "_File":
        with self._lock:
            if (file := self._files.get(path)) is not None:
                self._files.move_to_end(path)
                return file
            file = self._files[path] = _File(path)
            if len(self._files) > self._max_open:
                self._files.popitem(last=False)
            return file


class _File:
    """An open descriptor, closed with the last reference to it."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> memoryview:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return memoryview(data)
