"""Connecting to Ray: a cluster by address, or a quiet local one."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ANSWER_SECONDS = 3.0


def ensure_ray(address: str | None = None, *, cpus: int | None = None) -> None:
    """Connect to `address`, or start a local Ray unless this process is connected already.

    Without an address it is always one of this process's own, whatever else runs on this machine or $RAY_ADDRESS says.
    Ray's telemetry is off unless the user turned it on. ConnectionError in one line when nothing answers, or when the
    cluster wants another token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.exceptions import RayError

    if address is not None:
        _check_answers(address)
    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    with _same_sigterm():
        if address is None:
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
            return
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RayError) as error:
            raise ConnectionError(_why(address, error)) from error


def check_fits(cpus: float, gpus: float) -> None:
    """ValueError unless some node has this many cores and GPUs in all: Ray would wait for one, without a word."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        have = sorted({(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes}, reverse=True)
        raise ValueError(
            f"no node has the {cpus:g} cores and {gpus:g} GPUs that an actor is to take (--actor.cpus, --actor.gpus): "
            f"nodes have {', '.join(f'{cores:g} and {devices:g}' for cores, devices in have)}"
        )


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, should it have one: Ray sets its own, which ends the process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """ConnectionError unless something listens at HOST:PORT: Ray itself would try for minutes, and say much."""
    found = re.fullmatch(r"(?:\w+://)?(.+):(\d+)", address)
    if found is None:  # "auto" and the like, which Ray looks up on this machine
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error


def _why(address: str, error: BaseException) -> str:
    """Why Ray refused, in one line: it says so somewhere among the causes of an error that does not."""
    said, cause = "", error
    while cause is not None:
        said += f"{cause}\n"
        cause = cause.__cause__
    if re.search("authentication token|InvalidAuthToken", said, re.IGNORECASE):
        return (
            f"the Ray cluster at {address} wants a token that this process does not have: copy the head's "
            f"~/.ray/auth_token here, or set RAY_AUTH_TOKEN_PATH"
        )
    return f"no Ray cluster answers at {address}: {said.splitlines()[0]}"
