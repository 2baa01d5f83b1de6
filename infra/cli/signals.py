"""SIGTERM ends a command as Ctrl-C does: what it was at is brought to an end, and its exit code says by which."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """What is in the block gets SIGTERM as a SIGINT, whose handler may be a library's own; `Terminated` comes out."""
    told = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal told
        told = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job
            raise Terminated
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as stop:
        if told:
            raise Terminated from stop
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
