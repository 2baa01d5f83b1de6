"""A cluster of its own for a test: state, home directory and token in a short temporary place, ports that are free."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra import cluster
from infra.ports import any_free

LEWM = [sys.executable, "-m", "infra"]
ROOT = Path(__file__).resolve().parents[2]
_UNSET = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")


@contextmanager
def place() -> Iterator[Path]:
    """Environment variables point to a new place; afterwards its nodes are stopped and it is gone."""
    # Ray's sockets lie here, whose names may not be long: pytest's own directories are.
    path = Path(tempfile.mkdtemp(prefix="lw-"))
    with pytest.MonkeyPatch.context() as patch:
        for name in (*_UNSET, "MLFLOW_TRACKING_URI", "LEWM_HOME", cluster.LOOPBACK_ONLY):
            patch.delenv(name, raising=False)
        (path / "user").mkdir()
        patch.setenv("HOME", str(path / "user"))
        patch.setenv("LEWM_CLUSTER_DIR", str(path / "c"))
        patch.setenv("RAY_AUTH_MODE", "token")
        try:
            yield path
        finally:
            for node in reversed(cluster.local_nodes()):
                cluster.stop(node)
    shutil.rmtree(path)


def start_head(cpus: int = 1) -> cluster.LocalNode:
    return cluster.up(port=any_free(), dashboard_port=any_free(), cpus=cpus)


def lewm(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`lewm WORDS` as a user runs it: Ray reads once in a process whether tokens are wanted, and which."""
    return subprocess.run(
        [*LEWM, *words], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=timeout, check=False
    )
