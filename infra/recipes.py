"""Recipes: all that it takes to bring one task from nothing to a judged model, as data.

A recipe holds the configuration of every stage of `lewm run`, each of the type that the stage's own verb takes. Tasks
differ in a few facts (`TASKS`), scales in sizes (`small`, `full`); the stages themselves do not know them. `small` is
for two CPU cores and an hour; `full` is the paper's model at 64 px with its training recipe, for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from collectors.config import CollectConfig
from collectors.envs.base import EnvConfig
from collectors.policies import named_policy
from models.control import HeadsConfig
from models.planners import ICEMConfig, MPPIConfig
from trainers.config import TrainConfig, train_preset
from trainers.evaluation.control import ControlConfig, ControlPlanner, DaggerConfig
from trainers.evaluation.planning import PlanningConfig
from trainers.evaluation.surprise import SurpriseConfig
from trainers.heads import HeadsTraining

Scale = Literal["small", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What `lewm run` does for a task: the configuration of every stage. `train.data` is filled when there is data."""

    collect: CollectConfig
    train: TrainConfig
    surprise: SurpriseConfig
    plan: PlanningConfig
    control: ControlConfig

    @property
    def environment(self) -> str:
        return self.collect.env.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What sets one task apart from the others. Lengths of episodes are in decisions; None is the environment's own."""

    preset: str
    """At full scale."""
    random_start: float
    """Share of recorded episodes that begin in a random configuration."""
    recorded: int
    played: int | None = None


TASKS = {
    "dmc/cartpole-swingup": Task(preset="dmc", random_start=0.5, recorded=200),
    "dmc/reacher-easy": Task(preset="dmc", random_start=0.5, recorded=200),
    "dmc/walker-walk": Task(preset="dmc", random_start=0.3, recorded=200),
    "metaworld/pick-place-v3": Task(preset="metaworld", random_start=0.3, recorded=150, played=150),
}


def recipe(environment: str, scale: Scale, seed: int) -> Recipe:
    """The recipe of a task at a scale; ValueError with the closest names where there is none."""
    if environment not in TASKS:
        hint = get_close_matches(environment, TASKS, n=1)
        close = f", did you mean {hint[0]}" if hint else ""
        raise ValueError(f"there is no recipe for {environment!r}{close}? Choose from {', '.join(TASKS)}")
    return SCALES[scale](environment, TASKS[environment], seed)


def small(environment: str, task: Task, seed: int) -> Recipe:
    """Two CPU cores, an hour."""
    return Recipe(
        collect=_collect(environment, task, seed, episodes=500),
        train=_tiny(seed),
        surprise=SurpriseConfig(episodes=20, seed=seed),
        plan=PlanningConfig(goals=16, seed=seed),
        control=ControlConfig(
            episodes=20,
            decisions=task.played,
            seed=seed,
            dagger=DaggerConfig(rounds=4, episodes=10),
            planner=ControlPlanner(solver=MPPIConfig(samples=32, iterations=2, elites=8, horizon=2)),
        ),
    )


def _tiny(seed: int) -> TrainConfig:
    """A stack spans 0.08 s on dm_control instead of 0.04, which shows a pole's speed better."""
    base = train_preset("tiny", "")
    return replace(base, model=replace(base.model, stack_stride=2), stop_step=12_000, seed=seed)


def full(environment: str, task: Task, seed: int) -> Recipe:
    """One GPU and some hours. The latents are of single frames, so the heads look at three."""
    return Recipe(
        collect=_collect(environment, task, seed, episodes=5000),
        train=replace(train_preset(task.preset, ""), seed=seed),
        surprise=SurpriseConfig(episodes=200, seed=seed),
        plan=PlanningConfig(goals=200, seed=seed, solver=ICEMConfig()),
        control=ControlConfig(
            episodes=50,
            decisions=task.played,
            seed=seed,
            training=HeadsTraining(steps=50_000, batch_size=1024, heads=HeadsConfig(window=3, hidden=512, members=5)),
            dagger=DaggerConfig(rounds=10, episodes=50),
            planner=ControlPlanner(solver=MPPIConfig(samples=512, iterations=6, elites=64, horizon=3)),
        ),
    )


SCALES: dict[Scale, Callable[[str, Task, int], Recipe]] = {"small": small, "full": full}


def _collect(environment: str, task: Task, seed: int, *, episodes: int) -> CollectConfig:
    """Three noises and four noisy experts, in equal parts: what every policy after it is compared with."""
    return CollectConfig(
        env=EnvConfig(name=environment),
        policy=named_policy("mixed"),
        episodes=episodes,
        seed=seed,
        steps=task.recorded,
        random_start=task.random_start,
    )
