"""Checkpoints written beside training: the loop hands over a copy on the host, and a thread puts it into the sink.

One checkpoint is written at a time and one can wait; a newer one takes the place of one that waits. Storage that fails
is tried again, with pauses that double from one second to a minute, for `patience` seconds; any other error, and
storage that stays away, is raised where the loop hands over the next checkpoint or closes. Memory is two checkpoints.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from trainers.checkpoint import CheckpointSink, TrainState

_log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes checkpoints to `sink` in a thread of its own. Leaving it as a context manager waits for the last one."""

    def __init__(self, sink: CheckpointSink, *, patience: float = 900.0, pause: float = 1.0) -> None:
        self.sink, self.patience, self.pause = sink, patience, pause
        self._waiting: tuple[TrainState, str] | None = None
        self._error: BaseException | None = None
        self._closed = self._hurry = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: TrainState, config: str) -> None:
        """Have `checkpoint`, which shares no memory with training, written. Raises what an earlier one ran into."""
        with self._changed:
            self._raise()
            self._waiting = (checkpoint, config)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all is written, end the thread, and raise what it ran into."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # Training failed, and that is the error to show: what was handed over gets one more attempt.
        with self._changed:
            self._hurry = self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            _log.error("a checkpoint was not written: %s", self._error)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None or self._error is not None:
                    return
                (checkpoint, config), self._waiting = self._waiting, None
            try:
                self._write(checkpoint, config)
            except Exception as error:  # it belongs to the loop, which raises it
                with self._changed:
                    self._error = error
                return

    def _write(self, checkpoint: TrainState, config: str) -> None:
        began, pause = time.monotonic(), self.pause
        while True:
            try:
                self.sink.save(checkpoint, config)
                return
            except OSError as error:
                if self._hurry or time.monotonic() - began >= self.patience:
                    raise
                _log.warning("checkpoint %d: %s; trying again in %.0f s", checkpoint.step, error, pause)
            with self._changed:
                self._changed.wait_for(lambda: self._hurry, timeout=pause)
                if self._waiting is not None:
                    (checkpoint, config), self._waiting = self._waiting, None
            pause = min(60.0, 2 * pause)

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
