"""A run's record in MLflow: complete, once per step, and the same run after an interruption."""

import math

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from infra.home import Home
from infra.tracking import MlflowTracker, check_answers, without_password
from tests.helpers import make_dataset


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("my home"))


@pytest.fixture
def tracker(home):
    return MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="lewm/dmc/cartpole-swingup", name="run")


def read(tracker: MlflowTracker) -> Run:
    """The run as another process sees it."""
    return MlflowClient(tracker.tracking_uri).get_run(tracker.run_id)


def test_metrics_are_complete_and_once_per_step(tracker, monkeypatch):
    sent = []
    log_batch = tracker.client.log_batch
    monkeypatch.setattr(
        tracker.client, "log_batch", lambda *a, **k: (sent.append(len(k["metrics"])), log_batch(*a, **k))
    )
    for step in range(700):
        tracker.log_metrics({"train/loss": 1 / (step + 1), "val/loss": float(step)}, step)
    tracker.close("FINISHED")
    assert sum(sent) == 1400
    assert len(sent) < 50
    history = MlflowClient(tracker.tracking_uri).get_metric_history(tracker.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, 1 / (step + 1)) for step in range(700)]
    assert tracker.history(["val/loss"]) == {"val/loss": [(step, float(step)) for step in range(700)]}
    assert read(tracker).info.status == "FINISHED"


def test_what_is_not_finite_is_counted_over_all_attachments(tracker):
    tracker.log_metrics({"a": math.nan, "b": math.inf, "c": 1.0}, 1)
    tracker.close()
    later = MlflowTracker.attach(tracker.tracking_uri, tracker.run_id)
    later.log_metrics({"a": math.nan}, 2)
    later.close()
    assert read(tracker).data.tags["metrics_not_finite"] == "3"
    assert read(tracker).data.metrics == {"c": 1.0}


def test_attaching_continues_the_same_run(home, tracker):
    tracker.log_metrics({"loss": 3.0}, 1)
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.close("FAILED")
    assert read(tracker).info.status == "FAILED"
    later = MlflowTracker.attach(home.tracking_uri, tracker.run_id)
    later.log_metrics({"loss": 1.5}, 2)
    later.log_metrics({"loss": 1.0}, 3)
    later.close()
    assert later.history(["loss"]) == {"loss": [(1, 3.0), (2, 1.5), (3, 1.0)]}
    assert read(tracker).info.status == "FAILED", "what is measured later does not mend a run"
    later.close("FINISHED")
    assert read(tracker).info.status == "FINISHED"


def test_addresses_are_shown_without_passwords():
    assert without_password("https://me:secret@host:5000/a@b") == "https://host:5000/a@b"
    assert without_password("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"
    with pytest.raises(ConnectionError, match=r"answers at http://127\.0\.0\.1:9: "):
        check_answers("http://me:secret@127.0.0.1:9")


def test_a_run_of_another_store_is_one_clear_error(home, tracker):
    with pytest.raises(ValueError, match="has no run 00000000"):
        MlflowTracker.attach(home.tracking_uri, "0" * 32)


def test_parameters_of_any_number_and_length(tracker):
    tracker.log_params({f"p{index}": index for index in range(150)} | {"long": "x" * 900, "none": None})
    params = read(tracker).data.params
    assert len(params) == 152
    assert params["p149"] == "149"
    assert params["none"] == "None"
    assert len(params["long"]) == 500


def test_the_dataset_is_an_input_with_its_digest(tracker, tmp_path):
    dataset = make_dataset(tmp_path / "cartpole", n=4, steps=3)
    tracker.log_dataset(dataset, "train")
    inputs = read(tracker).inputs
    assert inputs is not None
    (found,) = inputs.dataset_inputs
    assert found.dataset.name == "dmc/cartpole-swingup"
    assert found.dataset.digest == dataset.digest[:32]
    assert dataset.digest in str(found.dataset.profile)
    assert str(dataset.path) in found.dataset.source
    assert "x_dot" in str(found.dataset.schema)
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "train")]


def test_files_lie_below_the_home(home, tracker, tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    tracker.log_figure("curve", figure)
    tracker.log_json("scorecards/probe.json", {"r2": 0.5})
    (tmp_path / "note.txt").write_text("hello")
    tracker.log_artifact(tmp_path / "note.txt", "notes")
    files = {
        str(path.relative_to(home.artifacts / tracker.run_id / "artifacts")): path
        for path in home.artifacts.rglob("*.*")
    }
    assert files.keys() >= {"figures/curve.png", "scorecards/probe.json", "notes/note.txt"}
    assert files["figures/curve.png"].read_bytes().startswith(b"\x89PNG")


def test_tags_and_name_are_kept(tracker):
    tracker.set_tags({"preset": "tiny"})
    assert read(tracker).data.tags["preset"] == "tiny"
    assert read(tracker).info.run_name == "run"
