"""With locality, the shards of a bucket that are needed next are fetched while the windows before them are read.

Without it, the first batch of every group of shards would wait for all of them. One daemon thread a group; what it
cannot fetch is left to the reader, which says so, or reads ranges.
"""

import contextlib
import threading
from pathlib import Path

from pipelines.episodes import EpisodeTable
from pipelines.order import WindowOrder
from shards.mirror import present
from shards.remote import is_remote
from shards.writer import shard_paths


class Lookahead:
    """Fetches ahead of a loader that tells it where it is. Does nothing for datasets on disk."""

    def __init__(self, table: EpisodeTable, order: WindowOrder) -> None:
        self._order, self._paths = order, _paths(table)
        self._reached: tuple[int, int] | None = None
        self._stop = threading.Event()

    def reach(self, epoch: int, position: int) -> None:
        """The loader delivers the windows from `position` of an epoch on."""
        if not self._paths:
            return
        group, groups = self._order.group(epoch, position)
        if (epoch, group) == self._reached:
            return
        self._reached = (epoch, group)
        following = (epoch, group + 1) if group + 1 < groups else (epoch + 1, 0)
        paths = [path for shard in self._order.shards_of(*following).tolist() for path in self._paths[shard]]
        self._stop.set()  # what was fetched for another place
        self._stop = threading.Event()
        threading.Thread(target=_fetch, args=(paths, self._stop), name="lookahead", daemon=True).start()

    def close(self) -> None:
        """Fetch nothing after the file that is on its way."""
        self._stop.set()
        self._reached = None


def _fetch(paths: list[Path], stop: threading.Event) -> None:
    for path in paths:
        if stop.is_set():
            return
        with contextlib.suppress(OSError, ValueError):
            present(path)


def _paths(table: EpisodeTable) -> dict[int, tuple[Path, Path]]:
    """Tar and index of every shard of a table, by its number there; none where no dataset is a bucket's."""
    if not any(is_remote(dataset.location) for dataset in table.datasets):
        return {}
    paths: dict[int, tuple[Path, Path]] = {}
    for shard, number in zip(table.shards().tolist(), table.numbers.tolist(), strict=True):
        if shard not in paths:
            dataset, i = table.locate(number)
            name = dataset.manifest.shards[int(dataset.shard_numbers[i])].name
            paths[shard] = shard_paths(dataset.path, name)
    return paths
