"""The tier of decoded frames that are mapped from the cache: a window is a copy of memory.

numpy's `take` copies the windows of many rows a call. Frames that were not used since they were written are read from
disk by the page fault that first touches them; all processes of a machine share the pages.
"""

import numpy as np
import torch

from pipelines.batch import BatchShape
from pipelines.columns import FlatColumns, first_frames
from pipelines.episodes import EpisodeTable
from pipelines.framecache import map_frames
from pipelines.source import Filled
from pipelines.staging import HostSlot, make_slots
from pipelines.windows import WindowSpec


class MappedWindows:
    """Windows copied from the files of `pipelines.framecache`, which are written first where they are not there yet.
    Errors as `map_frames`."""

    tier = "memmap"

    def __init__(self, table: EpisodeTable, spec: WindowSpec, *, with_state: bool, threads: int) -> None:
        self._table, self._spec = table, spec
        self._frames = [map_frames(dataset, threads=threads) for dataset in table.datasets]
        # A file holds all episodes of its dataset, those of other splits too.
        self._first = [first_frames(dataset.lengths) for dataset in table.datasets]
        self._columns = FlatColumns(table, with_state)
        self._steps, self._states, self._offsets = np.arange(spec.steps), spec.state_offsets, spec.unique_offsets

    def slots(self, shape: BatchShape, device: torch.device, count: int) -> list[HostSlot]:
        """Memory for `count` batches."""
        return make_slots(shape, device, count)

    def fill(self, slot: HostSlot, first: int, numbers: np.ndarray, starts: np.ndarray) -> Filled:
        """See `WindowSource`."""
        rows, columns = slice(first, first + len(numbers)), self._columns
        steps = (columns.first_step[numbers] + starts)[:, None] + self._steps
        slot.action[rows] = columns.action[steps].reshape(len(numbers), *slot.action.shape[1:])
        if slot.state is not None and columns.state is not None:
            slot.state[rows] = columns.state[(columns.first_frame[numbers] + starts)[:, None] + self._states]
        at, i = self._table.datasets_of(numbers)
        for n, (frames, begins) in enumerate(zip(self._frames, self._first, strict=True)):
            here = np.flatnonzero(at == n)
            index = (begins[i[here]] + starts[here])[:, None] + self._offsets
            if len(here) == len(numbers):
                # `clip`, because `take` fills a copy of `out` where it has to look for bad indices
                np.take(frames, index, axis=0, out=slot.frames[rows], mode="clip")
            elif len(here):
                slot.frames[first + here] = frames[index]
        return Filled(0, len(numbers) * len(self._offsets))

    def close(self) -> None:
        """Let go of the files."""
        self._frames = []
