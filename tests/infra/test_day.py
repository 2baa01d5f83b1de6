"""A user's day on a cluster of two nodes: collect and train as jobs, lose a node in the middle, find the model."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra import cluster
from infra.home import Home
from tests.infra.cluster_helpers import LEWM, ROOT, lewm, place

pytestmark = pytest.mark.slow

STEPS = 120
_PATIENCE = 900.0


@pytest.fixture
def home(monkeypatch):
    with place() as path:
        monkeypatch.setenv("LEWM_SHARED_HOME", "1")
        monkeypatch.setenv("LEWM_HOME", str(path / "home"))
        yield Home(path / "home")


def until(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not done():
        assert time.monotonic() < end, f"not within {_PATIENCE:.0f} s: {what}"
        time.sleep(0.5)


def steps_of(run: Path) -> list[int]:
    """Steps whose losses are logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [step for _, step, values in rows if "train/prediction" in values]


def test_a_day_on_a_cluster_that_loses_a_node(home):
    up = lewm("cluster", "up", "--cpus", "2", "--port", "0", "--dashboard-port", "0")
    assert up.returncode == 2  # ports must be named, and are
    ports = ["--port", str(cluster.any_free()), "--dashboard-port", str(cluster.any_free())]
    up = lewm("cluster", "up", "--cpus", "2", *ports, "--json")
    assert up.returncode == 0, up.stderr
    joined = lewm("cluster", "up", "--join", json.loads(up.stdout)["address"], "--cpus", "2")
    assert joined.returncode == 0, joined.stderr
    head, node = cluster.local_nodes()
    assert (head.head, node.head) == (True, False)

    data = home.data / "cartpole"
    collect = ["collect", "dmc/cartpole-swingup", "--episodes", "24", "--steps", "40", "--policy", "noise"]
    collected = lewm("submit", *collect, "--workers", "3", "--out", str(data), "--json", timeout=_PATIENCE)
    assert collected.returncode == 0, collected.stderr
    assert lewm("shards", "verify", str(data)).returncode == 0

    train = ["train", "--preset", "tiny", "--data", str(data), "--name", "day", "--workers", "1..2"]
    train += ["--batch-size", "16", "--stop-step", str(STEPS), "--checkpoint-every", "10", "--log-every", "5"]
    train += ["--validate-every", str(STEPS), "--threads", "1", "--device", "cpu"]
    follower = subprocess.Popen(
        [*LEWM, "submit", *train], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run = home.runs / "day"
    try:
        until("a checkpoint", lambda: any((run / "checkpoints").glob("step_*/COMPLETE")))
        for pid in cluster._processes(node.mark):
            cluster._tell(pid, signal.SIGKILL)
        at_the_kill = max(steps_of(run))
        output, _ = follower.communicate(timeout=_PATIENCE)
    finally:
        follower.kill()
        follower.wait()
    assert at_the_kill < STEPS, "the run was over before the node died"
    assert follower.returncode == 0, output
    assert steps_of(run) == sorted(set(steps_of(run)))
    assert max(steps_of(run)) == STEPS

    states = {each["head"]: each["alive"] for each in json.loads(lewm("cluster", "status", "--json").stdout)["nodes"]}
    assert states == {True: True, False: False}
    jobs = json.loads(lewm("jobs", "ls", "--json").stdout)
    assert [job["status"] for job in jobs] == ["SUCCEEDED", "SUCCEEDED"]

    client = MlflowClient(home.tracking_uri)
    version = client.get_model_version_by_alias("lewm-cartpole-swingup", "champion")
    assert version.run_id is not None
    found = client.get_run(version.run_id)
    assert found.info.run_name == "day"
    assert [each.info.run_id for each in client.search_runs([found.info.experiment_id])] == [version.run_id]
    assert lewm("models", "load", "lewm-cartpole-swingup").returncode == 0

    down = lewm("cluster", "down")
    assert down.returncode == 0, down.stderr
    assert cluster.local_nodes() == []
    assert cluster._processes(head.mark) + cluster._processes(node.mark) == []
