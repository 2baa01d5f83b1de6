"""The episodes of one split of one or several datasets, as one numbered list.

Datasets that are joined keep the order in which they were given: their digests, in that order, make the joined digest,
and the episodes of the second are numbered on from the last of the first. They must agree in what a batch stacks.
Memory is 16 bytes an episode of the split, and 1 KB for each of the episodes in use, of which `_MAX_OPEN` are kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.dataset import Dataset
from shards.split import Split

_MAX_OPEN = 1 << 15


@dataclass(frozen=True, slots=True)
class EpisodeArrays:
    """Episode `number` of a table: where its frames are, `offset` (T+1,) and `size` (T+1,) in the tar `path`, and its
    action (T, A) and state (T+1, S), all read-only views of the index."""

    number: int
    path: Path
    offset: np.ndarray
    size: np.ndarray
    action: np.ndarray
    state: np.ndarray


class EpisodeTable:
    """`lengths` (E,) in steps and `numbers` (E,) of the split's episodes, int64; `digest` of the dataset or the join.

    A number counts through all episodes of all datasets: for a single dataset it is the dataset's own.
    ValueError when datasets disagree in frame size, action size or state columns, or share an episode.
    """

    def __init__(self, datasets: Dataset | Sequence[Dataset], split: Split | None) -> None:
        self.datasets = (datasets,) if isinstance(datasets, Dataset) else tuple(datasets)
        if not self.datasets:
            raise ValueError("no dataset to load from; give at least one")
        self.split = split
        self._check_agreement()
        chosen = [dataset.indices(split) for dataset in self.datasets]
        self._firsts = np.cumsum([0, *(len(dataset) for dataset in self.datasets)])
        self.numbers = np.concatenate([first + i for first, i in zip(self._firsts, chosen, strict=False)])
        self.lengths = np.concatenate([dataset.lengths[i] for dataset, i in zip(self.datasets, chosen, strict=True)])
        digests = [dataset.digest for dataset in self.datasets]
        self.digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        self._open: dict[int, EpisodeArrays] = {}
        self._paths: dict[Path, Path] = {}

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""
        return self.datasets[0].size

    @property
    def action_size(self) -> int:
        return self.datasets[0].action_size

    @property
    def state_size(self) -> int:
        """Number of state columns S."""
        return len(self.datasets[0].columns)

    def locate(self, number: int) -> tuple[Dataset, int]:
        """The dataset of an episode, and its number there."""
        at = 0 if len(self.datasets) == 1 else int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self.datasets[at], number - int(self._firsts[at])

    def datasets_of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`locate` for numbers (B,): which of `datasets` each is in (B,), and its number there (B,)."""
        at = np.searchsorted(self._firsts, numbers, side="right") - 1
        return at, numbers - self._firsts[at]

    def arrays(self, number: int) -> EpisodeArrays:
        """An episode's places and arrays; those of recent episodes are kept, because looking them up takes longer than
        reading a frame. Thread-safe."""
        if (arrays := self._open.get(number)) is None:
            dataset, i = self.locate(number)
            members = dataset.frame_members(i)
            # One path object a shard: comparing equal ones takes longer than identical ones.
            path = self._paths.setdefault(members.path, members.path)
            arrays = EpisodeArrays(number, path, members.offset, members.size, dataset.action(i), dataset.state(i))
            if len(self._open) >= _MAX_OPEN:
                self._open.clear()
            self._open[number] = arrays
        return arrays

    def shards(self) -> np.ndarray:
        """Which shard each of the split's episodes is in (E,), int64, numbered in the order of their first episodes, so
        that names and the order of files do not matter."""
        at, i = self.datasets_of(self.numbers)
        named = np.empty(len(at), np.int64)
        first = 0
        for n, dataset in enumerate(self.datasets):
            named[at == n] = first + dataset.shard_numbers[i[at == n]]
            first += len(dataset.manifest.shards)
        _, begins, shards = np.unique(named, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(begins))[shards]

    def _check_agreement(self) -> None:
        head, *rest = self.datasets
        for other in rest:
            for name in ("size", "action_size", "columns"):
                here, there = getattr(head, name), getattr(other, name)
                if here != there:
                    raise ValueError(f"{head.path} and {other.path} cannot be joined: {name} is {here} and {there}")
        if not rest:
            return
        seen: dict[str, Dataset] = {}
        for dataset in self.datasets:
            for key in dataset.keys[:]:
                if key in seen:
                    raise ValueError(
                        f"{seen[key].path} and {dataset.path} cannot be joined: both have episode {key}, whose windows "
                        f"would come twice an epoch"
                    )
                seen[key] = dataset
