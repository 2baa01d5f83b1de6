"""The regularizers that keep latents from collapsing: SIGReg and the KL divergence from N(0, I).

Both measure how far the batch of latents is from a standard normal distribution, in float32 (float64 stays) with
autocast off, and over the global batch: they reduce to sums over items, which `global_sum` adds up across ranks.
`null_value` gives what each statistic is worth on samples that *are* standard normal, for the same number of samples:
a regularizer at its null has nothing left to ask for.

Sources: SIGReg is the Epps-Pulley statistic on random one-dimensional projections (LeJEPA, and LeWM 2603.19312,
appendix A) with the constants of LeWM's released code: 17 knots on [0, 3], window exp(-t^2/2). The Gaussian KL is the
closed form for moment-matched Gaussians, divided by D as the `article` preset asks. Directions inside fixed orthogonal
subspaces make SIGReg Sub-JEPA's (2605.09241); means of components turn its target into a mixture of Gaussians.
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


def subspace_directions(
    dim: int, count: int, *, subspaces: int, seed: int, step: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`count` unit vectors (dim, count), as many in each of `subspaces` fixed random orthogonal subspaces.

    SIGReg on them is the mean of SIGReg in every subspace: Gaussian there is asked of fewer dimensions at a time. The
    subspaces are frozen (they depend on the seed alone), the directions in them change with every step.
    """
    if dim % subspaces or count % subspaces:
        raise ValueError(f"{subspaces} subspaces must divide {dim} dimensions and {count} directions: choose a divisor")
    width, each = dim // subspaces, count // subspaces
    generator = torch.Generator().manual_seed((seed * 1_000_003 + 7) & 0x7FFF_FFFF_FFFF_FFFF)
    basis_DD = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    inside = random_directions(width, count, seed=seed, step=step, device=torch.device("cpu"), dtype=torch.float64)
    parts = [
        basis_DD[:, index * width : (index + 1) * width] @ inside[:, index * each : (index + 1) * each]
        for index in range(subspaces)
    ]
    return torch.cat(parts, dim=1).to(device=device, dtype=dtype)


def sigreg(
    z_BJD: Tensor, directions_DM: Tensor, means_KD: Tensor | None = None, *, knots: int = 17, t_max: float = 3.0
) -> Tensor:
    """Epps-Pulley statistic of the batch, averaged over time steps and directions, times the number of items.

    For every direction the empirical characteristic function over the (global) batch is compared with that of N(0, 1):
    T = B * sum_k w_k |phi_B(t_k) - exp(-t_k^2 / 2)|^2, a trapezoid rule on [-t_max, t_max] by symmetry. With `means_KD`
    the target is the mixture of N(mean, I) in equal shares.
    """
    with torch.autocast(z_BJD.device.type, enabled=False):
        z_BJD = at_least_float32(z_BJD)
        directions_DM = directions_DM.to(z_BJD.dtype)
        t, phi, weight = _grid(knots, t_max, z_BJD)
        angles_BJMk = (z_BJD @ directions_DM).unsqueeze(-1) * t
        count = global_sum(t.new_tensor(float(z_BJD.shape[0])))
        cosine_JMk = global_sum(angles_BJMk.cos().sum(0)) / count
        sine_JMk = global_sum(angles_BJMk.sin().sum(0)) / count
        if means_KD is None:
            error_JMk = (cosine_JMk - phi).square() + sine_JMk.square()
        else:
            real_Mk, imaginary_Mk = _mixture(means_KD.to(z_BJD.dtype), directions_DM, t, phi)
            error_JMk = (cosine_JMk - real_Mk).square() + (sine_JMk - imaginary_Mk).square()
        return count * (error_JMk @ (weight * phi)).mean()


