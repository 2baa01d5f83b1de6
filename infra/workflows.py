"""What the verbs do with a run: train it, probe it, plan with it, register it, and record all of that.

Each function takes typed values and returns typed values; the verbs parse and print. The driver creates the MLflow run,
rank 0 of the training job writes it, and whatever is measured later goes to the same run.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import torch

from collectors.envs import EnvConfig, make_env
from collectors.envs.base import Quality
from infra.home import Home
from infra.registry import register
from infra.tracking import MlflowTracker
from models.lewm import LeWM
from shards.dataset import Dataset
from trainers.config import TrainConfig, config_id, config_json, flatten
from trainers.evaluation import figures
from trainers.evaluation.latents import held_out
from trainers.evaluation.planning import PlanningConfig, PlanningScore, plan_to_goals
from trainers.evaluation.probing import ProbeReport, probe_model
from trainers.evaluation.scorecard import planning_metrics, write_scorecard
from trainers.export import WorldModel, example_inputs
from trainers.loop import FitSummary, Progress
from trainers.ray_train import train_on_ray
from trainers.rundir import Run, RunRecord

_CURVES = ("train/prediction", "val/prediction", "train/regularizer", "train/regularizer_null")


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that reached its stop step."""

    run: Run
    summary: FitSummary
    run_id: str


def default_run_name(environment: str, preset_name: str) -> str:
    """`cartpole-swingup-tiny-20261123-081530`: readable, sortable, unique a second."""
    return f"{task_name(environment)}-{preset_name}-{time.strftime('%Y%m%d-%H%M%S')}"


def task_name(environment: str) -> str:
    """`dmc/cartpole-swingup` to `cartpole-swingup`."""
    return environment.split("/")[-1]


def train(
    config: TrainConfig,
    home: Home,
    *,
    name: str,
    tracking_uri: str,
    max_failures: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train `config` as the run `name`, or go on with it if it was interrupted. Ray must be initialised.

    Raises ValueError when the run exists with another configuration or dataset.
    """
    dataset = Dataset.open(config.data)
    path = home.runs / name
    if path.exists() and (path / "run.json").exists():
        run = Run.open(path)
        _check_same(run, config, dataset)
        tracker = MlflowTracker.attach(tracking_uri, run.record.mlflow_run_id)
    else:
        tracker = MlflowTracker.create(
            tracking_uri, home.artifacts, experiment=f"lewm/{dataset.environment}", name=name
        )
        record = RunRecord(name, tracker.run_id, dataset.digest, dataset.environment, config_id(config))
        run = Run.create(path, config, record)
        tracker.log_params(flatten(asdict(config)))
        tracker.log_json("config.json", json.loads(config_json(config)))
        tracker.log_dataset(dataset, context="train")
        tracker.set_tags({"config_id": config_id(config), "dataset_digest": dataset.digest, "preset": config.preset})
    try:
        summary = train_on_ray(
            config,
            path,
            make_tracker=partial(MlflowTracker.attach, tracking_uri, tracker.run_id),
            max_failures=max_failures,
            on_progress=on_progress,
        )
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.log_figure("loss_curves", figures.loss_curves(tracker.history(_CURVES)))
    tracker.close()
    return Trained(run, summary, tracker.run_id)


def probe(run: Run, tracker: MlflowTracker, device: torch.device) -> ProbeReport:
    """Probe the newest checkpoint of a run; scorecard, metrics and figures go to the run and its record."""
    config, dataset, model = _open(run, device)
    report = probe_model(model, config, dataset)
    episodes, _ = held_out(dataset)
    write_scorecard(run.path, "probe", report.scorecard)
    tracker.log_json("scorecards/probe.json", asdict(report.scorecard))
    tracker.log_metrics(report.scorecard.metrics(), config.stop_step)
    tracker.log_figure("probe_scatter", figures.probe_scatter(report.fit))
    tracker.log_figure("latent_map", figures.latent_map(report.held_out, report.states, dataset))
    strip = figures.rollout_strip(model, dataset, int(episodes[0]), episodes)
    tracker.log_figure("rollout_strip", strip)
    tracker.flush()
    return report


def plan(run: Run, tracker: MlflowTracker, device: torch.device, config: PlanningConfig) -> PlanningScore:
    """Reach goals of held-out episodes by planning with a run's model; needs a GL backend to have been chosen."""
    train_config, dataset, model = _open(run, device)
    common = dataset.manifest.common
    env = make_env(
        EnvConfig(
            name=dataset.environment,
            size=dataset.size,
            camera=common.camera,
            quality=cast(Quality, common.quality),
            action_repeat=common.action_repeat,
        )
    )
    try:
        result = plan_to_goals(model, dataset, env, config)
    finally:
        env.close()
    write_scorecard(run.path, "plan", result.score)
    tracker.log_json("scorecards/plan.json", asdict(result.score))
    tracker.log_metrics(planning_metrics(result.score), train_config.stop_step)
    tracker.log_figure("planning_strip", figures.planning_strip(result.frames))
    tracker.flush()
    return result.score


def register_model(run: Run, tracker: MlflowTracker) -> tuple[str, str]:
    """Register a run's newest checkpoint as `lewm-<task>`: the model's name and the new version's number."""
    config, dataset, model = _open(run, torch.device("cpu"))
    checkpoint = run.last_checkpoint()
    name = f"lewm-{task_name(dataset.environment)}"
    version = register(
        tracker,
        name=name,
        module=WorldModel(model),
        inputs=example_inputs(model),
        files=[checkpoint / "model.safetensors", checkpoint / "config.json"],
        tags={"dataset_digest": dataset.digest, "config_id": config_id(config), "preset": config.preset},
    )
    return name, version


def _open(run: Run, device: torch.device) -> tuple[TrainConfig, Dataset, LeWM]:
    config = run.config
    dataset = Dataset.open(config.data)
    if dataset.digest != run.record.dataset_digest:
        raise ValueError(
            f"{config.data} is not the dataset that {run.path.name} was trained on: its digest is "
            f"{dataset.digest[:12]}, the run's {run.record.dataset_digest[:12]}"
        )
    return config, dataset, run.load_model(device)


def _check_same(run: Run, config: TrainConfig, dataset: Dataset) -> None:
    if dataset.digest != run.record.dataset_digest:
        raise ValueError(
            f"run {run.record.name} was trained on the dataset {run.record.dataset_digest[:12]}, {config.data} is "
            f"{dataset.digest[:12]}: choose another --name"
        )
    before, now = flatten(asdict(run.config)), flatten(asdict(config))
    changed = [f"{key} was {before[key]!r}, is {now[key]!r}" for key in sorted(now) if before[key] != now[key]]
    if changed:
        raise ValueError(f"run {run.record.name} exists with another configuration: {'; '.join(changed)}")
