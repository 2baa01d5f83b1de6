"""Windows into rows: what a decode thread does, a pure function of the position in the epoch.

Which windows a chunk of rows takes is computed for all its rows at once. A damaged window is an error, or, when asked
for, is replaced by another that depends only on (order, epoch, position): the same position of an independent
permutation, and of a further one if that is damaged too. So ranks and resumed runs agree on it without a word.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.decode import DamagedEpisodeError, FrameSource
from pipelines.episodes import EpisodeTable
from pipelines.order import WindowOrder
from pipelines.staging import Slot

_MAX_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling some rows took: `bytes` of members read, and the damage that was replaced."""

    bytes: int
    damaged: tuple[DamagedEpisodeError, ...]


class Filler:
    """Fills rows of one rank's slots. `batch_size` is the global one; the rank's share of it begins at item `first`.
    Thread-safe."""

    def __init__(
        self, table: EpisodeTable, order: WindowOrder, source: FrameSource, *, batch_size: int, first: int, skip: bool
    ) -> None:
        self._table, self._order, self._source = table, order, source
        self._batch_size, self._first, self._skip = batch_size, first, skip
        self._steps_per_epoch = order.total // batch_size
        self._frames, self._states = order.spec.unique_offsets, order.spec.state_offsets

    def fill(self, number: int, slot: Slot, begin: int, end: int) -> Filled:
        """Fill rows begin..end-1 of batch `number`, counted through all epochs."""
        epoch, step = divmod(number, self._steps_per_epoch)
        positions = step * self._batch_size + self._first + np.arange(begin, end)
        episode, start = self._order.window(epoch, positions)
        frames = (start[:, None] + self._frames).reshape(-1, len(self._frames))
        numbers = self._table.numbers[episode]
        slot.episode[begin:end], slot.start[begin:end] = numbers, start
        read, damaged = 0, []
        for row in range(begin, end):
            i = row - begin
            try:
                read += self._fill_row(slot, row, int(numbers[i]), int(start[i]), frames[i])
            except DamagedEpisodeError as error:
                if not self._skip:
                    raise
                damaged.append(error)
                read += self._replace(slot, row, epoch, positions[i : i + 1], damaged)
        return Filled(read, tuple(damaged))

    def _replace(
        self, slot: Slot, row: int, epoch: int, position: np.ndarray, damaged: list[DamagedEpisodeError]
    ) -> int:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            episode, start = self._order.window(epoch, position, attempt)
            number, t0 = int(self._table.numbers[episode[0]]), int(start[0])
            slot.episode[row], slot.start[row] = number, t0
            try:
                return self._fill_row(slot, row, number, t0, t0 + self._frames)
            except DamagedEpisodeError as error:
                damaged.append(error)
        raise damaged[-1]

    def _fill_row(self, slot: Slot, row: int, number: int, start: int, frames: np.ndarray) -> int:
        read = self._source.fill(number, frames, slot.frames[row])
        dataset, i = self._table.locate(number)
        steps = self._order.spec.steps
        slot.action[row] = dataset.action(i)[start : start + steps].reshape(slot.action.shape[1:])
        if slot.state is not None:
            slot.state[row] = dataset.state(i)[start + self._states]
        return read
