"""Threads that fill numbered batches ahead of their consumer, in reused memory.

Batch numbers are opened in order, each into a free slot, and cut into chunks of rows that the threads take one at a
time: so the first batch is filled by all threads together, and the number of threads changes nothing but speed. The
consumer takes batches in order and gives slots back; with no free slot the threads sleep, which is all the
back-pressure there is. What a thread raises is kept with its batch and raised to the consumer when that batch's turn
comes. Threads are daemons that hold this object but not its owner, so that an owner that is dropped can end them.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S")
R = TypeVar("R")

_CHUNK = 32


@dataclass(slots=True)
class _Task(Generic[S, R]):
    """A batch being filled: rows not yet given out begin at `next_row`; `pending` ones are not yet filled."""

    number: int
    slot: S
    pending: int
    next_row: int = 0
    reports: dict[int, R] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)


class Prefetcher(Generic[S, R]):
    """Fills batches `first`, `first` + 1, ... of `rows` rows each.

    `fill(number, slot, begin, end)` fills rows begin..end-1 of a batch and returns a report; `finish(slot)` follows
    when all rows are there. Both are called by the threads.
    """

    def __init__(
        self,
        slots: Sequence[S],
        fill: Callable[[int, S, int, int], R],
        finish: Callable[[S], None],
        *,
        first: int,
        rows: int,
        threads: int,
    ) -> None:
        self._fill, self._finish = fill, finish
        self._rows, self._chunk = rows, min(_CHUNK, -(-rows // threads))
        self._free = deque(slots)
        self._tasks: deque[_Task[S, R]] = deque()
        self._next = first
        self._stopped = False
        # Reentrant, because `stop` may be called by the garbage collector inside any other method.
        lock = threading.RLock()
        self._work, self._ready = threading.Condition(lock), threading.Condition(lock)
        self._threads = [threading.Thread(target=self._run, name=f"decode-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def take(self) -> tuple[int, S, list[R]]:
        """Wait for the next batch: its number, its slot, and the reports in order of rows.

        Raises what its first failing row raised, and again on every later call. RuntimeError after `stop`.
        """
        with self._ready:
            while not self._stopped and not (self._tasks and self._tasks[0].pending == 0):
                self._ready.wait()
            if self._stopped:
                raise RuntimeError("the prefetcher was stopped")
            task = self._tasks[0]
            if task.errors:
                raise task.errors[min(task.errors)]
            self._tasks.popleft()
        return task.number, task.slot, [task.reports[row] for row in sorted(task.reports)]

    def give_back(self, slot: S) -> None:
        """Let a slot be filled again."""
        with self._work:
            self._free.append(slot)
            self._work.notify_all()

    def stop(self) -> None:
        """Tell the threads to end after the chunks they are at; does not wait."""
        with self._work:
            self._stopped = True
            self._work.notify_all()
            self._ready.notify_all()

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (chunk := self._next_chunk()) is not None:
            task, begin, end = chunk
            try:
                report = self._fill(task.number, task.slot, begin, end)
            except BaseException as error:
                self._filled(task, begin, end, error=error)
            else:
                self._filled(task, begin, end, report=report)

    def _next_chunk(self) -> tuple[_Task[S, R], int, int] | None:
        with self._work:
            while not self._stopped:
                if not self._tasks or self._tasks[-1].next_row == self._rows:
                    if not self._free:
                        self._work.wait()
                        continue
                    self._tasks.append(_Task(self._next, self._free.popleft(), self._rows))
                    self._next += 1
                    self._work.notify_all()
                task = self._tasks[-1]
                begin, task.next_row = task.next_row, min(task.next_row + self._chunk, self._rows)
                return task, begin, task.next_row
        return None

    def _filled(
        self, task: _Task[S, R], begin: int, end: int, report: R | None = None, error: BaseException | None = None
    ) -> None:
        with self._ready:
            if report is not None:
                task.reports[begin] = report
            if error is not None:
                task.errors[begin] = error
            complete = task.pending == end - begin and not task.errors
            if not complete:
                task.pending -= end - begin
                self._ready.notify_all()
                return
        # The last rows count as pending until the batch is on its way to the device.
        try:
            self._finish(task.slot)
        except BaseException as failure:
            task.errors[begin] = failure
        with self._ready:
            task.pending = 0
            self._ready.notify_all()
