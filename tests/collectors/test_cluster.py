"""Which Ray a collection gets: its own, or the cluster that was named; and two nodes that give one dataset."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from collectors.cluster import ensure_ray
from shards.dataset import Dataset
from shards.verify import verify
from tests.collectors.helpers import CONFIG, digest_here
from tests.infra.cluster_helpers import place, start_head

ROOT = Path(__file__).resolve().parents[2]

_OWN_RAY = """
import signal
handler = lambda number, frame: None
signal.signal(signal.SIGTERM, handler)
from collectors.cluster import ensure_ray
ensure_ray(cpus=3)
import ray
print(ray.cluster_resources()["CPU"], signal.getsignal(signal.SIGTERM) is handler)
"""


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    # Ray leaves the address of the newest cluster in its directory, for others to connect to: not here.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=os.environ | {"RAY_TMPDIR": directory} | environment,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip


def test_without_an_address_ray_is_ones_own_and_leaves_sigterm_alone():
    done = run("-c", _OWN_RAY, RAY_ADDRESS="127.0.0.1:1")
    assert done.stdout == "3.0 True\n", done.stderr[-3000:]


def test_a_refused_token_is_not_taken_for_silence(monkeypatch):
    """Ray's error says that it failed to connect; among its causes it says why."""

    def refuse(*args, **keywords):
        try:
            raise RuntimeError("Failed to connect to GCS. Last error: ...\nUnauthenticated: InvalidAuthToken")
        except RuntimeError as error:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from error

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(ConnectionError, match=r"^the Ray cluster at auto wants a token .*RAY_AUTH_TOKEN_PATH$"):
        ensure_ray("auto")


_CONNECT = """
import sys
from collectors.cluster import ensure_ray
try:
    ensure_ray(sys.argv[1])
except ConnectionError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}])
def test_a_cluster_with_another_token_says_so(variables):
    with place():
        address = start_head().address
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            os.environ.pop(name, None)
        done = run("-c", _CONNECT, address, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", **variables)
    assert done.stdout.startswith(f"the Ray cluster at {address} wants a token"), done.stdout + done.stderr[-2000:]


@pytest.mark.slow
def test_two_nodes_give_the_dataset_of_one_process(gl, tmp_path):
    done = run("-m", "tests.collectors.cluster_collect", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    nodes = [path.name.split("-") for path in (tmp_path / "actors").iterdir()]
    assert len({node for node, _ in nodes}) == 2
    assert [rank for _, rank in nodes] == ["0", "0"]
    assert verify(tmp_path / "data").ok
    assert Dataset.open(tmp_path / "data").digest == digest_here(CONFIG, tmp_path / "here")
