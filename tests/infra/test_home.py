"""Where things are kept, and what a RUN argument means."""

from pathlib import Path

import pytest

from infra.home import Home, find_run
from trainers.config import train_preset
from trainers.rundir import Run, RunRecord


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def make_run(path: Path) -> Run:
    config = train_preset("tiny", "/data")
    return Run.create(path, config, RunRecord(path.name, "0" * 32, "d" * 64, "dmc/cartpole-swingup", "c" * 64))


def test_argument_then_environment_then_working_directory(monkeypatch, tmp_path):
    assert Home.find(None).path == tmp_path / "lewm-home"
    monkeypatch.setenv("LEWM_HOME", "elsewhere")
    assert Home.find(None).path == tmp_path / "elsewhere"
    assert Home.find(Path("given")).path == tmp_path / "given"
    assert Home.find(Path("~/given")).path == Path.home() / "given"


def test_looking_makes_nothing(tmp_path):
    home = Home.find(None)
    with pytest.raises(ValueError, match="no MLflow store"):
        home.tracking_uri_to_read()
    assert not home.path.exists()
    assert all(place.is_relative_to(home.path) for place in (home.data, home.runs, home.artifacts, home.database))


def test_a_tracking_server_replaces_the_file(monkeypatch, tmp_path):
    home = Home.find(None)
    assert home.tracking_uri == f"sqlite:///{tmp_path}/lewm-home/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert home.tracking_uri_to_read() == "http://tracking.example:5000"


def test_a_run_by_directory_by_relative_directory_and_by_name(tmp_path):
    home = Home.find(None)
    made = make_run(home.runs / "walker-tiny")
    assert find_run("walker-tiny", home) == made
    assert find_run(str(made.path), home) == made
    assert find_run("lewm-home/runs/walker-tiny", home) == made


def test_an_unknown_run_names_the_closest(tmp_path):
    home = Home.find(None)
    with pytest.raises(ValueError, match="lewm train"):
        find_run("walker", home)
    make_run(home.runs / "walker-tiny")
    with pytest.raises(ValueError, match=r"'walker-tny' is neither .*there is walker-tiny"):
        find_run("walker-tny", home)


@pytest.mark.parametrize("argument", ["models:/lewm-walker", "models:/lewm-walker@"])
def test_a_model_without_version_is_refused(monkeypatch, argument):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="NAME@alias"):
        find_run(argument, Home.find(None))
