"""The AdaLN transformer and the memory: against plain mathematics, causality, and rollouts that equal single steps."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.objective import RegularizerConfig, directions
from models.predictors import PredictorConfig
from models.transformer import AdaLNBlock
from models.vit import ViT, ViTBlock


def small(**changes) -> LeWMConfig:
    base = LeWMConfig(
        image_size=16,
        latent_dim=12,
        history=3,
        frame_skip=2,
        stack=1,
        encoder=EncoderConfig(kind="vit", width=12, hidden=16, patch=8, depth=1, head_hidden=16),
        predictor=PredictorConfig(kind="transformer", hidden=16, depth=2, heads=2, head_dim=4, head_hidden=16),
        regularizer=RegularizerConfig(kind="sigreg", directions=16),
    )
    return replace(base, **changes)


def build(config: LeWMConfig, action_size: int = 1) -> LeWM:
    """A model whose gates are open."""
    torch.manual_seed(0)
    model = LeWM(config, action_size).double().eval()
    for name, parameter in model.named_parameters():
        if "modulation" in name or "memory.out" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def batch(config: LeWMConfig, count: int):
    generator = torch.Generator().manual_seed(3)
    shape = (count, config.history + 1, config.stack, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return frames, torch.randn(count, config.history, config.frame_skip, generator=generator)


def normalise(x, eps):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + eps)


def attend(q, k, v, *, causal):
    """One head at a time, one query at a time."""
    out = torch.zeros_like(q)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = i + 1 if causal else q.shape[2]
        score = torch.stack([q[b, h, i] @ k[b, h, j] for j in range(seen)]) / math.sqrt(q.shape[3])
        weight = score.exp() / score.exp().sum()
        out[b, h, i] = sum(weight[j] * v[b, h, j] for j in range(seen))
    return out


def test_adaln_block_equals_a_plain_reference():
    torch.manual_seed(0)
    block = AdaLNBlock(6, heads=2, head_dim=5, hidden=7, dropout=0.1).double().eval()
    torch.nn.init.normal_(block.modulation.weight)
    torch.nn.init.normal_(block.modulation.bias)
    x, c = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        (c * torch.sigmoid(c)) @ block.modulation.weight.T + block.modulation.bias
    ).split(6, dim=-1)
    attention = block.attention
    mlp: list[Any] = list(block.mlp)
    y = normalise(x, 1e-6) * (1 + scale1) + shift1
    y = normalise(y, 1e-5) * attention.norm.weight + attention.norm.bias
    q, k, v = (y @ w.T for w in attention.qkv.weight.split(10))
    heads = [t.view(2, 3, 2, 5).transpose(1, 2) for t in (q, k, v)]
    seen = attend(*heads, causal=True).transpose(1, 2).reshape(2, 3, 10)
    expected = x + gate1 * (seen @ attention.out.weight.T + attention.out.bias)
    y = normalise(expected, 1e-6) * (1 + scale2) + shift2
    y = normalise(y, 1e-5) * mlp[0].weight + mlp[0].bias
    y = y @ mlp[1].weight.T + mlp[1].bias
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    expected = expected + gate2 * (y @ mlp[4].weight.T + mlp[4].bias)
    by = block.modulate(c)
    torch.testing.assert_close(block(x, by), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block(x, by, last_only=True), expected[:, -1:], rtol=1e-9, atol=1e-9)


def test_vit_attention_equals_a_plain_reference_and_patches_must_divide():
    torch.manual_seed(0)
    block = ViTBlock(6, heads=2, hidden=8).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    y = block.norm1(x)
    heads = [layer(y).view(2, 4, 2, 3).transpose(1, 2) for layer in (block.query, block.key, block.value)]
    seen = x + block.out(attend(*heads, causal=False).transpose(1, 2).reshape(2, 4, 6))
    expected = seen + block.fc2(F.gelu(block.fc1(block.norm2(seen))))
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="14 px do not divide an image of 64 px"):
        ViT(channels=3, image_size=64, patch=14, width=6, depth=1, heads=2, hidden=8)


def test_a_fresh_predictor_does_not_look_at_actions():
    model = LeWM(small(), 1).eval()
    z = torch.randn(2, 3, 12)
    torch.testing.assert_close(model.predict(z, torch.zeros(2, 3, 2)), model.predict(z, torch.ones(2, 3, 2)))


CONFIGS = {
    "transformer": small(),
    "mlp": small(predictor=PredictorConfig(hidden=16)),
    "memory": small(predictor=PredictorConfig(hidden=16, memory=5)),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_future_is_not_seen(kind):
    model = build(CONFIGS[kind])
    z, action = torch.randn(2, 3, 12).double(), torch.randn(2, 3, 2).double()
    before = model.predict(z, action)
    for step in range(3):
        other_z, other_action = z.clone(), action.clone()
        other_z[:, step] += torch.randn(12)
        other_action[:, step] += torch.randn(2)
        for after in (model.predict(other_z, action), model.predict(z, other_action)):
            torch.testing.assert_close(after[:, :step], before[:, :step], rtol=0, atol=1e-12)
            assert (after[:, step] - before[:, step]).abs().max() > 1e-6


@pytest.mark.parametrize("known", [1, 2, 3])
@pytest.mark.parametrize("kind", CONFIGS)
def test_rollout_equals_repeated_single_steps_in_a_sliding_window(kind, known):
    model = build(CONFIGS[kind])
    z, action = torch.randn(2, known, 12).double(), torch.randn(2, known + 4, 2).double()
    rolled = model.rollout(z, action[:, known - 1 :], action[:, : known - 1])
    latents = z
    for end in range(known, known + 5):
        # The transformer's window slides; a memory reaches back to the first latent.
        begin = max(0, end - 3) if kind == "transformer" else 0
        following = model.predict(latents[:, begin:], action[:, begin:end])[:, -1:]
        latents = torch.cat([latents, following], dim=1)
    torch.testing.assert_close(rolled, latents[:, known:], rtol=1e-10, atol=1e-10)
    if known == 1:
        torch.testing.assert_close(model.rollout(z[:, 0], action), rolled)


def test_a_rollout_names_what_does_not_fit():
    model = build(small())
    plan = torch.zeros(2, 4, 2).double()
    with pytest.raises(ValueError, match=r"1 to 3 known latents .* not 4 and 3"):
        model.rollout(torch.zeros(2, 4, 12).double(), plan, plan[:, :3])
    with pytest.raises(ValueError, match="not 2 and 0"):
        model.rollout(torch.zeros(2, 2, 12).double(), plan)
    with pytest.raises(ValueError, match="memory goes with the mlp"):
        LeWM(small(predictor=PredictorConfig(kind="transformer", memory=4)), 1)


def test_the_rollout_loss_is_the_open_loop_error():
    plain = build(small())
    model = build(small(rollout_weight=0.7))
    frames, action = batch(model.config, 4)
    drawn = directions(model.config.regularizer, 12, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float64)
    z = model.encode(frames)
    expected = (model.rollout(z[:, 0], action.double()) - z[:, 1:]).square().mean()
    difference = model(frames, action, drawn).total - plain(frames, action, drawn).total
    torch.testing.assert_close(difference, 0.7 * expected)
    with pytest.raises(ValueError, match="history to 2"):
        small(history=1, rollout_weight=0.7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_near_and_finite(dtype):
    model = build(small()).float()
    frames, action = batch(model.config, 8)
    drawn = directions(model.config.regularizer, 12, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float32)
    full = model(frames, action, drawn)
    with torch.autocast("cpu", dtype=dtype):
        half = model(frames, action, drawn)
    half.total.backward()
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, full.total, rtol=0.1, atol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["kl", "kl_diagonal", "sigreg", "subspace", "mixture"])
def test_a_batch_of_one_window_has_a_finite_loss_and_gradient(kind):
    model = build(small(regularizer=RegularizerConfig(kind=kind, directions=16, subspaces=4))).train()
    frames, action = batch(model.config, 1)
    drawn = directions(model.config.regularizer, 12, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float64)
    losses = model(frames, action, drawn)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_inputs_that_are_not_finite_are_refused():
    model = build(small())
    frames, action = batch(model.config, 2)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite actions"):
            model(frames, torch.full_like(action, value))
    with pytest.raises(ValueError, match="uint8"):
        model.encode(frames.float())
    with pytest.raises(ValueError, match="action_std"):
        model.set_statistics(
            pixel_mean=torch.zeros(3), pixel_std=torch.ones(3), action_mean=torch.zeros(1), action_std=torch.zeros(1)
        )


@pytest.mark.parametrize("predictor", ["transformer", "mlp"])
@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 3, 2), (2, 4, 2), (2, 3, 1), (2, 3, 4)])
def test_actions_that_do_not_fit_are_refused_and_never_broadcast(predictor, shape):
    model = build(small(predictor=PredictorConfig(kind=predictor, hidden=16, head_hidden=16)))
    frames, _ = batch(model.config, 2)
    with pytest.raises(ValueError, match=r"need action blocks \(2, 3, 2\)"):
        model(frames, torch.zeros(shape, dtype=torch.float64))


def test_one_plan_for_several_starts_is_refused():
    model = build(small())
    with pytest.raises(ValueError, match="2 starts need as many plans, not 1"):
        model.rollout(torch.zeros(2, 12).double(), torch.zeros(1, 4, 2).double())


@pytest.mark.parametrize(
    "settings",
    [{name: 0} for name in ("image_size", "latent_dim", "history", "frame_skip", "stack", "stack_stride")]
    + [{"rollout_weight": -1.0}, {"rollout_weight": math.nan}],
)
def test_impossible_models_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        small(**settings)
