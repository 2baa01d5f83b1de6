"""Reaching goal images: from a state of a held-out episode to the one that followed it, planned in latent space.

For every goal the simulator is put into the exact start state, by replaying the recorded actions. The goal is the
stack of frames that the episode shows `horizon` blocks later, so it can be reached in that time. The planner
(model-predictive: plan the remaining blocks, execute one, look again, go on from the rest of the plan) is compared with
uniform random actions from the same starts. Distance is measured in physical state, never in latents: root mean square
over the observable columns, each in units of its standard deviation on training data, angles as sine and cosine.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from collectors.envs import Env
from collectors.rollout import replay
from models.lewm import LeWM
from models.planners import CEMConfig, PlannerConfig, WarmStart, goal_objective, planner_name, solve
from shards.dataset import Dataset
from shards.episode import StateColumn
from trainers.evaluation.latents import held_out, observations


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanningConfig:
    """How goals are drawn and planned for."""

    goals: int = 16
    seed: int = 0
    random_repeats: int = 8
    minimum_distance: float = 0.5
    """Starts nearer to their goal than this are drawn again: they would be solved by doing nothing."""
    solver: PlannerConfig = field(default_factory=CEMConfig)


@dataclass(frozen=True, slots=True)
class PlanningScore:
    """Distances to the goal, in standard deviations, averaged over goals. `progress` is 1 - final / start."""

    goals: int
    episodes: str
    decisions: int
    start_distance: float
    planned_distance: float
    random_distance: float
    planned_progress: float
    random_progress: float
    planned_closer: float
    """Share of goals for which planning ended closer than the mean of the random attempts."""
    seconds_per_solve: float
    planner: str
    """`cem`, `icem` or `mppi`."""


@dataclass(frozen=True, slots=True)
class PlanningResult:
    """The score, and one row of frames a goal (start, planned end, goal) for the figure."""

    score: PlanningScore
    frames: np.ndarray


@dataclass(slots=True)
class _Attempt:
    """One goal being worked on: simulator state, the frames seen, and what the goal is."""

    state: Any
    frames: list[np.ndarray]
    physical: np.ndarray
    goal_stack: np.ndarray
    goal_physical: np.ndarray


def plan_to_goals(model: LeWM, dataset: Dataset, env: Env, config: PlanningConfig) -> PlanningResult:
    """Plan `config.goals` goals of held-out episodes at once; `env` is the dataset's environment."""
    distance = _Distance(dataset)
    rng = np.random.default_rng(config.seed)
    episodes, split = held_out(dataset)
    decisions = config.solver.horizon * model.config.frame_skip
    attempts = [
        _start(model, dataset, env, episode, start, decisions)
        for episode, start in _draw(dataset, episodes, model, decisions, distance, rng, config)
    ]
    start_frames = [attempt.frames[-1] for attempt in attempts]
    start = np.array([distance(attempt.physical, attempt.goal_physical) for attempt in attempts])
    random = _random_distances(env, attempts, decisions, distance, rng, config.random_repeats)
    seconds = _control(model, env, attempts, config)
    planned = np.array([distance(attempt.physical, attempt.goal_physical) for attempt in attempts])
    score = PlanningScore(
        goals=len(attempts),
        episodes=split,
        decisions=decisions,
        start_distance=float(start.mean()),
        planned_distance=float(planned.mean()),
        random_distance=float(random.mean()),
        planned_progress=float(1 - planned.mean() / start.mean()),
        random_progress=float(1 - random.mean() / start.mean()),
        planned_closer=float((planned < random.mean(axis=1)).mean()),
        seconds_per_solve=seconds,
        planner=planner_name(config.solver),
    )
    frames = [
        (first, attempt.frames[-1], attempt.goal_stack[-1])
        for first, attempt in zip(start_frames, attempts, strict=True)
    ]
    return PlanningResult(score, np.array(frames))


class _Distance:
    """Root mean square difference of two physical states over the observable columns, standardised."""

    def __init__(self, dataset: Dataset) -> None:
        self.columns: Sequence[StateColumn] = dataset.columns
        self.std = np.asarray(dataset.manifest.statistics.state_std)

    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        terms = []
        for index, column in enumerate(self.columns):
            if column.observable == "hidden":
                continue
            if column.periodic:
                terms += [np.sin(a[index]) - np.sin(b[index]), np.cos(a[index]) - np.cos(b[index])]
            else:
                terms.append((a[index] - b[index]) / self.std[index])
        return float(np.sqrt(np.mean(np.square(terms))))


