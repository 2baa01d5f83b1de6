"""Run a command, and again when it fails: `python -m infra.retry TIMES COMMAND ...`, the entry point of a job.

A Ray job runs its command once. Collection and training go on where they stood when the same command is given again,
so that is done here, after a pause that doubles. Bad input and a run that diverged (2) and an interruption (130, 143)
are not tried again. A signal goes to the command, and ends both.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

FINAL = (0, 2, 130, 143)
PAUSES = (5.0, 300.0)
"""Before the first retry, and at most."""


def run(command: Sequence[str], times: int, pauses: tuple[float, float] = PAUSES) -> int:
    """The exit code of the last attempt, of `times` + 1 at most."""
    stop, pause = threading.Event(), pauses[0]
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        stop.set()
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for attempt in range(times + 1):
            process = subprocess.Popen(command)
            if stop.is_set():  # the signal came while the command was being started
                process.terminate()
            code = process.wait()
            if code in FINAL or stop.is_set() or attempt == times:
                return code if code >= 0 else 128 - code
            print(f"ended with status {code}: attempt {attempt + 2} of {times + 1} in {pause:.0f} s", file=sys.stderr)
            if stop.wait(pause):
                return 130
            pause = min(pauses[1], 2 * pause)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], int(sys.argv[1])))
