"""Control from pixels: heads fitted on a run's latents, and the return of what acts with them.

Heads are fitted on the dataset's training episodes alone (`trainers.heads`). With `dagger` rounds the prior acts, and a
state expert labels the states that it comes to (DAgger, Ross et al. 2011): imitation of an expert that sees the
simulator's state, which the scorecard says. Returns are of fresh episodes on seeds that nothing else uses, the same for
every contender: planning, the prior alone, the policies that collected the data, their expert, uniform actions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from collectors.envs.base import Env
from collectors.policies import ExpertConfig, RandomConfig, SinglePolicy, make_policy
from collectors.rollout import replay
from models.control import ControlHeads, RewardObjective
from models.lewm import LeWM
from models.planners import MPPIConfig, WarmStart, solve
from shards.dataset import Dataset
from shards.episode import Episode
from trainers.agent import LatentHistory, imagined_prior
from trainers.heads import HeadsTraining, Trajectory, encode_frames, fit_heads

_EVALUATION, _DAGGER = 1 << 30, 1 << 29
"""Where the seeds of evaluation and of DAgger's episodes begin; collection draws its own among 2^53."""
_COLLECTING = 100
"""Episodes that the collecting policies play at least; they need no rendering."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DaggerConfig:
    """Rounds in which the prior acts and a state expert labels."""

    rounds: int = 0
    """0 for a prior from the dataset alone."""
    episodes: int = 10
    """Episodes a round."""


@dataclass(frozen=True, slots=True)
class ReturnScore:
    """Episodes of one contender: mean return with a 95 % bootstrap interval, and success where the task knows it."""

    name: str
    episodes: int
    mean: float
    low: float
    high: float
    success: float | None
    success_low: float | None
    success_high: float | None
    planning_seconds: float | None
    """Seconds of encoding and choosing actions an episode, all episodes side by side; None without a model."""


@dataclass(frozen=True, slots=True)
class ControlScorecard:
    """Returns of all contenders. `dagger_episodes` is how many episodes a state expert labelled, 0 for none."""

    environment: str
    decisions: int
    seed: int
    training_episodes: int
    dagger_episodes: int
    scores: tuple[ReturnScore, ...]

    def score(self, name: str) -> ReturnScore:
        return next(score for score in self.scores if score.name == name)

    def metrics(self) -> dict[str, float]:
        """`control/<contender>/return` and, where there is one, `control/<contender>/success`."""
        metrics = {f"control/{score.name}/return": score.mean for score in self.scores}
        return metrics | {
            f"control/{score.name}/success": score.success for score in self.scores if score.success is not None
        }


class Actor(Protocol):
    """Chooses actions for E episodes side by side from what they have shown."""

    def __call__(self, history: LatentHistory, /) -> Tensor:
        """Actions (E, A) in [-1, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class PriorActor:
    """The first action of the prior's block, anew at every decision."""

    heads: ControlHeads

    @torch.no_grad()
    def __call__(self, history: LatentHistory) -> Tensor:
        return self.heads.prior(history.window(self.heads.config.window))[:, : history.model.action_size]


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlPlanner:
    """How actions are planned at every decision, from what the prior would do."""

    solver: MPPIConfig = field(default_factory=lambda: MPPIConfig(samples=128, iterations=3, elites=16, horizon=3))
    spread: float = 0.3
    """Standard deviation of the first candidates around the prior's plan."""
    disagreement: float = 10.0
    """Reward subtracted for each standard deviation of the ensemble's opinions of how much better than the prior's a
    plan is. Large, because members that learned from the same data err alike: with 1, planning balances no cartpole."""
    outside: float = 1.0
    """Reward subtracted for imagined latents outside the training data; see `models.control`."""


class PlanActor:
    """The first action of a plan around the prior's, made anew at every decision."""

    def __init__(self, model: LeWM, heads: ControlHeads, config: ControlPlanner, episodes: int, seed: int) -> None:
        device = model.pixel_mean.device
        self._heads, self._config = heads, config
        self._generators = [torch.Generator(device).manual_seed(seed * 100_003 + e) for e in range(episodes)]

    @torch.no_grad()
    def __call__(self, history: LatentHistory) -> Tensor:
        model, config, heads = history.model, self._config, self._heads
        block = model.config.frame_skip
        z, past = history.known()
        prior, imagined = imagined_prior(model, heads, history, config.solver.horizon)
        known = history.window(heads.config.window)
        solution = solve(
            RewardObjective(heads, known, block, imagined, config.disagreement, config.outside),
            model,
            z,
            config=config.solver,
            mean_K=torch.zeros_like(prior[0, 0]),
            std_K=torch.full_like(prior[0, 0], config.spread),
            bounds=(-1.0, 1.0),
            generators=self._generators,
            warm_start=WarmStart(prior, prior.new_empty(len(prior), 0, *prior.shape[1:])),
            past=past if past.shape[1] else None,
            decisions=block,
        )
        return solution.plan_EHK[:, 0, : model.action_size]


@dataclass(frozen=True, slots=True)
class Played:
    """What E episodes came to: frames (E, T+1, h, w, 3), actions (E, T, A), rewards (E, T), success (E,) or None, and
    an expert's actions (E, T, A) in the same states where they were asked for."""

    frames: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    success: np.ndarray | None
    labels: np.ndarray | None
    seconds: float


def play(
    env: Env,
    model: LeWM,
    actor: Actor,
    seeds: Sequence[int],
    *,
    decisions: int,
    label: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Played:
    """Play one episode a seed, side by side in one simulator, which changes states between them."""
    count, spec = len(seeds), env.spec
    experts = [make_policy(ExpertConfig(), spec) for _ in seeds] if label else []
    frames = np.empty((count, decisions + 1, spec.size, spec.size, 3), np.uint8)
    action = np.empty((count, decisions, spec.action_size), np.float32)
    labels, reward = np.zeros_like(action), np.empty((count, decisions), np.float32)
    solved, states = np.zeros(count, bool), []
    for e, seed in enumerate(seeds):
        env.reset(seed)
        if label:
            experts[e].reset(env, np.random.default_rng([seed, 2]))
        frames[e, 0] = env.render()
        states.append(env.get_state())
    knows = env.success() is not None
    began, seconds = time.perf_counter(), 0.0
    history = LatentHistory(model, frames[:, 0])
    for t in range(decisions):
        action[:, t] = actor(history).cpu().numpy()
        seconds += time.perf_counter() - began
        for e in range(count):
            env.set_state(states[e])
            if label:
                labels[e, t] = experts[e].act(env)
            reward[e, t] = env.step(action[e, t])
            solved[e] |= bool(env.success())
            frames[e, t + 1] = env.render()
            states[e] = env.get_state()
        began = time.perf_counter()
        history.extend(action[:, t], frames[:, t + 1])
        if on_step is not None:
            on_step(t + 1)
    return Played(frames, action, reward, solved if knows else None, labels if label else None, seconds)


def play_policy(env: Env, policies: Sequence[SinglePolicy], seeds: Sequence[int], decisions: int) -> ReturnScore:
    """Returns of policies that see the simulator, one episode each, without rendering."""
    returns, solved = [], []
    for config, seed in zip(policies, seeds, strict=True):
        env.reset(seed)
        policy = make_policy(config, env.spec)
        policy.reset(env, np.random.default_rng([seed, 2]))
        total, done = 0.0, env.success()
        for _ in range(decisions):
            total += env.step(policy.act(env))
            done = done or env.success()
        returns.append(total)
        solved.append(done)
    return return_score("", np.array(returns), None if solved[0] is None else np.array(solved, bool))


def return_score(
    name: str, returns: np.ndarray, solved: np.ndarray | None, seconds: float | None = None
) -> ReturnScore:
    """A contender's score from its episodes' returns (E,) and successes (E,)."""
    mean, low, high = interval(returns)
    success = interval(solved.astype(float)) if solved is not None else (None, None, None)
    return ReturnScore(name, len(returns), mean, low, high, *success, seconds)


def interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of (n,) values, and the 2.5 and 97.5 percentiles of the mean over bootstrap resamples."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlConfig:
    """How a run is judged by control."""

    episodes: int = 20
    decisions: int | None = None
    """Of an episode; the task's own length unless given."""
    seed: int = 0
    """Of the heads, and of the episodes."""
    training: HeadsTraining = field(default_factory=HeadsTraining)
    dagger: DaggerConfig = field(default_factory=DaggerConfig)
    planner: ControlPlanner = field(default_factory=ControlPlanner)

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise ValueError(f"an interval needs 2 episodes or more, not {self.episodes}")
        if self.decisions is not None and self.decisions < 1:
            raise ValueError(f"decisions must be at least 1, not {self.decisions}")


def training_trajectories(model: LeWM, dataset: Dataset, labelled_by: Env | None = None) -> list[Trajectory]:
    """The dataset's training episodes as the model sees them, every frame decoded once; with an environment to repeat
    them in, labelled by its expert."""
    device, found = model.pixel_mean.device, []
    for i in dataset.indices("train"):
        episode = dataset.read_episode(int(i))
        labels = None if labelled_by is None else torch.from_numpy(expert_labels(labelled_by, episode)).to(device)
        z = encode_frames(model, episode.frames)
        found.append(
            Trajectory(z, torch.tensor(episode.action).to(device), torch.tensor(episode.reward).to(device), labels)
        )
    return found


def expert_labels(env: Env, episode: Episode) -> np.ndarray:
    """An expert's actions (T, A) in the states of a recorded episode, which is repeated in the simulator."""
    replay(env, episode.info, episode.action, 0)
    expert = make_policy(ExpertConfig(), env.spec)
    expert.reset(env, np.random.default_rng([episode.info.episode_seed, 2]))
    labels = np.empty_like(episode.action)
    for t, action in enumerate(episode.action):
        labels[t] = expert.act(env)
        env.step(action)
    return labels


def fit_control(
    model: LeWM, trajectories: list[Trajectory], env: Env, config: ControlConfig, say: Callable[[str], None]
) -> ControlHeads:
    """Heads fitted on trajectories, and on what DAgger adds to them (in place)."""
    decisions = config.decisions or env.spec.max_steps
    for round_ in range(config.dagger.rounds):
        heads = fit_heads(model, trajectories, config.training, seed=config.seed, prior_only=True)
        first = _DAGGER + (config.seed * config.dagger.rounds + round_) * config.dagger.episodes
        seeds = range(first, first + config.dagger.episodes)
        played = play(env, model, PriorActor(heads), seeds, decisions=decisions, label=True)
        say(f"DAgger round {round_ + 1}: return {played.reward.sum(axis=1).mean():.1f}")
        assert played.labels is not None
        device = model.pixel_mean.device
        trajectories += [
            Trajectory(encode_frames(model, frames), *(torch.from_numpy(each).to(device) for each in rest))
            for frames, *rest in zip(played.frames, played.action, played.reward, played.labels, strict=True)
        ]
    return fit_heads(model, trajectories, config.training, seed=config.seed)


def collecting_policies(dataset: Dataset, count: int, seed: int) -> list[SinglePolicy]:
    """Policies of training episodes, drawn with replacement: what collected the data."""
    adapter = TypeAdapter(SinglePolicy)
    drawn = np.random.default_rng([seed, 3]).choice(dataset.indices("train"), count)
    kept = []
    for i in drawn:
        record = dict(dataset.info(int(i)).policy)
        kept.append(
            adapter.validate_python(
                {k: v for k, v in record.items() if k not in ("random_start", "variation", "weights")}
            )
        )
    return kept


def evaluation_seeds(config: ControlConfig) -> range:
    """Seeds of the episodes that are reported."""
    first = _EVALUATION + config.seed * 100_000
    return range(first, first + config.episodes)


def baselines(env: Env, dataset: Dataset, config: ControlConfig) -> list[ReturnScore]:
    """The data's expert (where there is one), the policies that collected, in more episodes, and uniform actions."""
    seeds, decisions = evaluation_seeds(config), config.decisions or env.spec.max_steps
    # Policies of a mixture differ so much that the mean of a few episodes says little.
    many = range(seeds.start, seeds.start + max(_COLLECTING, len(seeds)))
    collecting = collecting_policies(dataset, len(many), config.seed)
    contenders: dict[str, list[SinglePolicy]] = {"collection": collecting, "random": [RandomConfig()] * len(seeds)}
    if any(policy.kind == "expert" for policy in collecting):
        contenders = {"expert": [ExpertConfig()] * len(seeds), **contenders}
    return [
        replace(play_policy(env, policies, many[: len(policies)], decisions), name=name)
        for name, policies in contenders.items()
    ]


@dataclass(frozen=True, slots=True)
class ControlResult:
    """The scorecard, the heads that it judges, and the frames (T+1, h, w, 3) of a planned episode."""

    scorecard: ControlScorecard
    heads: ControlHeads
    frames: np.ndarray


def judge_control(
    model: LeWM, dataset: Dataset, env: Env, config: ControlConfig, say: Callable[[str], None]
) -> ControlResult:
    """Fit heads on a run's latents and measure what they are worth; `env` is the dataset's environment."""
    decisions, seeds = config.decisions or env.spec.max_steps, evaluation_seeds(config)
    scores = baselines(env, dataset, config)
    say(", ".join(f"{score.name} {score.mean:.1f}" for score in scores))
    trajectories = training_trajectories(model, dataset, env if config.dagger.rounds else None)
    recorded = len(trajectories)
    heads = fit_control(model, trajectories, env, config, say)
    actors: dict[str, Actor] = {
        "prior": PriorActor(heads),
        "plan": PlanActor(model, heads, config.planner, len(seeds), config.seed),
    }
    measured, frames = [], np.empty(0)
    for name, actor in actors.items():
        played = play(env, model, actor, seeds, decisions=decisions)
        seconds = played.seconds / len(seeds)
        measured.append(return_score(name, played.reward.sum(axis=1), played.success, seconds))
        say(f"{name} {measured[-1].mean:.1f}")
        frames = played.frames[0]
    scorecard = ControlScorecard(
        environment=env.spec.name,
        decisions=decisions,
        seed=config.seed,
        training_episodes=recorded,
        dagger_episodes=len(trajectories) - recorded,
        scores=(*reversed(measured), *scores),
    )
    return ControlResult(scorecard, heads, frames)
