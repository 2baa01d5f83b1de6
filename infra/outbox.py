"""Metrics on their way to MLflow: a file in the run directory, and a thread that sends what is in it.

Training neither waits for the MLflow server nor loses what it logged while the server was away: `metrics.jsonl` is the
queue, so memory holds one batch however long the server is gone, and a process that is killed leaves its metrics to the
one that goes on. `sync`, called before a checkpoint, puts the file on disk: no metric from before a checkpoint is lost.

Nothing is recorded twice. A metric's steps only grow: steps that a resumed run takes again are not written again, and
after a restart or an error the server is asked for the last step that it has of each metric. A line is
[time in ms, step, {metric: value}]; a value that is not finite is null, which is counted but not sent.
"""

import fcntl
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
NOT_FINITE = "metrics_not_finite"
"""Tag that counts values which were not finite."""
_BATCH = 1000
"""Metrics in a request, the most that MLflow takes."""
_BLOCK = 1 << 18
_GATHER_SECONDS = 2.0
_PAUSES = (1.0, 30.0)
"""Between attempts, doubling from the first to the second, in seconds."""
_LOCK_SECONDS = 60.0
"""For a worker that was told to end to end."""
_TRY_AGAIN = {408, 425, 429}
"""HTTP status codes below 500 that pass."""
_log = logging.getLogger(__name__)

Line = tuple[int, int, dict[str, float | None]]


