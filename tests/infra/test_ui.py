"""The MLflow page over a home's store: it answers, shows artifacts, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from functools import partial

import pytest
from matplotlib.figure import Figure

from infra import cli
from infra.cli import ui
from infra.home import Home
from infra.ports import LOOPBACK
from infra.tracking import MlflowTracker


@pytest.fixture
def taken():
    """A port that something listens on."""
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        yield server.getsockname()[1]


def get(url: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as response:
        return response.read()


def processes_mentioning(word: str) -> list[int]:
    """Processes that have `word` in their environment or arguments, other than this one."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                with open(f"/proc/{entry.name}/environ", "rb") as environment:
                    if word.encode() in environment.read():
                        found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_the_page_is_served_and_ends_with_a_signal(tmp_path):
    home = Home(tmp_path / "my home")
    tracker = MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="lewm/toy", name="run")
    figure = Figure()
    figure.subplots().plot([1, 2])
    tracker.log_figure("curve", figure)
    tracker.close()
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from infra.cli import entry; entry()", "ui", "--home", str(home.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"LEWM_TEST_MARK": str(tmp_path)},
        # A shell's background job ignores Ctrl-C, and so would everything that the test suite starts there.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith(f"http://{LOOPBACK}:")
        assert b"MLflow" in get(url)
        picture = get(f"{url}/get-artifact?path=figures/curve.png&run_uuid={tracker.run_id}")
        assert picture.startswith(b"\x89PNG")
        assert len(processes_mentioning(str(tmp_path))) > 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    runs, *rest = err.splitlines()
    assert runs.startswith(f"runs: {url}/#/experiments?workflowType=machine_learning ")
    assert rest == ["Ctrl-C stops it", "stopped"]
    assert processes_mentioning(str(tmp_path)) == []


def test_an_address_of_a_server_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert cli.main(["ui"]) == 0
    assert capsys.readouterr().out == "http://tracking.example:5000\n"
    assert cli.main(["ui", "--json"]) == 0
    assert '"url": "http://tracking.example:5000"' in capsys.readouterr().out


def test_a_taken_port_is_replaced_unless_it_was_asked_for(monkeypatch, taken):
    monkeypatch.setattr(ui, "PORT", taken)
    assert ui._choose_port(None) != taken
    with pytest.raises(ValueError, match=f"port {taken} is taken"):
        ui._choose_port(taken)
    with pytest.raises(ValueError, match="from 1 to 65535, not 99999"):
        ui._choose_port(99999)


def test_a_server_that_does_not_start_says_why(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"nosuchscheme://{tmp_path}")
    assert cli.main(["ui"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lewm ui: the MLflow server did not start: ")
    assert captured.err.count("\n") == 1
