"""The Gaussian regularizers that keep latents from collapsing: SIGReg and the KL divergence from N(0, I).

Both measure how far the batch of latents is from a standard normal distribution, in float32 (float64 stays) with
autocast off, and over the global batch: they reduce to sums over items, which `global_sum` adds up across ranks.
`null_value` gives what each statistic is worth on samples that *are* standard normal, for the same number of samples:
a regularizer at its null has nothing left to ask for.

Sources: SIGReg is the Epps-Pulley statistic on random one-dimensional projections (LeJEPA, and LeWM 2603.19312,
appendix A) with the constants of LeWM's released code: 17 knots on [0, 3], window exp(-t^2/2). The Gaussian KL is the
closed form for moment-matched Gaussians, divided by D as the `article` preset asks.
"""

import math

import torch
from torch import Tensor

from models.collectives import global_sum
from models.precision import at_least_float32


def random_directions(
    dim: int, count: int, *, seed: int, step: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`count` unit vectors (dim, count), a function of (seed, step): the same on every rank and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)
    directions = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    return (directions / directions.norm(dim=0, keepdim=True)).to(device=device, dtype=dtype)


def sigreg(z_BJD: Tensor, directions_DM: Tensor, *, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """Epps-Pulley statistic of the batch, averaged over time steps and directions, times the number of items.

    For every direction the empirical characteristic function over the (global) batch is compared with that of N(0, 1):
    T = B * sum_k w_k |phi_B(t_k) - exp(-t_k^2 / 2)|^2, a trapezoid rule on [-t_max, t_max] by symmetry.
    """
    with torch.autocast(z_BJD.device.type, enabled=False):
        z_BJD = at_least_float32(z_BJD)
        t = torch.linspace(0, t_max, knots, device=z_BJD.device, dtype=z_BJD.dtype)
        phi = torch.exp(-0.5 * t.square())
        weight = torch.full_like(t, 2 * t_max / (knots - 1))
        weight[0] = weight[-1] = t_max / (knots - 1)
        angles_BJMk = (z_BJD @ directions_DM.to(z_BJD.dtype)).unsqueeze(-1) * t
        count = global_sum(t.new_tensor(float(z_BJD.shape[0])))
        cosine_JMk = global_sum(angles_BJMk.cos().sum(0)) / count
        sine_JMk = global_sum(angles_BJMk.sin().sum(0)) / count
        error_JMk = (cosine_JMk - phi).square() + sine_JMk.square()
        return count * (error_JMk @ (weight * phi)).mean()


def gaussian_kl(z_BJD: Tensor, *, ridge: float = 1e-4) -> Tensor:
    """KL(N(mu, C) || N(0, I)) / D, with mean and full covariance over all B*J latents of the global batch.

    `ridge` is added to the covariance's diagonal, so that the logarithm is finite when there are fewer samples than
    dimensions or the latents have collapsed; a collapsed dimension then costs about -log(ridge)/2 / D.
    """
    with torch.autocast(z_BJD.device.type, enabled=False):
        z_ND = at_least_float32(z_BJD).flatten(0, -2)
        dim = z_ND.shape[-1]
        count = global_sum(z_ND.new_tensor(float(len(z_ND))))
        mean_D = global_sum(z_ND.sum(0)) / count
        centred_ND = z_ND - mean_D
        cov_DD = global_sum(centred_ND.T @ centred_ND) / count
        cov_DD = cov_DD + ridge * torch.eye(dim, device=z_ND.device, dtype=z_ND.dtype)
        # cholesky_ex never waits for the device to say whether it succeeded; a failure shows as NaN.
        factor_DD, info = torch.linalg.cholesky_ex(cov_DD)
        logdet = 2 * factor_DD.diagonal().log().sum() + torch.where(info == 0, 0.0, torch.nan)
        return 0.5 * (cov_DD.trace() + mean_D @ mean_D - dim - logdet) / dim


def gaussian_kl_null(count: int, dim: int) -> float:
    """Expected `gaussian_kl` of `count` independent N(0, I) samples.

    Exact, from the Wishart log-determinant, where the sample covariance is regular (count > dim + 1, ridge 0);
    otherwise the mean of a few seeded samples with the default ridge. A batch with fewer latents than dimensions cannot
    look Gaussian in all of them: its null is large, and comparing with it is what makes the statistic readable.
    """
    if count <= dim + 1:
        generator = torch.Generator().manual_seed(0)
        samples = (torch.randn(count, 1, dim, generator=generator) for _ in range(4))
        return sum(float(gaussian_kl(sample)) for sample in samples) / 4
    # count * C is Wishart with count - 1 degrees of freedom; the trace and the mean's square add up to dim.
    halves = 0.5 * (count - 1 - torch.arange(dim, dtype=torch.float64))
    expected_logdet = torch.digamma(halves).sum().item() + dim * math.log(2.0 / count)
    return -0.5 * expected_logdet / dim


def sigreg_null(*, knots: int = 17, t_max: float = 3.0) -> float:
    """Expected `sigreg` of independent N(0, 1) samples, exact for any batch: sum_k w_k (1 - exp(-t_k^2))."""
    t = torch.linspace(0, t_max, knots, dtype=torch.float64)
    weight = torch.full_like(t, 2 * t_max / (knots - 1))
    weight[0] = weight[-1] = t_max / (knots - 1)
    # E|phi_B - phi|^2 = (1 - phi^2) / B for a characteristic function estimated from B samples.
    return float((weight * torch.exp(-0.5 * t.square()) * (1 - torch.exp(-t.square()))).sum())
