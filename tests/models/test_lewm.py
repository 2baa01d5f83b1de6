"""The model: shapes, raw inputs, definitions of the losses, and gradients into the targets."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.diagnostics import effective_rank
from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.objective import RegularizerConfig, directions
from models.predictors import PredictorConfig
from models.regularizers import gaussian_kl, random_directions


def small(**changes: Any) -> LeWMConfig:
    base = LeWMConfig(
        image_size=32,
        latent_dim=8,
        history=2,
        frame_skip=2,
        stack=2,
        encoder=EncoderConfig(width=8, hidden=16),
        predictor=PredictorConfig(hidden=16),
    )
    return replace(base, **changes)


def windows(config: LeWMConfig, batch: int, action_size: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.history + 1, config.stack, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    action = torch.randn(batch, config.history, config.frame_skip * action_size, generator=generator)
    return frames, action


@pytest.mark.parametrize("kind", ["conv", "resnet18"])
def test_encode_takes_any_batch_shape_and_treats_observations_alike(kind):
    config = small(encoder=EncoderConfig(kind=kind, width=8, hidden=16))
    model = LeWM(config, 3).eval()
    frames, _ = windows(config, 2, 3)
    z_BJD = model.encode(frames)
    assert z_BJD.shape == (2, 3, 8)
    torch.testing.assert_close(z_BJD[1, 2], model.encode(frames[1, 2]), rtol=1e-4, atol=1e-5)


def test_stacked_frames_become_channels_oldest_first():
    config = small()
    model = LeWM(config, 1).eval()
    model.encoder = torch.nn.Flatten()
    model.set_statistics(
        pixel_mean=torch.tensor([1.0, 2.0, 3.0]),
        pixel_std=torch.tensor([2.0, 4.0, 5.0]),
        action_mean=torch.zeros(1),
        action_std=torch.ones(1),
    )
    frames, _ = windows(config, 1, 1)
    seen = model.encode(frames[0, 0]).view(config.stack, 3, 32, 32)
    expected = (frames[0, 0, 1, :, :, 2].float() - 3.0) / 5.0
    torch.testing.assert_close(seen[1, 2], expected)


def test_actions_are_standardised_inside_the_model():
    config = small()
    model = LeWM(config, 2).eval()
    z, raw = torch.randn(4, 8), torch.randn(4, 4)
    plain = model.predict(z, raw)
    model.set_statistics(
        pixel_mean=torch.zeros(3),
        pixel_std=torch.ones(3),
        action_mean=torch.tensor([1.0, -2.0]),
        action_std=torch.tensor([3.0, 0.5]),
    )
    scaled = raw * torch.tensor([3.0, 0.5, 3.0, 0.5]) + torch.tensor([1.0, -2.0, 1.0, -2.0])
    torch.testing.assert_close(model.predict(z, scaled), plain, rtol=1e-5, atol=1e-6)


def test_losses_are_what_the_design_says():
    config = small(regularizer=RegularizerConfig(kind="kl", weight=0.3))
    model = LeWM(config, 1).eval()
    frames, action = windows(config, 6, 1)
    losses = model(frames, action)
    z = model.encode(frames)
    expected = torch.stack([(model.predict(z[:, j], action[:, j]) - z[:, j + 1]).square() for j in range(2)]).mean()
    torch.testing.assert_close(losses.prediction, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.total, expected + 0.3 * gaussian_kl(z), rtol=1e-5, atol=1e-5)


def test_gradients_flow_into_the_targets():
    config = small(history=1, regularizer=RegularizerConfig(kind="kl", weight=0.0))
    model = LeWM(config, 1).eval()
    frames, action = windows(config, 3, 1)
    latents: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        latents.append(output)

    model.encoder.register_forward_hook(keep)
    model(frames, action).total.backward()
    gradient = latents[0].grad
    assert gradient is not None
    assert gradient.view(3, 2, 8)[:, 1].abs().sum() > 0


def test_sigreg_needs_directions():
    config = small(regularizer=RegularizerConfig(kind="sigreg"))
    model = LeWM(config, 1)
    frames, action = windows(config, 4, 1)
    with pytest.raises(ValueError, match="directions"):
        model(frames, action)
    drawn = random_directions(8, 16, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.isfinite(model(frames, action, drawn).total)


def test_rollout_equals_repeated_single_steps():
    config = small()
    model = LeWM(config, 1).eval()
    z, plan = torch.randn(3, 8), torch.randn(3, 4, 2)
    rolled = model.rollout(z, plan)
    for step in range(4):
        z = model.predict(z, plan[:, step])
        torch.testing.assert_close(rolled[:, step], z)


def test_wrong_observation_shape_is_named():
    model = LeWM(small(), 1)
    with pytest.raises(ValueError, match=r"\(3, 32, 32, 3\).*\(2, 32, 32, 3\)"):
        model.encode(torch.zeros(1, 3, 32, 32, 3, dtype=torch.uint8))


def _train_on_the_dot(kind: Any, weight: float, steps: int = 120) -> tuple[float, float]:
    """Total variance and effective rank of the latents after training on frames of a dot that the action turns."""
    torch.manual_seed(0)
    shape = RegularizerConfig(kind=kind, weight=weight, directions=64, subspaces=4)
    config = small(history=1, frame_skip=1, stack=1, regularizer=shape)
    model = LeWM(config, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    z_BJD = torch.empty(0)
    for step in range(steps):
        frames, action = _turning_dot(32, generator)
        drawn = directions(shape, 8, seed=0, step=step, device=torch.device("cpu"), dtype=torch.float32)
        losses = model(frames, action, drawn)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        z_BJD = losses.z_BJD
    z_ND = z_BJD.flatten(0, 1)
    return float(z_ND.var(dim=0).sum()), effective_rank(z_ND)


@pytest.fixture(scope="module")
def collapsed() -> float:
    """Total variance without a regularizer: all latents become one point."""
    return _train_on_the_dot("kl", 0.0)[0]


@pytest.mark.parametrize("kind", ["kl", "kl_diagonal", "sigreg", "subspace", "mixture"])
def test_every_regularizer_keeps_latents_from_collapsing_and_none_does_not(kind, collapsed):
    spread, rank = _train_on_the_dot(kind, 0.1)
    assert spread > 100 * collapsed
    # A point on a circle takes two dimensions; variances alone do not forbid that all dimensions say the same.
    assert rank > (1 if kind == "kl_diagonal" else 2)


def _turning_dot(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    angle = 6.28 * torch.rand(batch, 1, generator=generator)
    action = torch.randn(batch, 1, 1, generator=generator)
    angles = torch.cat([angle, angle + 0.5 * action[:, :, 0]], dim=1)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centre_x, centre_y = 16 + 9 * angles.cos(), 16 + 9 * angles.sin()
    squared = (columns - centre_x[..., None, None]).square() + (rows - centre_y[..., None, None]).square()
    image = (255 * torch.exp(-squared / 12)).to(torch.uint8)
    return image[:, :, None, :, :, None].expand(-1, -1, 1, -1, -1, 3).contiguous(), action


def test_effective_rank_of_known_spectra():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 6, generator=generator)
    assert effective_rank(z) == pytest.approx(6, rel=0.01)
    assert effective_rank(z[:, :1] * torch.ones(1, 6)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(10, 4)) == 0
