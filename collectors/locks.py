"""Who may touch a dataset's directory: one collector at a time, and no collector before its predecessor's actors ended.

Both locks are of this machine's kernel (flock) and go with the process that holds them, however it ends. `.lock` is the
collector's; it holds a word, by which its actors see that what they have at that path is the same directory. `.writers`
is shared by every actor that writes: when a collector is killed its actors live on for seconds, and what they are about
to commit must not be taken for leftovers.
"""

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOCK, _WRITERS = ".lock", ".writers"


class NotShared(ValueError):
    """A node has another directory at the dataset's path, or none."""


@contextmanager
def locked(directory: Path) -> Iterator[str]:
    """Keep other writers out; gives the word that the lock's file has now. ValueError when there is another."""
    with open(directory / _LOCK, "a") as file:  # not "w", which would empty it before it is locked
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{directory} is in use by another process: wait for it, or choose another") from None
        word = secrets.token_hex(8)
        file.truncate(0)
        file.write(word)
        file.flush()
        os.fsync(file.fileno())  # for other nodes to see
        yield word


def check_shared(directory: Path, word: str) -> None:
    """NotShared unless this is the directory of the collector whose lock has `word`."""
    try:
        found = (directory / _LOCK).read_text()
    except FileNotFoundError:
        found = ""
    if found != word:
        raise NotShared(
            f"node {socket.gethostname()} has another directory at {directory} than the collector: "
            f"give an --out on storage that every node shares"
        )


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
