"""The episodes of one split of one or several datasets, as one numbered list.

Datasets that are joined keep the order in which they were given: their digests, in that order, make the joined digest,
and the episodes of the second are numbered on from the last of the first. They must agree in what a batch stacks.
Memory is 16 bytes an episode of the split.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from shards.dataset import Dataset
from shards.split import Split


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
