"""`lewm ui`: the MLflow page over a home's store, for as long as the command runs.

The server is a process group of its own: Ctrl-C reaches this command alone, which then ends the whole group. Its log is
kept out of the terminal and shown only when it does not start.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, NoReturn

from infra.cli.common import Common
from infra.cli.errors import Failed
from infra.console import print_json, say
from infra.home import Home
from infra.ports import LOOPBACK, any_free, is_free
from infra.tracking import without_password

PORT = 5000
RUNS = "/#/experiments?workflowType=machine_learning"
"""The list of experiments in the view for training runs. MLflow opens in the one for language models."""
_START_SECONDS, _STOP_SECONDS = 120.0, 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Serve the MLflow page of a home: runs, charts, figures, registered models. Ctrl-C stops it."""

    port: int | None = None
    """Port on this machine; 5000 unless given, or a free one where 5000 is taken."""
    open: bool = True
    """Open the page in a browser, where there is a display."""


def run(args: Args) -> None:
    home = args.find_home()
    uri = home.tracking_uri_to_read()
    if uri.startswith(("http://", "https://")):
        _show(uri, args)
        return
    port = _choose_port(args.port)
    url = f"http://{LOOPBACK}:{port}"
    try:
        with tempfile.TemporaryFile() as log, _server(home, uri, port, log) as process:
            _wait_until_it_answers(process, url, log)
            _show(url, args)
            say("Ctrl-C stops it")
            code = process.wait()
            raise Failed(f"the MLflow server stopped with exit status {code}: {_last_line(log)}")
    except KeyboardInterrupt:
        say("stopped")


def _show(url: str, args: Args) -> None:
    url = without_password(url)
    if args.json:
        print_json({"url": url})
    else:
        print(url)
    sys.stdout.flush()
    say(f"runs: {url}{RUNS}  (on a first visit choose 'Model training' at the top left of the page)")
    display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if args.open and display:
        webbrowser.open(url + RUNS)


def _choose_port(wanted: int | None) -> int:
    """`wanted` if it is free, a ValueError if not; without a wish 5000, or what the system gives."""
    if wanted is not None and not 1 <= wanted <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, not {wanted}")
    if is_free(wanted or PORT):
        return wanted or PORT
    if wanted is not None:
        raise ValueError(f"port {wanted} is taken: leave --port out and a free one is chosen")
    return any_free()


@contextmanager
def _server(home: Home, uri: str, port: int, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The running MLflow server; no process of it is left afterwards, however the body ends."""
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    words += ["--artifacts-destination", home.artifacts.as_uri(), "--host", LOOPBACK, "--port", str(port)]
    words += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # The job runners serve language model features only, and are processes of their own.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    before = {each: signal.signal(each, _interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    process = subprocess.Popen(
        words,
        env=quiet | os.environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for each in (signal.SIGINT, *before):
            signal.signal(each, signal.SIG_IGN)
        _stop(process)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for each, handler in before.items():
            signal.signal(each, handler)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's process group: asked first, then killed."""
    for order in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, order)
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    process.wait()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Failed(f"the MLflow server did not start: {_last_line(log)}")
        try:
            with direct.open(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise Failed(f"the MLflow server did not answer within {_START_SECONDS:.0f} s: {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
