"""The whole line on the real cartpole, small: simulator, shards, Ray Train, probes, planning, MLflow, registry."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainers.checkpoint import complete_checkpoints

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def line(tmp_path_factory, ray_local):
    """A demo of the smallest size that exercises everything, run once for all tests of this module."""
    from infra.demo import DemoSettings, run_demo
    from infra.home import Home

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    home = Home(tmp_path_factory.mktemp("line") / "home")
    settings = DemoSettings(episodes=40, steps=40, train_steps=30, goals=3, workers=2)
    return run_demo(settings, home, "cpu"), home, settings


def test_the_report_holds_what_was_measured(line):
    report, _, settings = line
    assert report.collection.episodes == settings.episodes
    assert report.collection.frames == settings.episodes * (settings.steps + 1)
    assert report.collection.frames_per_second > 0
    assert report.training_steps == settings.train_steps
    assert 0 <= report.data_wait_share < 1
    targets = [score.target for score in report.probe.scores("lewm")]
    assert targets == [
        "cart_position",
        "sin(pole_angle)",
        "cos(pole_angle)",
        "cart_velocity",
        "pole_angular_velocity",
    ]
    assert report.probe.n_held_out + report.probe.n_train == settings.episodes
    assert report.planning.goals == settings.goals
    assert report.planning.start_distance > 0.5
    assert report.model == "lewm-cartpole-swingup"
    assert report.model_aliases == ("champion",)


def test_the_run_directory_is_as_designed(line):
    report, _, settings = line
    run = Path(report.run)
    record = json.loads((run / "run.json").read_text())
    assert record["mlflow_run_id"] == report.run_id
    assert record["dataset_digest"] == report.collection.digest
    checkpoint = run / "checkpoints" / f"step_{settings.train_steps:09d}"
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {"config.json", "model.safetensors", "optim.pt", "state.json", "COMPLETE"}
    assert (checkpoint / "config.json").read_text() == (run / "config.json").read_text()
    assert {path.name for path in (run / "scorecards").iterdir()} == {"probe.json", "plan.json"}


def test_mlflow_holds_the_record(line):
    from mlflow import MlflowClient

    report, home, settings = line
    client = MlflowClient(home.tracking_uri)
    run = client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "lewm/dmc/cartpole-swingup"
    assert run.data.params["model.latent_dim"] == "256"
    history = client.get_metric_history(report.run_id, "train/prediction")
    steps = [metric.step for metric in history]
    assert steps == sorted(set(steps))
    assert steps[-1] == settings.train_steps
    expected = {
        "probe/linear/w1/r2/cart_position",
        "probe/linear/w3/r2/pole_angle_sin",
        "probe/linear/w3/r2_mean",
        "plan/planned_distance",
        "data/wait_share",
        "train/effective_rank",
    }
    assert expected <= run.data.metrics.keys()
    figures = {Path(item.path).stem for item in client.list_artifacts(report.run_id, "figures")}
    assert figures == {"loss_curves", "probe_scatter", "latent_map", "rollout_strip", "planning_strip"}
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert report.collection.digest.startswith(dataset.dataset.digest)
    version = client.get_model_version_by_alias(report.model, "champion")
    assert version.run_id == report.run_id


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_the_shards(line):
    """Stock webdataset leaves the tars to the garbage collector, which warns; collect before the next test."""
    import gc

    import numpy as np
    from webdataset.compat import WebDataset

    report, _, settings = line
    shards = sorted(str(path) for path in Path(report.collection.path).glob("shards/*.tar"))
    stream: Any = WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8")
    samples = list(stream)
    assert len(samples) == settings.episodes
    sample = samples[0]
    frames = [name for name in sample if name.endswith("jpg")]
    assert len(frames) == settings.steps + 1
    assert np.asarray(sample[frames[0]]).shape == (64, 64, 3)
    assert sample["action.npy"].shape == (settings.steps, 1)
    assert sample["state.npy"].shape == (settings.steps + 1, 4)
    gc.collect()


def test_the_registered_model_loads_without_the_project_and_agrees(line):
    import mlflow
    import numpy as np
    import torch
    from mlflow.pytorch import load_model

    from infra.home import find_run
    from trainers.evaluation.latents import observations

    report, home, _ = line
    mlflow.set_tracking_uri(home.tracking_uri)
    loaded = load_model(f"models:/{report.model}@champion")
    run = find_run(f"models:/{report.model}@champion", home)
    assert run.path == Path(report.run)
    model = run.load_model(torch.device("cpu"))
    from shards.dataset import Dataset

    frames = Dataset.open(report.collection.path).read_episode(0).frames
    stacks = torch.from_numpy(observations(frames, np.arange(2, 9), model.config))
    action = torch.zeros(7, model.config.frame_skip)
    with torch.no_grad():
        latent, following = loaded(stacks, action)
        torch.testing.assert_close(latent, model.encode(stacks), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(following, model.predict(latent, action), rtol=1e-4, atol=1e-4)
    assert not list(home.artifacts.rglob("*.pkl"))
    assert not list(home.artifacts.rglob("*.pickle"))


def test_a_finished_run_is_not_trained_again_and_another_configuration_is_refused(line):
    from dataclasses import replace

    from infra import workflows

    report, home, _ = line
    run = Path(report.run)
    from trainers.rundir import Run

    config = Run.open(run).config
    with pytest.raises(ValueError, match=r"optim\.lr was"):
        workflows.train(
            replace(config, optim=replace(config.optim, lr=0.5)),
            home,
            name=run.name,
            tracking_uri=home.tracking_uri,
        )


def test_ctrl_c_ends_training_in_one_line(line):
    from mlflow import MlflowClient

    from infra.home import find_run

    report, home, _ = line
    command = [sys.executable, "-c", "from infra.cli import entry; entry()", "train"]
    command += ["--home", str(home.path), "--data", report.collection.path, "--name", "interrupted"]
    options = ["--batch-size", "16", "--checkpoint-every", "5", "--log-every", "5"]
    with subprocess.Popen(
        [*command, *options, "--stop-step", "100000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for _ in process.stderr:
            if complete_checkpoints(home.runs / "interrupted" / "checkpoints"):
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "goes on from there" in rest
    assert rest.endswith("lewm train: interrupted\n")
    assert "Traceback" not in rest
    run = find_run("interrupted", home)
    assert MlflowClient(home.tracking_uri).get_run(run.record.mlflow_run_id).info.status == "KILLED"
    assert run.last_checkpoint().name >= "step_000000005"
