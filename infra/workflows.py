"""What the verbs do with a run: train it, probe it, plan with it, register it, and record all of that.

Each function takes typed values and returns typed values; the verbs parse and print. The driver creates the MLflow run,
rank 0 of the training job writes it, and whatever is measured later goes to the same run.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from collectors.envs import make_env
from collectors.locks import locked
from infra.card import model_card
from infra.home import Home
from infra.registry import SCORE, Promotion, made_from, promote, register, set_score
from infra.report import gather, page
from infra.tracking import MlflowTracker
from models.lewm import LeWM
from shards.atomic import write_atomically
from shards.dataset import Dataset
from trainers.checkpoint import best_checkpoint, complete_checkpoints
from trainers.config import TrainConfig, check_resumable, config_id, config_json, flatten
from trainers.evaluation import figures, surprise_figures
from trainers.evaluation.control import ControlConfig, ControlScorecard, judge_control
from trainers.evaluation.latents import held_out
from trainers.evaluation.planning import PlanningConfig, PlanningScore, plan_to_goals
from trainers.evaluation.probing import ProbeReport, probe_model
from trainers.evaluation.scorecard import ProbeScorecard, planning_metrics, write_scorecard
from trainers.evaluation.surprise import SurpriseConfig, SurpriseReport, frames_around, judge_surprise
from trainers.export import WorldModel, example_inputs
from trainers.heads import save_heads
from trainers.loop import FitSummary, Progress
from trainers.ray_train import train_on_ray
from trainers.rundir import Run, RunRecord, load_model

_log = logging.getLogger(__name__)
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

    A run that goes on may change where and how fast it computes, not what (`trainers.config.FREE`). ValueError, which
    shows the difference, when the run exists with another configuration or dataset.
    """
    dataset = Dataset.open(config.data)
    path = home.runs / name
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if (path / "run.json").exists():
            run = Run.open(path)
            _check_same(run, config, dataset)
            run = Run.create(path, config, replace(run.record, config_id=config_id(config)))
            tracker = MlflowTracker.attach(tracking_uri, run.record.mlflow_run_id)
        else:
            tracker = _new_record(tracking_uri, home, dataset, name)
            record = RunRecord(name, tracker.run_id, dataset.digest, dataset.environment, config_id(config))
            run = Run.create(path, config, record)
        try:
            _describe(tracker, config, dataset)
            summary = train_on_ray(
                config,
                path,
                make_tracker=partial(MlflowTracker.resume, tracking_uri, tracker.run_id, path),
                max_failures=max_failures,
                on_progress=on_progress,
            )
        except BaseException as error:
            _conclude(tracker, run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        _conclude(tracker, run, "FINISHED")
    return Trained(run, summary, tracker.run_id)


def _conclude(tracker: MlflowTracker, run: Run, status: str) -> None:
    """The end of a run's record: its curves, and what checkpoints there are. A store that is away spoils no run."""
    from mlflow.exceptions import MlflowException

    try:
        tracker.drain(run.path)
        tracker.log_figure("loss_curves", figures.loss_curves(tracker.history(_CURVES)))
        tracker.log_json("checkpoints.json", checkpoint_table(run.path / "checkpoints"))
        tracker.close(status)
    except (MlflowException, OSError) as error:
        _log.warning("the record of %s lacks its end: %s", run.record.name, " ".join(str(error).split()))


def checkpoint_table(directory: Path) -> list[dict[str, Any]]:
    """What the record says of every checkpoint: step, size, what was measured at it, and whether it is the best."""
    complete = complete_checkpoints(directory)
    best = best_checkpoint(complete)
    return [
        {
            "step": _step(path),
            "path": str(path),
            "bytes": sum(file.stat().st_size for file in path.iterdir()),
            "metrics": json.loads((path / "state.json").read_text()).get("metrics", {}),
            "best": path == best,
        }
        for path in complete
    ]


def record_of(run: Run, home: Home) -> MlflowTracker:
    """The MLflow run of a run directory. A run whose weights were imported gets one here."""
    if run.record.mlflow_run_id:
        return MlflowTracker.attach(home.tracking_uri_to_read(), run.record.mlflow_run_id, run.path)
    config, name = run.config, run.record.name
    if not config.data:
        raise ValueError(f"{name} was imported without a dataset: `lewm models import` it again, with --data")
    dataset = Dataset.open(config.data)
    tracker = _new_record(home.tracking_uri, home, dataset, name)
    Run.create(run.path, config, replace(run.record, mlflow_run_id=tracker.run_id))
    _describe(tracker, config, dataset)
    tracker.set_tags({"imported": "true"})
    tracker.close("FINISHED")
    return tracker


def _new_record(tracking_uri: str, home: Home, dataset: Dataset, name: str) -> MlflowTracker:
    return MlflowTracker.create(tracking_uri, home.artifacts, experiment=f"lewm/{dataset.environment}", name=name)


def _describe(tracker: MlflowTracker, config: TrainConfig, dataset: Dataset) -> None:
    """What is trained, on what. Said once; the tags come last, so that a description that was cut off is made good."""
    if "config_id" in tracker.client.get_run(tracker.run_id).data.tags:
        return
    tracker.log_params(flatten(asdict(config)))
    tracker.log_json("config.json", json.loads(config_json(config)))
    tracker.log_dataset(dataset, context="train")
    tracker.set_tags({"config_id": config_id(config), "dataset_digest": dataset.digest, "preset": config.preset})


def probe(
    run: Run,
    tracker: MlflowTracker,
    device: torch.device,
    *,
    seed: int = 0,
    on_probe: Callable[[int, int], None] | None = None,
) -> ProbeReport:
    """Probe the newest checkpoint of a run; scorecard, metrics and figures go to the run and its record."""
    checkpoint, config, dataset, model = _open(run, device)
    step = _step(checkpoint)
    report = probe_model(model, config, dataset, seed=seed, on_probe=on_probe)
    episodes, _ = held_out(dataset)
    write_scorecard(run.path, "probe", report.scorecard)
    tracker.log_json("scorecards/probe.json", asdict(report.scorecard))
    tracker.log_metrics(report.scorecard.metrics(), step)
    for each in made_from(tracker.run_id, step, tracker.tracking_uri):
        score, card = report.scorecard.r2_mean_validation, _card(each.name, run, step, dataset, model, report.scorecard)
        set_score(each.name, each.version, tracker.tracking_uri, score, card)
    tracker.log_figure("probe_scatter", figures.probe_scatter(report.fits))
    tracker.log_figure("latent_map", figures.latent_map(report.held_out, report.states, dataset))
    strip = figures.rollout_strip(model, dataset, int(episodes[0]), episodes)
    tracker.log_figure("rollout_strip", strip)
    tracker.flush()
    return report


def surprise(
    run: Run,
    tracker: MlflowTracker,
    device: torch.device,
    settings: SurpriseConfig,
    on_episode: Callable[[int, int], None] | None = None,
) -> SurpriseReport:
    """Judge the newest checkpoint of a run by events in the simulator; needs a GL backend to have been chosen."""
    from trainers.evaluation.events import EVENTS  # MuJoCo, whose import fixes the GL backend
    from trainers.evaluation.rollouts import Stage, recorded_environment

    checkpoint, config, dataset, model = _open(run, device)
    step = _step(checkpoint)
    before, after = frames_around(config.model, settings)
    stage = Stage(make_env(recorded_environment(dataset)), dataset, before=before, after=after)
    try:
        report = judge_surprise(model, dataset, stage, EVENTS, settings, on_episode)
    finally:
        stage.close()
    write_scorecard(run.path, "surprise", report.scorecard)
    tracker.log_json("scorecards/surprise.json", asdict(report.scorecard))
    tracker.log_metrics(report.scorecard.metrics(), step)
    for score in ("prediction", "mahalanobis"):
        curves = surprise_figures.score_curves(report, list(report.events), score)
        tracker.log_figure(f"surprise_{score}", curves)
    tracker.log_figure("surprise_auroc", surprise_figures.auroc_table(report.scorecard))
    for label in report.events:
        if label.endswith("(large)"):
            name = f"surprise_{label.removesuffix(' (large)')}.gif"
            tracker.log_artifact(surprise_figures.write_clip(run.path / "figures" / name, report, label), "figures")
    tracker.flush()
    return report


def plan(run: Run, tracker: MlflowTracker, device: torch.device, config: PlanningConfig) -> PlanningScore:
    """Reach goals of held-out episodes by planning with a run's model; needs a GL backend to have been chosen."""
    from trainers.evaluation.rollouts import recorded_environment  # MuJoCo, whose import fixes the GL backend

    checkpoint, _, dataset, model = _open(run, device)
    step = _step(checkpoint)
    env = make_env(recorded_environment(dataset))
    try:
        result = plan_to_goals(model, dataset, env, config)
    finally:
        env.close()
    write_scorecard(run.path, "plan", result.score)
    tracker.log_json("scorecards/plan.json", asdict(result.score))
    tracker.log_metrics(planning_metrics(result.score), step)
    tracker.log_figure("planning_strip", figures.planning_strip(result.frames))
    tracker.flush()
    return result.score


def control(
    run: Run, tracker: MlflowTracker, device: torch.device, settings: ControlConfig, say: Callable[[str], None]
) -> ControlScorecard:
    """Fit control heads on the newest checkpoint of a run, and measure their returns; the heads are written to
    `heads/control-<seed>.safetensors`. Needs a GL backend to have been chosen."""
    from trainers.evaluation.rollouts import recorded_environment  # MuJoCo, whose import fixes the GL backend

    checkpoint, _, dataset, model = _open(run, device)
    step = _step(checkpoint)
    env = make_env(recorded_environment(dataset))
    try:
        result = judge_control(model, dataset, env, settings, say)
    finally:
        env.close()
    save_heads(result.heads, run.path / "heads" / f"control-{settings.seed}.safetensors")
    write_scorecard(run.path, "control", result.scorecard)
    tracker.log_json("scorecards/control.json", asdict(result.scorecard))
    tracker.log_metrics(result.scorecard.metrics(), step)
    tracker.log_figure("control_strip", figures.episode_strip(result.frames))
    tracker.flush()
    return result.scorecard


def report(runs: Sequence[Run], home: Home, path: Path) -> None:
    """Write the page about some runs to `path`, and log it to each of them."""
    trackers = [record_of(run, home) for run in runs]
    try:
        stories = [
            gather(run, tracker, run.load_model(torch.device("cpu")))
            for run, tracker in zip(runs, trackers, strict=True)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page(stories).encode())
        for tracker in trackers:
            tracker.log_artifact(path, "report")
    finally:
        for tracker in trackers:
            tracker.close()


def register_model(run: Run, tracker: MlflowTracker, *, again: bool = True) -> Promotion:
    """Register a run's newest checkpoint as a new version of `lewm-<task>`, and make it the champion if it may be.

    Unless `again`, a checkpoint that is registered already stays at its version.
    """
    step = checkpoint_step(run)
    if not again and (made := made_from(tracker.run_id, step, tracker.tracking_uri)):
        newest = max(made, key=lambda each: int(each.version))
        return Promotion(newest.name, newest.version, False, "it is registered already")
    checkpoint, config, dataset, model = _open(run, torch.device("cpu"))
    step = _step(checkpoint)
    name = f"lewm-{task_name(dataset.environment)}"
    probed = dict(tracker.history([SCORE])[SCORE])
    scorecard = _probe_scorecard(run) if step in probed else None
    version = register(
        tracker,
        name=name,
        module=WorldModel(model),
        inputs=example_inputs(model),
        files=[checkpoint / "model.safetensors", checkpoint / "config.json"],
        tags={"dataset_digest": dataset.digest, "config_id": config_id(config), "preset": config.preset},
        step=step,
        score=probed.get(step),
        card=_card(name, run, step, dataset, model, scorecard),
    )
    return promote(name, version, tracker.tracking_uri)


def checkpoint_step(run: Run) -> int:
    """The step of a run's newest checkpoint, which is what evaluations are of."""
    return _step(run.last_checkpoint())


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _card(name: str, run: Run, step: int, dataset: Dataset, model: LeWM, probe: ProbeScorecard | None) -> str:
    state = json.loads((run.path / "checkpoints" / f"step_{step:09d}" / "state.json").read_text())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    validation = state.get("metrics", {})
    return model_card(
        name, run.record.name, step, run.config, dataset, parameters=parameters, validation=validation, probe=probe
    )


def _probe_scorecard(run: Run) -> ProbeScorecard | None:
    path = run.path / "scorecards" / "probe.json"
    return TypeAdapter(ProbeScorecard).validate_json(path.read_bytes()) if path.is_file() else None


def _open(run: Run, device: torch.device) -> tuple[Path, TrainConfig, Dataset, LeWM]:
    """The newest checkpoint of now, which a run in training soon has others than, and its model."""
    config = run.config
    dataset = Dataset.open(config.data)
    if dataset.digest != run.record.dataset_digest:
        raise ValueError(
            f"{config.data} is not the dataset that {run.path.name} was trained on: its digest is "
            f"{dataset.digest[:12]}, the run's {run.record.dataset_digest[:12]}"
        )
    checkpoint = run.last_checkpoint()
    return checkpoint, config, dataset, load_model(config.model, checkpoint, device)


def _check_same(run: Run, config: TrainConfig, dataset: Dataset) -> None:
    if dataset.digest != run.record.dataset_digest:
        raise ValueError(
            f"run {run.record.name} was trained on the dataset {run.record.dataset_digest[:12]}, {config.data} is "
            f"{dataset.digest[:12]}: choose another --name"
        )
    check_resumable(run.config, config, f"run {run.record.name}")
