"""The queue of a run's metrics: nothing lost, nothing twice, whatever the server and the process do."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from infra import outbox
from infra.home import Home
from infra.outbox import Outbox, drain
from infra.ports import LOOPBACK, any_free
from infra.tracking import MlflowTracker
from tests.infra.mlflow_server import MlflowServer


class Store:
    """A server in memory that can be away, or take a request and then fail to say so."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, float]] = []
        self.tags: dict[str, str] = {}
        self.fails: list[str] = []
        self.away = False

    def get_run(self, run_id):
        self._answer()
        newest: dict[str, Metric] = {}
        for key, step, value in self.rows:
            if key not in newest or step >= newest[key].step:
                newest[key] = Metric(key, value, 0, step)
        data = type("Data", (), {"_metric_objs": list(newest.values())})
        return type("Run", (), {"data": data})

    def log_batch(self, run_id, metrics):
        assert len(metrics) <= 1000
        fault = self.fails.pop() if self.fails else ""
        if fault == "before":
            raise ConnectionError("refused")
        self._answer()
        self.rows += [(each.key, each.step, each.value) for each in metrics]
        if fault == "after":
            raise MlflowException("the answer was lost")

    def set_tag(self, run_id, key, value):
        self._answer()
        self.tags[key] = value

    def _answer(self):
        if self.away:
            raise MlflowException("away")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(outbox, "_GATHER_SECONDS", 0.0)
    monkeypatch.setattr(outbox, "_PAUSES", (0.001, 0.01))


def rows(count: int, first: int = 0) -> list[tuple[str, int, float]]:
    return [(key, step, step / 2) for step in range(first, count) for key in ("train/loss", "val/loss")]


def put(box: Outbox, first: int, last: int) -> None:
    for step in range(first, last):
        box.put({"train/loss": step / 2, "val/loss": step / 2}, step)


@settings(max_examples=30, deadline=None)
@given(
    fails=st.lists(st.sampled_from(["", "before", "after"]), max_size=8),
    kills=st.lists(st.integers(1, 59), max_size=3, unique=True),
    back=st.integers(0, 10),
)
def test_faults_and_restarts_neither_lose_nor_double(tmp_path_factory, fails, kills, back):
    """Processes end without closing after some step, and the next one begins some steps before it."""
    path = tmp_path_factory.mktemp("run") / outbox.FILE
    store = Store()
    store.fails = list(fails)
    begin = 0
    for stop in [*sorted(kills), 60]:
        box = Outbox(store, "r", path)
        put(box, begin, stop)
        if stop == 60:
            assert box.close(30.0) == 0
        else:  # what a killed process leaves: whatever has been sent so far, and the file
            box._sender.client = Store()
            box.close(30.0)
        begin = max(0, stop - back)
    assert sorted(store.rows) == sorted(rows(60))


def test_a_torn_line_is_dropped_and_its_step_taken_again(tmp_path):
    path, store = tmp_path / outbox.FILE, Store()
    box = Outbox(store, "r", path)
    put(box, 0, 5)
    assert box.close(30.0) == 0
    path.write_bytes(path.read_bytes()[:-7])
    again = Outbox(store, "r", path)
    put(again, 3, 8)
    assert again.close(30.0) == 0
    assert sorted(store.rows) == sorted(rows(8))
    steps = [json.loads(line)[1] for line in path.read_text().splitlines()]
    assert steps == list(range(8))


