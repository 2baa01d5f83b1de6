"""One task from nothing to a judged, registered model: the stages of a recipe, each done once.

What is done is noted in `stages.json` of the run directory, with a hash of what it was done with and how long it took.
A stage whose note is there, and whose result is, is passed over: after an interruption, by whatever, the same command
goes on with what is missing. Collection and training go on in the middle; an evaluation that was cut short begins anew.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from collectors.cluster import ensure_ray
from collectors.config import CollectConfig
from collectors.fleet import CollectSummary, collect
from infra import workflows
from infra.console import collection_note, progress, say, training_note
from infra.home import Home
from infra.recipes import Recipe
from infra.registry import CHAMPION, made_from
from infra.tracking import MlflowTracker
from shards.atomic import write_atomically
from shards.dataset import Dataset
from trainers.config import TrainConfig, check_resumable
from trainers.evaluation.control import ControlScorecard
from trainers.evaluation.planning import PlanningScore
from trainers.evaluation.scorecard import ProbeScorecard, read_scorecard
from trainers.evaluation.surprise import SurpriseScorecard
from trainers.rundir import Run

_PROBES = 16
"""Probes fitted: two kinds, four sources, two windows."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """A stage that is done, by this call or before it (`done_before`), and the seconds of the call that finished it."""

    name: str
    seconds: float
    done_before: bool


@dataclass(frozen=True, slots=True)
class LineReport:
    """What a recipe came to. `seconds` is the sum over stages, whenever they were done."""

    environment: str
    seed: int
    device: str
    run: str
    episodes: int
    frames: int
    training_steps: int
    parameters: int
    stages: tuple[StageReport, ...]
    seconds: float
    probe: ProbeScorecard
    surprise: SurpriseScorecard
    planning: PlanningScore
    control: ControlScorecard
    model: str
    model_version: str
    champion: bool
    report: str


def run_recipe(recipe: Recipe, home: Home, *, name: str, device: str, workers: int) -> LineReport:
    """Do what of `recipe` is not done yet as the run `name`. A GL backend must have been chosen.

    ValueError when a run of this name was made by another recipe.
    """
    path = home.runs / name
    stages = _Stages(path / "stages.json")
    data = home.data / f"{workflows.task_name(recipe.environment)}-{recipe.collect.config8}-{recipe.collect.seed}"

    stages.do(
        "collect",
        (recipe.collect,),
        done=lambda: _recorded(data) >= recipe.collect.episodes,
        action=lambda: collect_episodes(recipe.collect, data, workers),
    )
    dataset = Dataset.open(data)
    config = replace(recipe.train, data=str(data), device=device)
    # A run that is there is checked against the recipe whether it is finished or not.
    if (path / "run.json").exists():
        check_resumable(Run.open(path).config, config, f"run {name}")
    stages.do(
        "train",
        (dataset.digest, recipe.train),
        done=lambda: _trained(path) >= config.stop_step,
        action=lambda: train_model(config, home, name),
    )
    run = Run.open(path)
    step, target = workflows.checkpoint_step(run), torch.device(device)
    same = (dataset.digest, step)

    def judge(stage: str, settings: Any, action: Callable[[MlflowTracker], object]) -> None:
        """An evaluation, whose scorecard is its result."""
        card = path / "scorecards" / f"{stage}.json"
        stages.do(stage, (*same, settings), done=card.is_file, action=lambda: _recording(run, home, action))

    def probe(tracker: MlflowTracker) -> None:
        with progress("probe", _PROBES, "probes") as bar:
            workflows.probe(run, tracker, target, seed=config.seed, on_probe=lambda done, _: bar.update(done))

    def surprise(tracker: MlflowTracker) -> None:
        with progress("surprise", recipe.surprise.episodes, "episodes") as bar:
            workflows.surprise(run, tracker, target, recipe.surprise, on_episode=lambda done, _: bar.update(done))

    judge("probe", config.seed, probe)
    judge("surprise", recipe.surprise, surprise)
    judge("plan", recipe.plan, lambda tracker: workflows.plan(run, tracker, target, recipe.plan))
    judge("control", recipe.control, lambda tracker: workflows.control(run, tracker, target, recipe.control, say))

    def versions() -> list[Any]:
        return made_from(run.record.mlflow_run_id, step, home.tracking_uri_to_read())

    stages.do(
        "register",
        same,
        done=lambda: bool(versions()),
        action=lambda: versions() or _recording(run, home, lambda tracker: workflows.register_model(run, tracker)),
    )
    page = path / "report.html"
    stages.do(
        "report",
        tuple(stages.keys()),
        done=lambda: page.is_file() and not stages.any_done,
        action=lambda: workflows.report([run], home, page),
    )
    model, reports = versions()[-1], stages.reports()
    return LineReport(
        environment=recipe.environment,
        seed=config.seed,
        device=device,
        run=str(path),
        episodes=len(dataset),
        frames=dataset.manifest.n_frames,
        training_steps=step,
        parameters=sum(parameter.numel() for parameter in run.load_model(torch.device("cpu")).parameters()),
        stages=reports,
        seconds=sum(stage.seconds for stage in reports),
        probe=_card(path, "probe", ProbeScorecard),
        surprise=_card(path, "surprise", SurpriseScorecard),
        planning=_card(path, "plan", PlanningScore),
        control=_card(path, "control", ControlScorecard),
        model=model.name,
        model_version=model.version,
        champion=CHAMPION in model.aliases,
        report=str(page),
    )


def collect_episodes(config: CollectConfig, path: Path, workers: int) -> CollectSummary:
    """Record into `path` what of `config` it does not hold yet, with a bar. Starts a local Ray."""
    say(f"collecting {config.episodes} episodes of {config.env.name} with {workers} Ray actors")
    ensure_ray()
    with progress("collect", config.episodes, "episodes") as bar:
        return collect(
            config,
            path,
            workers=workers,
            on_progress=lambda line: bar.update(line.episodes, collection_note(line)),
        )


def train_model(config: TrainConfig, home: Home, name: str) -> workflows.Trained:
    """Train `config` as the run `name`, with a bar. Starts a local Ray."""
    say(f"training the preset {config.preset} for {config.stop_step:,} steps on {config.device}, run {name}")
    ensure_ray()
    with progress("train", config.stop_step, "steps") as bar:
        return workflows.train(
            config,
            home,
            name=name,
            tracking_uri=home.tracking_uri,
            on_progress=lambda line: bar.update(line.step, training_note(line.metrics)),
        )


class _Stages:
    """The notes of a run: which stages are done, with what, in how many seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._notes: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        self._reports: list[StageReport] = []

    def do(
        self, name: str, settings: tuple[Any, ...], *, done: Callable[[], bool], action: Callable[[], object]
    ) -> None:
        """Do `action` unless the note says that it was done with these settings and `done` that its result is there."""
        key, note = _key(settings), self._notes.get(name)
        if note is not None and note["key"] == key and done():
            self._reports.append(StageReport(name, note["seconds"], done_before=True))
            return
        say(f"[{name}]")
        began = time.perf_counter()
        action()
        seconds = time.perf_counter() - began
        self._notes[name] = {"key": key, "seconds": seconds}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, (json.dumps(self._notes, indent=2) + "\n").encode())
        self._reports.append(StageReport(name, seconds, done_before=False))

    @property
    def any_done(self) -> bool:
        """Whether this call did one so far."""
        return any(not report.done_before for report in self._reports)

    def keys(self) -> list[str]:
        """Of the stages so far."""
        return [self._notes[report.name]["key"] for report in self._reports]

    def reports(self) -> tuple[StageReport, ...]:
        return tuple(self._reports)


def _key(settings: tuple[Any, ...]) -> str:
    plain = [asdict(each) if is_dataclass(each) and not isinstance(each, type) else each for each in settings]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _recorded(path: Path) -> int:
    return len(Dataset.open(path)) if (path / "manifest.json").is_file() else 0


def _trained(path: Path) -> int:
    """The step of the newest checkpoint of what may be a run; -1 without one."""
    try:
        return workflows.checkpoint_step(Run.open(path))
    except ValueError:
        return -1


def _recording(run: Run, home: Home, action: Callable[[MlflowTracker], object]) -> None:
    tracker = workflows.record_of(run, home)
    try:
        action(tracker)
    finally:
        tracker.close()


def _card(run: Path, kind: str, expected: type[Any]) -> Any:
    card = read_scorecard(run, kind, expected)
    assert card is not None, kind
    return card
