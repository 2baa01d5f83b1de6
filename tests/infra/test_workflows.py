"""The record of a run whose weights came from elsewhere."""

from dataclasses import replace

import pytest
from mlflow import MlflowClient

from infra import workflows
from infra.home import Home
from tests.helpers import make_dataset
from trainers.config import train_preset
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
    assert found.info.run_name == "mine"
    assert found.data.tags["imported"] == "true"
    assert found.data.tags["dataset_digest"] == dataset.digest


def test_an_imported_run_without_a_dataset_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"mine was imported without a dataset: .* with --data"):
        workflows.record_of(imported(tmp_path, None), Home(tmp_path))