def test_what_a_power_cut_left_is_dropped_and_taken_again(tmp_path):
    path, store = tmp_path / outbox.FILE, Store()
    box = Outbox(store, "r", path)
    put(box, 0, 8)
    assert box.close(30.0) == 0
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = bytes(len(lines[5]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    drain(store, "r", path)
    again = Outbox(store, "r", path)
    put(again, 4, 10)
    assert again.close(30.0) == 0
    assert sorted(store.rows) == sorted(rows(10))
    assert [json.loads(line)[1] for line in path.read_text().splitlines()] == list(range(10))


def test_two_processes_do_not_write_one_run(tmp_path, monkeypatch):
    path, store = tmp_path / outbox.FILE, Store()
    store.away = True
    box = Outbox(store, "r", path)
    put(box, 0, 5)
    drain(other := Store(), "r", path)
    assert other.rows == []  # who is at work on it sends it
    monkeypatch.setattr(outbox, "_LOCK_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="is this run being trained already"):
        Outbox(store, "r", path)
    store.away = False
    assert box.close(30.0) == 0
    again = Outbox(store, "r", path)
    put(again, 0, 6)
    assert again.close(30.0) == 0
    assert sorted(store.rows) == sorted(rows(6))


def test_an_error_in_a_sampler_is_raised(tmp_path):
    def sample():
        raise KeyError("MemTotal")

    box = Outbox(Store(), "r", tmp_path / outbox.FILE, sample=sample, sample_seconds=0.001)
    put(box, 0, 1)
    box._thread.join(30.0)
    with pytest.raises(KeyError, match="MemTotal"):
        box.close(30.0)


def test_what_is_not_finite_is_counted_once(tmp_path):
    path, store = tmp_path / outbox.FILE, Store()
    for _ in range(2):
        box = Outbox(store, "r", path)
        box.put({"a": float("nan"), "b": 1.0}, 1)
        box.put({"a": float("inf")}, 2)
        box.close(30.0)
    assert store.rows == [("b", 1, 1.0)]
    assert store.tags == {outbox.NOT_FINITE: "2"}


def test_an_error_that_does_not_pass_is_raised(tmp_path):
    class Refusing(Store):
        def log_batch(self, run_id, metrics):
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)

    box = Outbox(Refusing(), "r", tmp_path / outbox.FILE)
    put(box, 0, 1)
    with pytest.raises(MlflowException, match="no such run"):
        box.close(30.0)


def test_a_server_that_stays_away_leaves_all_of_it_in_the_file(tmp_path):
    path, store = tmp_path / outbox.FILE, Store()
    store.away = True
    box = Outbox(store, "r", path)
    put(box, 0, 2500)
    box.sync()
    assert box.close(0.05) > 0
    store.away = False
    assert box.close(30.0) == 0
    assert sorted(store.rows) == sorted(rows(2500))
    drain(store, "r", path)
    assert len(store.rows) == 5000
    drain(other := Store(), "r", path)
    assert sorted(other.rows) == sorted(rows(2500))


def test_storage_that_fails_for_a_while_costs_nothing(tmp_path, monkeypatch):
    store = Store()
    box = Outbox(store, "r", tmp_path / outbox.FILE)
    write = os.pwrite
    monkeypatch.setattr(outbox.os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    put(box, 0, 5)
    monkeypatch.setattr(outbox.os, "pwrite", lambda file, data, at: write(file, data[: len(data) // 2 or 1], at))
    put(box, 5, 10)
    assert box.close(30.0) == 0
    assert sorted(store.rows) == sorted(rows(10))


def test_system_metrics_come_at_the_newest_step(tmp_path):
    store, sampled = Store(), threading.Event()

    def sample():
        sampled.set()
        return {"system/cpu": 5.0}

    box = Outbox(store, "r", tmp_path / outbox.FILE, sample=sample, sample_seconds=0.01)
    put(box, 0, 3)
    assert sampled.wait(30.0)
    box.close(30.0)
    assert [row[2] for row in store.rows if row[0] == "system/cpu"] == [5.0]
    assert {row[1] for row in store.rows if row[0] == "system/cpu"} <= {0, 1, 2}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "home").mkdir()
    server = MlflowServer(Home(tmp_path / "home"))
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_real_server_that_is_stopped_and_started_again(server, tmp_path, capsys):
    """Away in the middle, then a second process that repeats steps: one run, every step once, in the store itself."""
    run = tmp_path / "run"
    created = MlflowTracker.create(server.url, server.home.artifacts, experiment="lewm/toy", name="run")
    first = MlflowTracker.resume(server.url, created.run_id, run)
    for step in range(100):
        first.log_metrics({"train/loss": step / 2}, step)
    assert first._outbox is not None
    while not first._outbox._sent:
        time.sleep(0.01)
    server.stop()
    for step in range(100, 300):
        first.log_metrics({"train/loss": step / 2}, step)
        if step % 50 == 0:
            first.flush()
    server.start()
    for step in range(300, 320):
        first.log_metrics({"train/loss": step / 2}, step)
    first.close(patience=60.0)
    second = MlflowTracker.resume(server.url, created.run_id, run)
    for step in range(290, 400):
        second.log_metrics({"train/loss": step / 2}, step)
    second.close(patience=60.0)
    later = MlflowTracker.attach(server.url, created.run_id, run)
    assert later.history(["train/loss"]) == {"train/loss": [(step, step / 2) for step in range(400)]}
    later.close()
    server.stop()
    assert capsys.readouterr().out == ""
    with sqlite3.connect(server.home.database) as database:
        count = database.execute("select count(*), count(distinct step) from metrics where key = 'train/loss'")
        assert count.fetchone() == (400, 400)


def test_a_server_that_does_not_answer_is_one_line_at_once(tmp_path):
    url = f"http://{LOOPBACK}:{any_free()}"
    with pytest.raises(ConnectionError, match=f"no MLflow server answers at {url}"):
        MlflowTracker.create(url, tmp_path, experiment="e", name="n")


def test_a_killed_process_loses_nothing_that_it_logged(tmp_path):
    """SIGKILL right after the last metric, with the server away: all of it is in the file."""
    home = Home(tmp_path / "home")
    created = MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="lewm/toy", name="run")
    program = (
        "import os, signal, sys; from pathlib import Path; from infra.tracking import MlflowTracker\n"
        "tracker = MlflowTracker.resume(sys.argv[1], sys.argv[2], Path(sys.argv[3]))\n"
        "for step in range(50): tracker.log_metrics({'train/loss': step / 2}, step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    away = f"http://{LOOPBACK}:{any_free()}"
    words = [sys.executable, "-c", program, away, created.run_id, str(tmp_path / "run")]
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run(words, cwd=root, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    later = MlflowTracker.attach(home.tracking_uri, created.run_id, tmp_path / "run")
    later.close()
    history = MlflowClient(home.tracking_uri).get_metric_history(created.run_id, "train/loss")
    assert [(each.step, each.value) for each in sorted(history, key=lambda each: each.step)] == [
        (step, step / 2) for step in range(50)
    ]
