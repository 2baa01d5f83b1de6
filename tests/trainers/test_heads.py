"""Heads on cases with a known answer: true features, linear dynamics, rewards and actions that follow from them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.control import ControlHeads, HeadsConfig, RewardObjective
from trainers.heads import HeadsTraining, Trajectory, _Data, fit_heads, load_heads, save_heads

SKIP, ACTIONS, SIZE = 2, 2, 4
DRIFT = torch.diag(torch.tensor([0.9, 0.8, 0.7, 0.6]))
PUSH = 0.3 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5], [0.2, 0.2]])


class LinearModel:
    """The true dynamics z' = DRIFT z + PUSH a of the trajectories, with a LeWM's `rollout`."""

    def __init__(self, history=1, bias=0.0):
        self.bias = bias
        self.config = SimpleNamespace(frame_skip=SKIP, history=history)

    def rollout(self, z_BTD, plan_BHK, past_BPK=None):
        assert past_BPK is None or past_BPK.shape[1] == z_BTD.shape[1] - 1 < self.config.history
        z, found = z_BTD[:, -1], []
        for block in plan_BHK.unbind(1):
            for action in block.view(len(z), SKIP, ACTIONS).unbind(1):
                z = z @ DRIFT.T + action @ PUSH.T
            found.append(z + self.bias)
        return torch.stack(found, dim=1)


def linear_model(history: int = 1, bias: float = 0.0) -> Any:
    """In a LeWM's place."""
    return LinearModel(history, bias)


def trajectories(count=30, steps=40, seed=0, labelled=False):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        z = [torch.randn(SIZE, generator=generator)]
        action = torch.rand(steps, ACTIONS, generator=generator) * 2 - 1
        for a in action:
            z.append(DRIFT @ z[-1] + PUSH @ a)
        z = torch.stack(z)
        reward = torch.exp(-z[1:, 0].square())
        labels = torch.tanh(z[:-1, :2]) if labelled else None
        found.append(Trajectory(z, action, reward, labels))
    return found


def training(**changes):
    settings = {"steps": 300, "refresh": 6, "heads": HeadsConfig(hidden=32, discount=0.9), "depth": 2}
    return HeadsTraining(**{**settings, **changes})


@pytest.mark.parametrize("history", [1, 3])
def test_predicted_frames_are_what_the_model_says_from_before(history):
    parts = trajectories(3, 20)
    data = _Data(linear_model(history), parts, training())
    for d in (1, 2):  # the dynamics is the true one
        torch.testing.assert_close(data.predicted[d], data.z, atol=1e-5, rtol=0)
    at = data.rows
    torch.testing.assert_close(data.windows(at, 2), data.windows(at, 0), atol=1e-5, rtol=0)
    biased = _Data(linear_model(history, bias=1.0), parts, training())
    torch.testing.assert_close(biased.predicted[1][at], data.z[at] + 1.0, atol=1e-5, rtol=0)
    window = biased.windows(at, 1) - data.windows(at, 0)
    assert window[:, 0].abs().max() < 1e-5 < 0.9 < window[:, 1].min(), "only the newest is predicted"


def test_rows_stay_within_their_episode():
    parts = trajectories(3, 9)
    data = _Data(linear_model(), parts, training())
    for at in data.rows.tolist():
        episode, t = divmod(at, 10)
        assert SKIP <= t <= 9 - SKIP
        np.testing.assert_allclose(data.gained[at], parts[episode].reward[t - SKIP : t].sum(), rtol=1e-5)
        np.testing.assert_array_equal(data.targets[at], parts[episode].action[t : t + SKIP].flatten())
        window = data.windows(torch.tensor([at]), 0)[0]
        np.testing.assert_array_equal(window, parts[episode].z[[t - SKIP, t]])


def test_rewards_and_labels_are_recovered_on_other_episodes():
    longer = training(steps=800, heads=HeadsConfig(hidden=64))
    heads = fit_heads(linear_model(), trajectories(labelled=True), longer, seed=0)
    data = _Data(linear_model(), trajectories(seed=1, labelled=True), training())
    windows = data.windows(data.rows, 0)
    truth = data.gained[data.rows]
    with torch.no_grad():
        error = heads.reward(windows).mean(dim=0) - truth
        imitation = heads.prior(windows) - data.targets[data.rows]
    assert 1 - error.square().mean() / truth.var() > 0.95
    assert 1 - imitation[:, :2].square().mean() / data.targets[data.rows][:, :2].var() > 0.95


def test_the_prior_alone_learns_labels_and_leaves_the_rest():
    heads = fit_heads(linear_model(), trajectories(labelled=True), training(steps=600), seed=0, prior_only=True)
    data = _Data(linear_model(), trajectories(seed=1, labelled=True), training())
    windows = data.windows(data.rows, 0)
    with torch.no_grad():
        imitation = (heads.prior(windows) - data.targets[data.rows])[:, :2]
        assert 1 - imitation.square().mean() / data.targets[data.rows][:, :2].var() > 0.95
        assert not heads.reward(windows).any()
        assert not heads.value(windows).any()
    with pytest.raises(AssertionError):
        fit_heads(linear_model(), trajectories(), training(), seed=0, prior_only=True)


