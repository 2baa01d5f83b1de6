"""Connecting to Ray: a cluster by address, or a quiet local one."""

import logging
import os
import re
import socket

_ANSWER_SECONDS = 3.0


def ensure_ray(address: str | None = None, *, cpus: int | None = None) -> None:
    """Connect to `address`, or start a local Ray unless this process is connected already.

    Ray's telemetry is off unless the user turned it on. ConnectionError in one line when nothing answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if address is not None:
        _check_answers(address)
    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error


def _check_answers(address: str) -> None:
    """ConnectionError unless something listens at HOST:PORT: Ray itself would try for minutes, and say much."""
    found = re.fullmatch(r"(?:\w+://)?(.+):(\d+)", address)
    if found is None:  # "auto" and the like, which Ray looks up on this machine
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error
