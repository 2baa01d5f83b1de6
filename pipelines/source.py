"""Where windows come from: what a tier is to the rest of the loader.

A tier fills rows of its own slots with the windows it is told to take, and decides nothing else: which windows, in what
order, and what stands in for a damaged one is settled before it is asked. So all tiers give the same batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pipelines.batch import BatchShape
from pipelines.staging import Slot

if TYPE_CHECKING:
    from pipelines.decode import DamagedEpisodeError


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling some rows took: `bytes` read from shards, frames that were `cached` already decoded, and the
    `damaged` windows with the rows they were for."""

    bytes: int
    cached: int
    damaged: "tuple[tuple[int, DamagedEpisodeError], ...]" = ()


class WindowSource(Protocol):
    """A tier."""

    tier: str

    def slots(self, shape: BatchShape, device: torch.device, count: int) -> Sequence[Slot]:
        """Memory for `count` batches, delivered on `device`."""
        ...

    def fill(self, slot: Any, first: int, numbers: np.ndarray, starts: np.ndarray) -> Filled:
        """Fill rows `first`, `first` + 1, ... of one of its slots with the windows (`numbers`, `starts`), both (R,).
        Called by several threads at once, for other rows. What is in a damaged window's row is undefined."""
        ...

    def close(self) -> None:
        """Let go of files and memory."""
        ...
