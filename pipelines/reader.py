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
from pathlib import Path

from shards.mirror import LocalFile, RemoteFile, open_file

MAX_GAP = 16 << 10


class Members:
    """Members of the shard `path` at `offsets` of `sizes`, and the `ranges` in which they are read: where each begins,
    its size, the first of the members in it and the one after its last."""

    __slots__ = ("offsets", "path", "ranges", "sizes")

    def __init__(self, path: Path, offsets: list[int], sizes: list[int]) -> None:
        self.path, self.offsets, self.sizes = path, offsets, sizes
        span = offsets[-1] + sizes[-1] - offsets[0]
        if 0 <= span - sum(sizes) <= MAX_GAP and offsets == sorted(offsets):  # a window's frames, nearly always
            self.ranges = [(offsets[0], span, 0, len(offsets))]
            return
        self.ranges, first = [], 0
        while first < len(offsets):
            begin, end, after = offsets[first], offsets[first] + sizes[first], first + 1
            while after < len(offsets) and 0 <= offsets[after] - end <= MAX_GAP:
                end = offsets[after] + sizes[after]
                after += 1
            self.ranges.append((begin, end - begin, first, after))
            first = after


class ShardReader:
    """Reads members of shards. Thread-safe; holds `max_open` descriptors at most, and one a reading thread."""

    def __init__(self, max_open: int = 128) -> None:
        self._max_open = max_open
        self._files: dict[Path, LocalFile | RemoteFile] = {}
        self._lock = threading.Lock()

    def expect(self, members: Members) -> None:
        """Have the disk fetch what `read` will ask for, and do not wait. OSError when the file cannot be opened."""
        file = self._file(members.path)
        for begin, size, _, _ in members.ranges:
            file.expect(begin, size)

    def read(self, members: Members) -> list[memoryview]:
        """The bytes of members, in their order.

        A view shorter than its size says that the file ends there. OSError when the file cannot be opened or read.
        """
        file, offsets, sizes = self._file(members.path), members.offsets, members.sizes
        views: list[memoryview] = []
        for begin, size, first, after in members.ranges:
            data = file.read(begin, size)
            views += [data[offsets[n] - begin : offsets[n] - begin + sizes[n]] for n in range(first, after)]
        return views

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
