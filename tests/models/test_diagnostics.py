"""Diagnostics on latents whose geometry is known."""

import pytest
import torch

from models.diagnostics import error_by_horizon, gaussianity, retrieval, straightness


def test_gaussianity_is_near_its_null_for_normal_latents_only():
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    value, null = gaussianity(z)
    assert 0.5 * null < value < 2 * null
    assert gaussianity(0.1 * z)[0] > 100 * null


def test_straightness_of_a_line_a_square_and_a_pendulum():
    line = torch.arange(5.0)[None, :, None] * torch.tensor([1.0, 2.0])
    assert straightness(line) == pytest.approx(1)
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    assert straightness(square) == pytest.approx(0, abs=1e-6)
    assert straightness(torch.tensor([[[0.0], [1.0], [0.0], [1.0]]])) == pytest.approx(-1)


def test_error_by_horizon_beside_staying():
    real = torch.arange(1.0, 4.0)[None, :, None].expand(2, 3, 4)
    errors = error_by_horizon(real + torch.tensor([0.0, 1.0, 2.0])[:, None], real, torch.zeros(2, 4))
    torch.testing.assert_close(errors, torch.tensor([[0.0, 1.0, 4.0], [1.0, 4.0, 9.0]]))


def test_retrieval_of_right_shuffled_and_collapsed_latents():
    real = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert retrieval(real + 1e-3, real) == (1.0, 1.0)
    share, rank = retrieval(real.flip(0), real)
    assert share == 0
    assert rank > 5
    assert retrieval(torch.zeros(20, 6), torch.zeros(20, 6)) == (0.0, 20.0)


def test_latents_that_are_nan_find_nothing():
    real = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert retrieval(torch.full((20, 6), torch.nan), real) == (0.0, 20.0)
