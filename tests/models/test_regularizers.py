"""The regularizers against closed forms, numerical integration and torch.distributions."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from models.objective import RegularizerConfig, directions, null_value, regularize
from models.regularizers import (
    gaussian_kl,
    gaussian_kl_diagonal,
    gaussian_kl_null,
    random_directions,
    sigreg,
    sigreg_null,
    subspace_directions,
)


def _directions(dim: int, count: int = 32, seed: int = 0, step: int = 0) -> torch.Tensor:
    return random_directions(dim, count, seed=seed, step=step, device=torch.device("cpu"), dtype=torch.float64)


def test_gaussian_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    z = torch.randn(500, 2, 6, generator=generator, dtype=torch.float64) @ mixing + 0.3
    flat = z.flatten(0, 1)
    centred = flat - flat.mean(0)
    moments = MultivariateNormal(flat.mean(0), centred.T @ centred / len(flat))
    standard = MultivariateNormal(torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64))
    expected = kl_divergence(moments, standard) / 6
    torch.testing.assert_close(gaussian_kl(z, ridge=0.0), expected, rtol=1e-10, atol=1e-12)


def test_sigreg_equals_numerical_integration_of_epps_pulley():
    z = torch.randn(40, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.7 + 0.4
    values = z.flatten().numpy()

    def integrand(t: float) -> float:
        empirical = np.exp(1j * t * values).mean()
        return float(abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2))

    expected = len(values) * 2 * quad(integrand, 0, 3)[0]
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(sigreg(z, one, knots=2001)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "dim"), [(64, 8), (200, 32)])
def test_null_values_are_what_standard_normal_samples_give(count, dim):
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(count, 1, dim, generator=generator, dtype=torch.float64) for _ in range(300)]
    kl = np.array([float(gaussian_kl(z, ridge=0.0)) for z in samples])
    assert kl.mean() == pytest.approx(gaussian_kl_null(count, dim), abs=5 * kl.std() / math.sqrt(len(kl)))
    directions = _directions(dim)
    statistic = np.array([float(sigreg(z, directions)) for z in samples])
    assert statistic.mean() == pytest.approx(sigreg_null(), abs=5 * statistic.std() / math.sqrt(len(statistic)))


def test_the_null_of_a_small_batch_is_what_its_samples_give():
    """Fewer samples than dimensions: the missing ones sit at the ridge, and the null says so."""
    z = torch.randn(16, 1, 64, generator=torch.Generator().manual_seed(7))
    assert gaussian_kl_null(16, 64) == pytest.approx(float(gaussian_kl(z)), rel=0.05)
    assert gaussian_kl_null(16, 64) > 10 * gaussian_kl_null(256, 64)


@pytest.mark.parametrize("statistic", ["kl", "sigreg"])
def test_collapse_costs_more_than_a_gaussian_and_has_a_gradient(statistic):
    def value(z: torch.Tensor) -> torch.Tensor:
        return gaussian_kl(z) if statistic == "kl" else sigreg(z, _directions(8))

    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(128, 2, 8, generator=generator)
    collapsed = (1e-3 * normal).requires_grad_()
    cost = value(collapsed)
    assert float(cost.detach()) > 10 * float(value(normal))
    (gradient,) = torch.autograd.grad(cost, collapsed)
    assert torch.isfinite(gradient).all()
    # A step against the gradient spreads the latents.
    assert (collapsed - 1e-6 * gradient).std() > collapsed.std()


def test_fewer_samples_than_dimensions_stay_finite():
    z = torch.randn(4, 2, 32, requires_grad=True)
    cost = gaussian_kl(z)
    cost.backward()
    assert z.grad is not None
    assert torch.isfinite(cost)
    assert torch.isfinite(z.grad).all()


def test_statistics_are_float32_under_bfloat16_autocast():
    z = torch.randn(64, 1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gaussian_kl(z), sigreg(z, _directions(8).float())
    assert all(value.dtype == torch.float32 for value in inside)
    torch.testing.assert_close(inside[0], gaussian_kl(z))
    torch.testing.assert_close(inside[1], sigreg(z, _directions(8).float()))


def test_directions_are_unit_vectors_that_depend_on_seed_and_step_alone():
    first = _directions(16, seed=3)
    torch.manual_seed(99)
    torch.testing.assert_close(first, _directions(16, seed=3), rtol=0, atol=0)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(32, dtype=torch.float64))
    assert not torch.equal(first, _directions(16, seed=3, step=1))


def test_diagonal_kl_equals_torch_distributions():
    z = torch.randn(200, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 1.6 - 0.4
    flat = z.flatten(0, 1)
    moments = Normal(flat.mean(0), flat.std(0, unbiased=False))
    expected = kl_divergence(moments, Normal(torch.zeros(5).double(), torch.ones(5).double())).mean()
    torch.testing.assert_close(gaussian_kl_diagonal(z, ridge=0.0), expected, rtol=1e-10, atol=1e-12)


def test_shrinking_replaces_the_covariance_by_its_mean_variance():
    z = torch.randn(300, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 5)
    covariance = torch.from_numpy(np.cov(z[:, 0].numpy().T, bias=True))
    mean = z[:, 0].mean(0)
    shrunk = 0.7 * covariance + 0.3 * covariance.trace() / 4 * torch.eye(4).double()
    standard = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    expected = kl_divergence(MultivariateNormal(mean, shrunk), standard) / 4
    torch.testing.assert_close(gaussian_kl(z, ridge=0.0, shrinkage=0.3), expected, rtol=1e-10, atol=1e-12)
    few = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(1))
    assert gaussian_kl(few, shrinkage=0.1) < 0.5 * gaussian_kl(few)


def test_mixture_equals_numerical_integration_and_one_centred_component_is_sigreg():
    z = torch.randn(30, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, means = z.flatten().numpy(), np.array([-2.0, 1.0])

    def integrand(t: float) -> float:
        target = np.exp(1j * t * means).mean() * np.exp(-(t**2) / 2)
        return float(abs(np.exp(1j * t * values).mean() - target) ** 2 * np.exp(-(t**2) / 2))

    one = torch.ones(1, 1, dtype=torch.float64)
    expected = len(values) * 2 * quad(integrand, 0, 3)[0]
    assert float(sigreg(z, one, torch.tensor(means)[:, None], knots=2001)) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(sigreg(z, one, torch.zeros(1, 1)), sigreg(z, one))


def test_subspace_directions_lie_in_fixed_orthogonal_subspaces():
    def draw(step: int) -> torch.Tensor:
        device = torch.device("cpu")
        return subspace_directions(12, 24, subspaces=4, seed=1, step=step, device=device, dtype=torch.float64)

    first, second = draw(0), draw(1)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(24, dtype=torch.float64))
    for index in range(4):
        own = slice(6 * index, 6 * (index + 1))
        # Six directions of a step and six of the next span three dimensions, orthogonal to all the others.
        assert torch.linalg.matrix_rank(torch.cat([first[:, own], second[:, own]], dim=1)) == 3
        others = torch.cat([first[:, : own.start], first[:, own.stop :]], dim=1)
        assert (others.T @ second[:, own]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="5 subspaces must divide 12"):
        subspace_directions(12, 20, subspaces=5, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["kl", "kl_diagonal", "sigreg", "subspace", "mixture"])
def test_null_values_of_every_kind_are_what_samples_of_the_target_give(kind):
    config = RegularizerConfig(kind=kind, directions=32, subspaces=4, components=3)
    generator = torch.Generator().manual_seed(0)
    means = 3.0 * random_directions(8, 3, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float64).T
    values = []
    for step in range(300):
        z = torch.randn(64, 2, 8, generator=generator, dtype=torch.float64)
        if kind == "mixture":
            z = z + means[torch.randint(0, 3, (64, 2), generator=generator)]
        drawn = directions(config, 8, seed=0, step=step, device=torch.device("cpu"), dtype=torch.float64)
        values.append(float(regularize(config, z, drawn)))
    expected = null_value(config, windows=64, observations=2, dim=8)
    # The mixture's null is a mean over a sample of directions, the ridge moves the KLs by a hair.
    slack = 0.02 * expected if kind == "mixture" else 1e-4
    assert np.mean(values) == pytest.approx(expected, abs=float(5 * np.std(values) / math.sqrt(300) + slack))


@pytest.mark.parametrize("count", [64, 128, 2048])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_large_latents_that_fill_few_dimensions_have_a_finite_kl_near_that_of_float64(count, scale):
    generator = torch.Generator().manual_seed(0)
    rank = min(count, 256) // 64 * 4
    z = scale * torch.randn(count, 1, rank, generator=generator) @ torch.randn(rank, 256, generator=generator)
    z.requires_grad_()
    cost = gaussian_kl(z)
    cost.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    torch.testing.assert_close(cost.detach().double(), gaussian_kl(z.detach().double()), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": -1.0},
        {"weight": math.nan},
        {"shrinkage": 1.5},
        {"shrinkage": -0.1},
        {"spread": math.inf},
        {"directions": 0},
        {"subspaces": 0},
        {"components": 0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RegularizerConfig(**settings)
