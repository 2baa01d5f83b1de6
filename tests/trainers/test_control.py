"""Acting with a model whose latents are the state and whose dynamics is the truth: what is known must come out."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.control import ControlHeads, HeadsConfig
from models.planners import MPPIConfig
from trainers.agent import LatentHistory, imagined_prior
from trainers.evaluation.control import (
    ControlConfig,
    ControlPlanner,
    PlanActor,
    PriorActor,
    evaluation_seeds,
    interval,
    play,
    return_score,
)
from trainers.heads import HeadsTraining, Trajectory, fit_heads

SKIP = 2


class Point:
    """A point on a line: x' = x + 0.1 a, reward exp(-(x - 0.5)^2 * 8); its frame is x in the first pixel."""

    spec = SimpleNamespace(name="toy/point", action_size=1, size=4, max_steps=40)

    def reset(self, seed):
        self.x = float(np.random.default_rng(seed).uniform(-1, 0))

    def step(self, action):
        assert -1 <= float(action[0]) <= 1
        self.x = float(np.clip(self.x + 0.1 * float(action[0]), -1, 1))
        return float(np.exp(-8 * (self.x - 0.5) ** 2))

    def render(self):
        frame = np.zeros((4, 4, 3), np.uint8)
        frame[0, 0, 0] = round((self.x + 1) * 127)
        return frame

    def get_state(self):
        return self.x

    def set_state(self, state):
        self.x = state

    def success(self):
        return None


class TrueModel:
    """Reads x from the pixel and knows the dynamics. Latents (x, previous frame's x)."""

    def __init__(self, history=1):
        self.config = SimpleNamespace(frame_skip=SKIP, history=history, stack=2, stack_stride=1)
        self.action_size, self.pixel_mean = 1, torch.zeros(3)

    def encode(self, frames):
        return frames[:, :, 0, 0, 0].float() / 127 - 1

    def rollout(self, z_BTD, plan_BHK, past_BPK=None):
        assert (0 if past_BPK is None else past_BPK.shape[1]) == z_BTD.shape[1] - 1
        x, found = z_BTD[:, -1, -1], []
        for block in plan_BHK.unbind(1):
            before = x
            for action in block.unbind(1):
                before, x = x, (x + 0.1 * action).clamp(-1, 1)
            found.append(torch.stack([before, x], dim=1))
        return torch.stack(found, dim=1)


def true_model(history: int = 1) -> Any:
    """In a LeWM's place."""
    return TrueModel(history)


def point() -> Any:
    """In an environment's place."""
    return Point()


def trajectories(model, count=40, steps=40):
    env, rng, found = point(), np.random.default_rng(0), []
    for seed in range(count):
        env.reset(seed)
        env.x = float(rng.uniform(-1, 1))
        xs, rewards = [env.x], []
        actions = np.repeat(rng.uniform(-1, 1, (steps // 4, 1)), 4, axis=0).astype(np.float32)
        for action in actions:
            rewards.append(env.step(action))
            xs.append(env.x)
        z = torch.tensor([[xs[max(0, t - 1)], xs[t]] for t in range(len(xs))])
        found.append(Trajectory(z.float(), torch.from_numpy(actions), torch.tensor(rewards)))
    return found


def test_the_history_is_what_was_seen():
    model = true_model(history=3)
    frames = [np.full((2, 4, 4, 3), t, np.uint8) for t in range(7)]
    history = LatentHistory(model, frames[0])
    np.testing.assert_allclose(history.window(2), np.full((2, 2, 2), -1))
    assert history.known()[1].shape == (2, 0, SKIP)
    for t in range(1, 7):
        history.extend(np.full((2, 1), t, np.float32), frames[t])
    seen = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]) / 127 - 1
    torch.testing.assert_close(history.window(3)[0], seen)
    z, past = history.known()
    torch.testing.assert_close(z[0], seen)
    np.testing.assert_array_equal(past[0], [[3, 4], [5, 6]])


def test_planning_on_fitted_heads_reaches_the_reward():
    model, env = true_model(), point()
    training = HeadsTraining(steps=600, refresh=6, depth=2, heads=HeadsConfig(hidden=32, discount=0.9))
    heads = fit_heads(model, trajectories(model), training, seed=0)
    planner = ControlPlanner(solver=MPPIConfig(samples=64, iterations=3, elites=8, horizon=3), spread=0.7)
    seeds = range(3)
    planned = play(env, model, PlanActor(model, heads, planner, len(seeds), 0), seeds, decisions=30)
    best = 30 - 14  # at most 15 decisions away, and 1 a decision from there
    assert planned.reward.sum(axis=1).min() > 0.85 * best
    assert planned.reward[:, -5:].min() > 0.9
    again = play(env, model, PlanActor(model, heads, planner, len(seeds), 0), seeds, decisions=30)
    np.testing.assert_array_equal(planned.action, again.action)


def test_episodes_side_by_side_are_those_played_alone():
    model, env = true_model(), point()
    torch.manual_seed(0)
    heads = ControlHeads(HeadsConfig(hidden=16), latent_dim=2, action_block=SKIP)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    together = play(env, model, PriorActor(heads), [4, 5, 6], decisions=10)
    for e, seed in enumerate([4, 5, 6]):
        alone = play(env, model, PriorActor(heads), [seed], decisions=10)
        np.testing.assert_allclose(together.action[e], alone.action[0], atol=1e-6)
        np.testing.assert_array_equal(together.frames[e], alone.frames[0])
    assert together.success is None


def test_the_imagined_prior_is_the_prior_in_the_true_dynamics():
    model = true_model()
    torch.manual_seed(0)
    heads = ControlHeads(HeadsConfig(hidden=16, window=1), latent_dim=2, action_block=SKIP)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    frame = np.zeros((1, 4, 4, 3), np.uint8)
    frame[0, 0, 0, 0] = 100
    history = LatentHistory(model, frame)
    plan, imagined = imagined_prior(model, heads, history, 3)
    z = history.window(1)[:, 0]
    for block, after in zip(plan.unbind(1), imagined.unbind(1), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(heads.prior(z[:, None]), block)
        z = model.rollout(z[:, None], block[:, None])[:, 0]
        torch.testing.assert_close(z, after)


def test_scores_have_intervals_and_seeds_of_their_own():
    values = np.random.default_rng(1).normal(10, 2, 400)
    mean, low, high = interval(values)
    assert low < 10 < high
    assert 0.15 < mean - low < 0.3  # 1.96 * 2 / sqrt(400)
    score = return_score("plan", values, values > 10, 1.5)
    assert score.success is not None
    assert score.success_low is not None
    assert score.success_high is not None
    assert score.success_low < score.success < score.success_high
    assert not set(evaluation_seeds(ControlConfig(seed=0))) & set(evaluation_seeds(ControlConfig(seed=1)))
    with pytest.raises(ValueError, match="2 episodes or more"):
        ControlConfig(episodes=1)
