"""Windows into rows: what a loader's thread does, a pure function of the position in the epoch.

Which windows a batch takes is computed for all its rows at once, by the first thread that fills some of them. A damaged
window is an error, or, when asked for, is replaced by another that depends only on (order, epoch, position): the same
position of an independent permutation, and of a further one if that is damaged too. So ranks and resumed runs agree on
it without a word.
"""

import threading

import numpy as np

from pipelines.episodes import EpisodeTable
from pipelines.order import WindowOrder
from pipelines.source import Filled, WindowSource
from pipelines.staging import Slot

_MAX_ATTEMPTS = 16
_PLANS = 4


class Filler:
    """Fills rows of one rank's slots. `batch_size` is the global one; the rank's share of it is items first..end-1.
    Thread-safe."""

    def __init__(
        self,
        table: EpisodeTable,
        order: WindowOrder,
        source: WindowSource,
        *,
        batch_size: int,
        first: int,
        end: int,
        skip: bool,
    ) -> None:
        self._table, self._order, self._source = table, order, source
        self._batch_size, self._first, self._end, self._skip = batch_size, first, end, skip
        self._steps_per_epoch = order.total // batch_size
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._planning = threading.Lock()

    def fill(self, number: int, slot: Slot, begin: int, end: int) -> Filled:
        """Fill rows begin..end-1 of batch `number`, counted through all epochs."""
        numbers, starts = (column[begin:end] for column in self._plan(number))
        slot.episode[begin:end], slot.start[begin:end] = numbers, starts
        filled = self._source.fill(slot, begin, numbers, starts)
        if not filled.damaged:
            return filled
        if not self._skip:
            raise filled.damaged[0][1]
        return self._replace(number, slot, filled)

    def _plan(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Episode number (B,) and start (B,) of the windows of this rank's share of a batch."""
        with self._planning:
            if (plan := self._plans.get(number)) is None:
                epoch, step = divmod(number, self._steps_per_epoch)
                positions = step * self._batch_size + np.arange(self._first, self._end)
                episode, start = self._order.window(epoch, positions)
                plan = self._plans[number] = self._table.numbers[episode], start
                if len(self._plans) > _PLANS:
                    del self._plans[next(iter(self._plans))]
            return plan

    def _replace(self, number: int, slot: Slot, filled: Filled) -> Filled:
        """Put others in the place of damaged windows; DamagedEpisodeError when `_MAX_ATTEMPTS` are damaged too."""
        epoch, step = divmod(number, self._steps_per_epoch)
        read, cached, damaged = filled.bytes, filled.cached, list(filled.damaged)
        for row, _ in filled.damaged:
            position = np.array([step * self._batch_size + self._first + row])
            for attempt in range(1, _MAX_ATTEMPTS + 1):
                episode, start = self._order.window(epoch, position, attempt)
                slot.episode[row], slot.start[row] = self._table.numbers[episode[0]], start[0]
                again = self._source.fill(slot, row, self._table.numbers[episode], start)
                read, cached = read + again.bytes, cached + again.cached
                if not again.damaged:
                    break
                damaged += again.damaged
            else:
                raise damaged[-1][1]
        return Filled(read, cached, tuple(damaged))