def test_a_constant_reward_is_worth_its_geometric_sum():
    parts = [Trajectory(each.z, each.action, torch.ones_like(each.reward)) for each in trajectories(20)]
    heads = fit_heads(linear_model(), parts, training(refresh=30), seed=0)
    data = _Data(linear_model(), parts, training())
    assert float(data.values(heads).mean()) == pytest.approx(1 / (1 - 0.9), rel=0.05)


def test_the_prior_without_labels_prefers_what_turned_out_better():
    """Two actions in the same state, of which one is rewarded."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(60):
        action = torch.randint(0, 2, (30, 1), generator=generator).float().repeat_interleave(SKIP, 0).sub(0.5)
        action = action.expand(-1, ACTIONS).contiguous()
        z = torch.randn(61, SIZE, generator=generator) * 0.01
        parts.append(Trajectory(z, action, action[:, 0] + 0.5))
    heads = fit_heads(linear_model(), parts, training(trace=0.0, expectile=0.5, temperature=0.05), seed=0)
    data = _Data(linear_model(), parts, training())
    aligned = data.rows[(data.rows % 61) % SKIP == 0]
    with torch.no_grad():
        assert float(heads.prior(data.windows(aligned, 0)).mean()) > 0.35


def test_the_objective_prefers_the_plan_with_more_reward_and_shuns_the_unknown():
    heads = fit_heads(linear_model(), trajectories(), training(), seed=0)
    near, far = torch.tensor([0.0, 0, 0, 0]), torch.tensor([2.0, 0, 0, 0])
    objective = RewardObjective(heads, near.expand(1, 1, -1), block=SKIP, disagreement=0.0, outside=0.0)
    plans = torch.stack([near.expand(3, -1), far.expand(3, -1)])[None]
    with torch.no_grad():
        cost = objective(plans)
        assert cost.shape == (1, 2)
        assert cost[0, 0] < cost[0, 1]
        wild = 50 * torch.ones(1, 1, 3, SIZE)
        bold = RewardObjective(heads, near.expand(1, 1, -1), block=SKIP, disagreement=0.0, outside=0.0)(wild)
        careful = RewardObjective(heads, near.expand(1, 1, -1), block=SKIP, disagreement=0.0, outside=1.0)(wild)
    assert careful > bold + 10


def test_a_plan_must_be_better_than_the_one_to_beat_by_more_than_the_ensemble_disagrees():
    """Members that each expect 1 more, or from 0 to 2 more, of the second plan than of the first."""
    torch.manual_seed(0)
    heads = ControlHeads(HeadsConfig(members=3, hidden=16), latent_dim=SIZE, action_block=4).eval()
    near, far = torch.zeros(3, SIZE), torch.ones(3, SIZE)
    plans, known = torch.stack([near, far])[None], near[None, :2]

    def costs(gains: list[float], disagreement: float) -> list[float]:
        def value(z_BWD: torch.Tensor) -> torch.Tensor:
            return torch.tensor(gains)[:, None] * z_BWD[:, -1, 0] + 7 * torch.arange(3.0)[:, None]

        heads.value = value
        objective = RewardObjective(heads, known, SKIP, near[None], disagreement, outside=0.0)
        with torch.no_grad():
            return objective(plans)[0].tolist()

    discount = heads.config.discount ** (3 * SKIP)
    assert costs([1, 1, 1], 10.0) == pytest.approx([0, -discount], abs=1e-4)
    assert costs([0, 1, 2], 0.5) == pytest.approx([0, -0.5 * discount], abs=1e-4)
    assert costs([0, 1, 2], 3.0) == pytest.approx([0, 2 * discount], abs=1e-4)


def test_heads_come_back_as_they_were(tmp_path):
    torch.manual_seed(0)
    heads = ControlHeads(HeadsConfig(window=3, hidden=16), latent_dim=SIZE, action_block=4)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    save_heads(heads, tmp_path / "heads" / "heads.safetensors")
    again = load_heads(tmp_path / "heads" / "heads.safetensors", torch.device("cpu"))
    assert again.config == heads.config
    window = torch.randn(5, 3, SIZE)
    torch.testing.assert_close(again.prior(window), heads.prior(window))
    with pytest.raises(ValueError, match="lewm control"):
        load_heads(tmp_path / "none.safetensors", torch.device("cpu"))


def test_too_short_episodes_and_bad_settings_are_refused():
    with pytest.raises(ValueError, match="collect longer"):
        fit_heads(linear_model(), trajectories(2, 3), training(), seed=0)
    for wrong in ({"expectile": 0.2}, {"steps": 3}, {"depth": 0}):
        with pytest.raises(ValueError, match="must be"):
            training(**wrong)
    with pytest.raises(ValueError, match="discount"):
        HeadsConfig(discount=1.0)