def _draw(
    dataset: Dataset,
    episodes: np.ndarray,
    model: LeWM,
    decisions: int,
    distance: _Distance,
    rng: np.random.Generator,
    config: PlanningConfig,
) -> list[tuple[int, int]]:
    """(episode, start frame) of every goal, at most one an episode while there are enough, none already solved."""
    first = (model.config.stack - 1) * model.config.stack_stride
    pairs: list[tuple[int, int]] = []
    for _ in range(20):
        for episode in rng.permutation(episodes):
            latest = int(dataset.lengths[episode]) - decisions
            if latest < first or len(pairs) == config.goals:
                continue
            start = int(rng.integers(first, latest + 1))
            state = dataset.state(int(episode))
            if distance(state[start], state[start + decisions]) >= config.minimum_distance:
                pairs.append((int(episode), start))
        if len(pairs) == config.goals:
            return pairs
    raise ValueError(
        f"only {len(pairs)} of {config.goals} goals could be drawn from {len(episodes)} held-out episodes of "
        f"{dataset.path}: ask for fewer goals or collect longer episodes (a goal is {decisions} decisions ahead)"
    )


def _start(model: LeWM, dataset: Dataset, env: Env, episode: int, start: int, decisions: int) -> _Attempt:
    """Put the simulator into the start state and read the goal from the recording."""
    recorded = dataset.read_episode(episode)
    replay(env, recorded.info, recorded.action, start)
    if not np.allclose(env.physical_state(), recorded.state[start], atol=1e-4):
        raise RuntimeError(
            f"replaying {recorded.info.key} does not lead to its recorded state: "
            f"were the simulators changed since it was collected ({dict(recorded.info.versions)})?"
        )
    stack = observations(recorded.frames, np.array([start, start + decisions]), model.config)
    first = max(0, start - (model.config.stack - 1) * model.config.stack_stride)
    return _Attempt(
        state=env.get_state(),
        frames=list(recorded.frames[first : start + 1]),
        physical=recorded.state[start],
        goal_stack=stack[1],
        goal_physical=recorded.state[start + decisions],
    )


def _random_distances(
    env: Env, attempts: list[_Attempt], decisions: int, distance: _Distance, rng: np.random.Generator, repeats: int
) -> np.ndarray:
    """Final distances (goals, repeats) of uniform random actions."""
    result = np.empty((len(attempts), repeats))
    for index, attempt in enumerate(attempts):
        for repeat in range(repeats):
            env.set_state(attempt.state)
            for _ in range(decisions):
                env.step(rng.uniform(-1, 1, env.spec.action_size).astype(np.float32))
            result[index, repeat] = distance(env.physical_state(), attempt.goal_physical)
    return result


def _control(model: LeWM, env: Env, attempts: list[_Attempt], config: PlanningConfig) -> float:
    """Drive every attempt towards its goal, in place; seconds of planning a solve for all of them."""
    device = model.pixel_mean.device
    skip, actions = model.config.frame_skip, env.spec.action_size
    mean_K, std_K = model.action_mean.repeat(skip), model.action_std.repeat(skip)
    generators = [torch.Generator(device).manual_seed(config.seed * 100_003 + index) for index in range(len(attempts))]
    began = time.perf_counter()
    with torch.no_grad():
        goal_ED = model.encode(_stacked([attempt.goal_stack for attempt in attempts], device))
    seconds = time.perf_counter() - began
    seen: list[torch.Tensor] = []
    done: list[torch.Tensor] = []
    warm_start: WarmStart | None = None
    for block in range(config.solver.horizon):
        began = time.perf_counter()
        with torch.no_grad():
            seen.append(model.encode(_stacked([_last_stack(attempt.frames, model) for attempt in attempts], device)))
        known = seen[-model.config.history :]
        solution = solve(
            goal_objective(goal_ED),
            model,
            torch.stack(known, dim=1),
            config=replace(config.solver, horizon=config.solver.horizon - block),
            mean_K=mean_K,
            std_K=std_K,
            bounds=(-1.0, 1.0),
            generators=generators,
            warm_start=warm_start,
            past=torch.stack(done[1 - len(known) :], dim=1) if len(known) > 1 else None,
            decisions=skip,
        ).checked()
        done.append(solution.plan_EHK[:, 0])
        warm_start = solution.after()
        blocks = done[-1].cpu().numpy().reshape(len(attempts), skip, actions)
        seconds += time.perf_counter() - began
        for attempt, block_actions in zip(attempts, blocks, strict=True):
            env.set_state(attempt.state)
            for action in block_actions:
                env.step(action)
                attempt.frames.append(env.render())
            attempt.state, attempt.physical = env.get_state(), env.physical_state()
    return seconds / config.solver.horizon


def _last_stack(frames: list[np.ndarray], model: LeWM) -> np.ndarray:
    return observations(np.asarray(frames), np.array([len(frames) - 1]), model.config)[0]


def _stacked(stacks: list[np.ndarray], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.stack(stacks)).to(device)
