"""Who may touch a dataset's directory: one collector at a time, and no collector before its predecessor's actors ended.

Both locks are of this machine's kernel (flock) and go with the process that holds them, however it ends. `.lock` is the
collector's. `.writers` is shared by every actor that writes: when a collector is killed its actors live on for seconds,
and what they are about to commit must not be taken for leftovers.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOCK, _WRITERS = ".lock", ".writers"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other collectors out. ValueError when there is one."""
    with open(directory / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{directory} is in use by another process: wait for it, or choose another --out"
            ) from None
        yield


def join_writers(directory: Path) -> IO[str]:
    """Count as a writer for as long as the file that this returns is open."""
    file = open(directory / _WRITERS, "a")  # noqa: SIM115 (the caller holds it)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def writers_gone(directory: Path, seconds: float) -> bool:
    """Whether nobody on this machine counts as a writer any more, waiting up to `seconds` for that."""
    deadline = time.monotonic() + seconds
    with open(directory / _WRITERS, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
            time.sleep(0.05)
