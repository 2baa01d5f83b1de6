"""The demo: the whole line on cartpole, from an empty directory to a registered, probed model.

Collects episodes with Ray actors, trains the `tiny` preset in a Ray Train job, probes the latents, plans to goals,
registers the model and records all of it in MLflow. Every number in its report was measured in this run. The size is
chosen for two CPU cores and six minutes; on a GPU the training is longer.
"""

import os
import time
from dataclasses import dataclass, replace

import torch

from collectors.config import CollectConfig
from collectors.envs import EnvConfig
from collectors.fleet import CollectSummary
from collectors.policies import named_policy
from infra import workflows
from infra.console import say
from infra.home import Home
from infra.line import collect_episodes, train_model
from infra.tracking import MlflowTracker
from trainers.config import train_preset
from trainers.evaluation.planning import PlanningConfig, PlanningScore
from trainers.evaluation.scorecard import ProbeScorecard

ENVIRONMENT = "dmc/cartpole-swingup"
STOP_STEP = {"cpu": 2200, "cuda": 20_000}


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """Size of the demo. The defaults are what the README's figures were made with."""

    seed: int = 0
    """Seed of data, training and evaluation."""
    episodes: int = 220
    """Episodes to collect."""
    steps: int = 120
    """Decisions in an episode, of 0.02 s."""
    train_steps: int | None = None
    """Training steps; 2,200 on a CPU and 20,000 on a GPU unless given."""
    goals: int = 16
    """Goals to plan for."""
    workers: int = len(os.sched_getaffinity(0))
    """Actors that collect, one core each."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo measured. `seconds` is the whole demo, from call to report."""

    environment: str
    seed: int
    device: str
    collection: CollectSummary
    training_steps: int
    training_steps_per_second: float
    training_seconds: float
    data_wait_share: float
    probe: ProbeScorecard
    planning: PlanningScore
    model: str
    model_version: str
    model_aliases: tuple[str, ...]
    run: str
    run_id: str
    seconds: float


def run_demo(settings: DemoSettings, home: Home, device: str) -> DemoReport:
    """Run the demo in `home`. Data of the same settings and seed that is there already is used again."""
    began = time.perf_counter()
    collection = _collect(settings, home)
    config = replace(
        train_preset("tiny", collection.path),
        seed=settings.seed,
        stop_step=settings.train_steps or STOP_STEP[device],
        device=device,
    )
    name = workflows.default_run_name(ENVIRONMENT, f"demo-s{settings.seed}")
    trained = train_model(config, home, name)
    tracker = MlflowTracker.attach(home.tracking_uri, trained.run_id)
    try:
        say("probing the latents for physical state, beside a random encoder and the pixels' PCA")
        probed = workflows.probe(trained.run, tracker, torch.device(device))
        say(f"planning to {settings.goals} goals of held-out episodes")
        planning = PlanningConfig(goals=settings.goals, seed=settings.seed)
        planned = workflows.plan(trained.run, tracker, torch.device(device), planning)
        say("registering the model")
        registered = workflows.register_model(trained.run, tracker)
    finally:
        tracker.close()
    return DemoReport(
        environment=ENVIRONMENT,
        seed=settings.seed,
        device=device,
        collection=collection,
        training_steps=trained.summary.steps,
        training_steps_per_second=trained.summary.steps_per_second,
        training_seconds=trained.summary.seconds,
        data_wait_share=trained.summary.data_wait_share,
        probe=probed.scorecard,
        planning=planned,
        model=registered.name,
        model_version=registered.version,
        model_aliases=("champion",) if registered.moved else (),
        run=str(trained.run.path),
        run_id=trained.run_id,
        seconds=time.perf_counter() - began,
    )


def _collect(settings: DemoSettings, home: Home) -> CollectSummary:
    config = CollectConfig(
        env=EnvConfig(name=ENVIRONMENT),
        policy=named_policy("mixed"),
        episodes=settings.episodes,
        steps=settings.steps,
        seed=settings.seed,
        random_start=0.5,
    )
    return collect_episodes(config, home.data / f"demo-cartpole-{config.config8}-{settings.seed}", settings.workers)
