"""What the verbs do with a run's record and its model."""

from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient

from infra import registry, workflows
from infra.home import Home
from infra.tracking import MlflowTracker
from tests.helpers import make_dataset
from tests.trainers.helpers import tiny_config
from trainers.checkpoint import LocalSink
from trainers.config import train_preset
from trainers.evaluation import probing
from trainers.evaluation.probes import linear_probe
from trainers.loop import FitSummary, fit
from trainers.rundir import Run, RunRecord


def imported(tmp_path, data):
    config = replace(train_preset("tiny", ""), data=str(data) if data else "")
    record = RunRecord("mine", "", "", "", "0")
    return Run.create(tmp_path / "runs" / "mine", config, record)


def test_an_imported_run_gets_its_record_with_its_first_evaluation(tmp_path):
    home, dataset = Home(tmp_path), make_dataset(tmp_path / "data" / "set", n=3)
    run = imported(tmp_path, dataset.path)
    tracker = workflows.record_of(run, home)
    tracker.close()
    assert run.record.mlflow_run_id == tracker.run_id
    again = workflows.record_of(run, home)
    again.close()
    assert again.run_id == tracker.run_id
    found = MlflowClient(home.tracking_uri).get_run(tracker.run_id)
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert found.data.tags["imported"] == "true"
    assert found.data.tags["dataset_digest"] == dataset.digest


def test_a_run_that_is_being_trained_is_left_alone(tmp_path, monkeypatch):
    home, dataset = Home(tmp_path), make_dataset(tmp_path / "data" / "set", n=10)
    config, summary = tiny_config(dataset.path), FitSummary(0, 0.0, 0.0, 0.0, 0.0, {})

    def train(name):
        return workflows.train(config, home, name=name, tracking_uri=home.tracking_uri)

    def meanwhile(*_, **__):
        with pytest.raises(ValueError, match="in use by another process"):
            train("one")
        status.append(MlflowClient(home.tracking_uri).get_run(Run.open(home.runs / "one").record.mlflow_run_id).info)
        return summary

    status = []
    monkeypatch.setattr(workflows, "train_on_ray", meanwhile)
    train("one")
    assert [each.status for each in status] == ["RUNNING"]


def test_a_description_that_was_cut_off_is_made_good(tmp_path, monkeypatch):
    """The record is known to the run before it is described: trying again makes no second one."""
    home, dataset = Home(tmp_path), make_dataset(tmp_path / "data" / "set", n=10)
    config = tiny_config(dataset.path)
    monkeypatch.setattr(workflows, "train_on_ray", lambda *_, **__: FitSummary(0, 0.0, 0.0, 0.0, 0.0, {}))
    with monkeypatch.context() as away:
        away.setattr(MlflowTracker, "log_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("away")))
        with pytest.raises(ConnectionError, match="away"):
            workflows.train(config, home, name="one", tracking_uri=home.tracking_uri)
    trained = workflows.train(config, home, name="one", tracking_uri=home.tracking_uri)
    client = MlflowClient(home.tracking_uri)
    (experiment,) = [each for each in client.search_experiments() if each.name.startswith("lewm/")]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status) == (trained.run_id, "FINISHED")
    assert found.inputs is not None
    assert len(found.inputs.dataset_inputs) == 1


def test_an_imported_run_without_a_dataset_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"mine was imported without a dataset: .* with --data"):
        workflows.record_of(imported(tmp_path, None), Home(tmp_path))


def test_a_registered_version_has_the_score_of_its_own_checkpoint(tmp_path, monkeypatch):
    """Registered first and probed later, or probed first: score and card are those of the checkpoint's step."""
    # Half of the time otherwise, and what decides is linear.
    monkeypatch.setattr(probing, "mlp_probe", lambda rows, **_: linear_probe(rows, bootstraps=1))
    home, dataset = Home(tmp_path), make_dataset(tmp_path / "data" / "set", n=40, steps=12)
    config = tiny_config(dataset.path, stop_step=2, checkpoint_every=1, validate_every=1)
    tracker = MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="lewm/toy", name="one")
    record = RunRecord("one", tracker.run_id, dataset.digest, dataset.environment, "0")
    run = Run.create(home.runs / "one", config, record)
    fit(config, sink=LocalSink(run.path, 2), tracker=tracker, device=torch.device("cpu"))
    first = workflows.register_model(run, tracker)
    assert (first.name, first.version, first.moved) == ("lewm-cartpole-swingup", "1", True)
    before = registry.describe(first.name, "1", home.tracking_uri)
    assert (before.step, before.score) == (2, None)
    assert "Not probed" in before.card
    report = workflows.probe(run, tracker, torch.device("cpu"))
    after = registry.describe(first.name, "1", home.tracking_uri)
    assert after.score == pytest.approx(report.scorecard.r2_mean_validation)
    assert f"{report.scorecard.r2_mean:.3f}" in after.card
    assert dataset.digest in after.card
    assert workflows.register_model(run, tracker, again=False) == replace(
        first, moved=False, reason="it is registered already"
    )
    second = workflows.register_model(run, tracker)
    assert workflows.register_model(run, tracker, again=False).version == second.version == "2"
    tracker.close()
    again = registry.describe(second.name, second.version, home.tracking_uri)
    assert (again.score, again.card) == (after.score, after.card)
    assert not second.moved
    assert "does not beat" in second.reason
    (best,) = [each for each in workflows.checkpoint_table(run.path / "checkpoints") if each["best"]]
    assert best["metrics"]["val/prediction_over_copy"] > 0