def _grid(knots: int, t_max: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Knots, N(0, 1)'s characteristic function there, and trapezoid weights that count both signs of t."""
    t = torch.linspace(0, t_max, knots, device=like.device, dtype=like.dtype)
    phi = torch.exp(-0.5 * t.square())
    weight = torch.full_like(t, 2 * t_max / (knots - 1))
    weight[0] = weight[-1] = t_max / (knots - 1)
    return t, phi, weight


def _mixture(means_KD: Tensor, directions_DM: Tensor, t: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Characteristic function (M, k) of the mixture along every direction: real and imaginary part."""
    angles_KMk = (means_KD @ directions_DM).unsqueeze(-1) * t
    return angles_KMk.cos().mean(0) * phi, angles_KMk.sin().mean(0) * phi


def gaussian_kl(z_BJD: Tensor, *, ridge: float = 1e-4, shrinkage: float = 0.0) -> Tensor:
    """KL(N(mu, C) || N(0, I)) / D, with mean and full covariance over all B*J latents of the global batch.

    `ridge` is added to the covariance's diagonal, so that the logarithm is finite when there are fewer samples than
    dimensions or the latents have collapsed; a collapsed dimension then costs about -log(ridge)/2 / D. On top comes
    what rounding can take away from an eigenvalue, machine epsilon times tr(C): without it large latents that fill few
    dimensions have no Cholesky factor in float32. `shrinkage` s
    replaces C by (1 - s) C + s tr(C) / D I first, which a batch smaller than D needs to be asked for variance alone
    in the directions that it cannot fill.
    """
    with torch.autocast(z_BJD.device.type, enabled=False):
        z_ND = at_least_float32(z_BJD).flatten(0, -2)
        dim = z_ND.shape[-1]
        count = global_sum(z_ND.new_tensor(float(len(z_ND))))
        mean_D = global_sum(z_ND.sum(0)) / count
        centred_ND = z_ND - mean_D
        cov_DD = global_sum(centred_ND.T @ centred_ND) / count
        eye_DD = torch.eye(dim, device=z_ND.device, dtype=z_ND.dtype)
        if shrinkage:
            cov_DD = (1 - shrinkage) * cov_DD + shrinkage * cov_DD.trace() / dim * eye_DD
        rounding = torch.finfo(cov_DD.dtype).eps * cov_DD.trace()
        cov_DD = cov_DD + (ridge + rounding) * eye_DD
        # cholesky_ex never waits for the device to say whether it succeeded; a failure shows as NaN.
        factor_DD, info = torch.linalg.cholesky_ex(cov_DD)
        logdet = 2 * factor_DD.diagonal().log().sum() + torch.where(info == 0, 0.0, torch.nan)
        return 0.5 * (cov_DD.trace() + mean_D @ mean_D - dim - logdet) / dim


def gaussian_kl_diagonal(z_BJD: Tensor, *, ridge: float = 1e-4) -> Tensor:
    """As `gaussian_kl`, with the dimensions' variances alone: O(N D), any batch, but blind to correlations."""
    with torch.autocast(z_BJD.device.type, enabled=False):
        z_ND = at_least_float32(z_BJD).flatten(0, -2)
        count = global_sum(z_ND.new_tensor(float(len(z_ND))))
        mean_D = global_sum(z_ND.sum(0)) / count
        variance_D = global_sum((z_ND - mean_D).square().sum(0)) / count + ridge
        return 0.5 * (variance_D + mean_D.square() - 1 - variance_D.log()).mean()


def gaussian_kl_diagonal_null(count: int) -> float:
    """Expected `gaussian_kl_diagonal` of `count` independent N(0, I) samples at ridge 0, exact for two and more."""
    # count * variance is chi-squared with count - 1 degrees of freedom; variance and squared mean add up to 1.
    halves = torch.tensor(0.5 * (count - 1), dtype=torch.float64)
    return -0.5 * (torch.digamma(halves).item() + math.log(2.0 / count))


def gaussian_kl_null(count: int, dim: int, *, shrinkage: float = 0.0) -> float:
    """Expected `gaussian_kl` of `count` independent N(0, I) samples.

    Exact, from the Wishart log-determinant, where the sample covariance is regular (count > dim + 1, ridge 0) and not
    shrunk; otherwise the mean of a few seeded samples with the default ridge. A batch with fewer latents than
    dimensions cannot look Gaussian in all of them: its null is large, and comparing with it is what makes the
    statistic readable.
    """
    if count <= dim + 1 or shrinkage:
        generator = torch.Generator().manual_seed(0)
        samples = (torch.randn(count, 1, dim, generator=generator) for _ in range(4))
        return sum(float(gaussian_kl(sample, shrinkage=shrinkage)) for sample in samples) / 4
    # count * C is Wishart with count - 1 degrees of freedom; the trace and the mean's square add up to dim.
    halves = 0.5 * (count - 1 - torch.arange(dim, dtype=torch.float64))
    expected_logdet = torch.digamma(halves).sum().item() + dim * math.log(2.0 / count)
    return -0.5 * expected_logdet / dim


def sigreg_null(
    means_KD: Tensor | None = None, directions_DM: Tensor | None = None, *, knots: int = 17, t_max: float = 3.0
) -> float:
    """Expected `sigreg` of independent samples of its target, exact for any batch.

    sum_k w_k (1 - exp(-t_k^2)) for N(0, 1); for a mixture the mean over `directions_DM`.
    """
    t, phi, weight = _grid(knots, t_max, torch.empty(0, dtype=torch.float64))
    squared = phi.square()
    if means_KD is not None:
        assert directions_DM is not None
        real_Mk, imaginary_Mk = _mixture(means_KD.double(), directions_DM.double(), t, phi)
        squared = (real_Mk.square() + imaginary_Mk.square()).mean(0)
    # E|phi_B - phi|^2 = (1 - |phi|^2) / B for a characteristic function estimated from B samples.
    return float((weight * phi * (1 - squared)).sum())