class Outbox:
    """The queue of one run, open for writing by one process.

    `greet` is called once by the thread when the server answers. `sample`, where given, is called by the thread every
    `sample_seconds`; what it returns is logged at the newest step.
    """

    def __init__(
        self,
        client: Any,
        run_id: str,
        path: Path,
        *,
        greet: Callable[[], None] = lambda: None,
        sample: Callable[[], Mapping[str, float]] | None = None,
        sample_seconds: float = 10.0,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(self._file, fcntl.LOCK_EX, _LOCK_SECONDS):
            os.close(self._file)
            raise RuntimeError(f"another process writes {path}: is this run being trained already?")
        self._marks: dict[str, int] = {}
        self._step, self._end, self._sent = -1, 0, 0
        self._sender = _Sender(client, run_id)
        for (_, step, values), behind in _scan(self._file, 0, os.fstat(self._file).st_size):
            self._note(step, values)
            self._end = behind
        os.truncate(self._file, self._end)
        self._unwritten = bytearray()
        self._storage_fails = False
        self._greet, self._greeted = greet, False
        self._sample, self._sample_seconds, self._sampled = sample, sample_seconds, time.monotonic()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._path = path
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the metrics of a step, but for those that are queued or sent for it already. Does not wait."""
        with self._changed:
            self._raise()
            fresh = {key: value for key, value in metrics.items() if step > self._marks.get(key, -1)}
            if not fresh:
                return
            values = {key: float(value) if math.isfinite(value) else None for key, value in fresh.items()}
            self._note(step, values)
            line = (json.dumps([int(time.time() * 1000), step, values]) + "\n").encode()
            assert len(line) < _BLOCK, f"{len(values)} metrics in one call"
            self._unwritten += line
            self._write()
            self._changed.notify_all()

    def sync(self) -> None:
        """Put what is queued on disk."""
        with self._changed:
            self._raise()
            self._write()
            try:
                os.fsync(self._file)
            except OSError as error:
                _log.warning("%s: %s; metrics are not on disk yet", self._path, error)

    def close(self, patience: float) -> int:
        """Send what is queued, for up to `patience` seconds; how many bytes of the queue are still to be sent then."""
        with self._changed:
            self._write()
            self._closed = True
            self._changed.notify_all()
        self._thread.join(patience)
        with self._changed:
            left = self._end - self._sent + len(self._unwritten)
        if not self._thread.is_alive():
            os.close(self._file)
        with self._changed:
            self._raise()
        return left

    def _note(self, step: int, values: Mapping[str, float | None]) -> None:
        self._marks |= dict.fromkeys(values, step)
        self._step = max(self._step, step)
        self._sender.not_finite += sum(value is None for value in values.values())

    def _write(self) -> None:
        """At an offset, so that a write which storage cut short is written over."""
        try:
            while self._unwritten:
                written = os.pwrite(self._file, self._unwritten, self._end)
                self._end += written
                del self._unwritten[:written]
            self._storage_fails = False
        except OSError as error:
            if not self._storage_fails:
                _log.warning("%s: %s; metrics are kept in memory", self._path, error)
            self._storage_fails = True

    def _work(self) -> None:
        pause = _PAUSES[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._end > self._sent or self._closed, self._sample_seconds)
                if self._end > self._sent:
                    self._changed.wait_for(lambda: self._closed, _GATHER_SECONDS)
                closed, begin, end = self._closed, self._sent, self._end
            try:
                if not closed:
                    self._measure()
                if not self._greeted:
                    self._greet()
                    self._greeted = True
                for batch, after in _batches(self._file, begin, end):
                    self._sender.send(batch)
                    with self._changed:
                        self._sent = after
                if closed:
                    self._sender.send([])
                    return
                pause = _PAUSES[0]
            except Exception as error:  # it belongs to training, which raises it, unless it passes
                if not _passes(error):
                    with self._changed:
                        self._error = error
                    return
                if pause == _PAUSES[0]:
                    _log.warning("MLflow: %s; metrics are kept in %s", _first_line(error), self._path)
                with self._changed:
                    if closed:
                        self._changed.wait(pause)
                    else:
                        self._changed.wait_for(lambda: self._closed, pause)
                pause = min(_PAUSES[1], 2 * pause)

    def _measure(self) -> None:
        now = time.monotonic()
        if self._sample is not None and now - self._sampled >= self._sample_seconds and self._step >= 0:
            self._sampled = now
            self.put(self._sample(), self._step)

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def drain(client: Any, run_id: str, path: Path) -> None:
    """Send what a process that ended before the server came back has left in `path`. Only reads the file.

    A process that is at work on it sends that itself.
    """
    if not path.exists():
        return
    file = os.open(path, os.O_RDONLY)
    try:
        if not _lock(file, fcntl.LOCK_SH, 0.0):
            return
        sender = _Sender(client, run_id)
        for batch, _ in _batches(file, 0, os.fstat(file).st_size):
            sender.not_finite += sum(value is None for _, _, values in batch for value in values.values())
            sender.send(batch)
        sender.send([])
    finally:
        os.close(file)


class _Sender:
    """Sends lines in order, leaving out what the server has."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.not_finite = self._tagged = 0
        self._marks: dict[str, int] | None = None

    def send(self, lines: list[Line]) -> None:
        from mlflow.entities import Metric

        if self._marks is None:
            # The public `data.metrics` has the newest values without their steps.
            newest = self.client.get_run(self.run_id).data._metric_objs
            self._marks = {metric.key: metric.step for metric in newest}
        metrics = [
            Metric(key, value, when, step)
            for when, step, values in lines
            for key, value in values.items()
            if value is not None and step > self._marks.get(key, -1)
        ]
        try:
            for begin in range(0, len(metrics), _BATCH):
                self.client.log_batch(self.run_id, metrics=metrics[begin : begin + _BATCH])
            if self.not_finite != self._tagged:
                count = self.not_finite
                self.client.set_tag(self.run_id, NOT_FINITE, str(count))
                self._tagged = count
        except BaseException:
            self._marks = None  # whether the server has them must be asked
            raise


def _batches(file: int, begin: int, end: int) -> Iterator[tuple[list[Line], int]]:
    """Lines of a request at most, and the offset behind them."""
    batch: list[Line] = []
    count, after = 0, begin
    for line, behind in _scan(file, begin, end):
        if batch and count + len(line[2]) > _BATCH:
            yield batch, after
            batch, count = [], 0
        batch.append(line)
        count += len(line[2])
        after = behind
    if batch:
        yield batch, after


def _scan(file: int, begin: int, end: int) -> Iterator[tuple[Line, int]]:
    """Lines with the offset behind each, up to the first that is not whole: a process that was killed may have left a
    piece of one, and a power cut anything from behind the last `sync`, which a resumed run logs again."""
    while begin < end:
        *whole, _ = os.pread(file, min(_BLOCK, end - begin), begin).split(b"\n")
        if not whole:
            return
        for raw in whole:
            try:
                when, step, values = json.loads(raw)
            except (ValueError, TypeError):
                return
            begin += len(raw) + 1
            yield (when, step, values), begin


def _lock(file: int, kind: int, patience: float) -> bool:
    """Whether a file could be locked within `patience` seconds; the lock ends with the process, or with `close`."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        except OSError:  # a file system without locks
            return True
        time.sleep(0.1)


def _passes(error: Exception) -> bool:
    """Whether an error may pass by itself: the server or the network is away or overloaded, a database is locked."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status >= 500 or status in _TRY_AGAIN
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    return isinstance(error, OSError | RequestException | OperationalError)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
