"""The term against collapse, from its configuration: which regularizer, on which directions, and its null value."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models import regularizers


@dataclass(frozen=True, kw_only=True, slots=True)
class RegularizerConfig:
    """The term against collapse and its weight in the loss.

    `kl` and `kl_diagonal` are the Gaussian KL / D with full and diagonal covariance; `sigreg` is the Epps-Pulley
    statistic on random directions; `subspace` draws those inside fixed orthogonal subspaces; `mixture` compares with a
    mixture of unit Gaussians instead of one.
    """

    kind: Literal["kl", "kl_diagonal", "sigreg", "subspace", "mixture"] = "kl"
    weight: float = 0.1
    shrinkage: float = 0.0
    """Share of the covariance in `kl` that is replaced by its mean variance times the identity, 0 to 1."""
    directions: int = 1024
    """Random projections of `sigreg`, `subspace` and `mixture`."""
    subspaces: int = 32
    """Orthogonal subspaces of `subspace`; must divide the latent's dimensions and the directions."""
    components: int = 4
    """Gaussians of `mixture`, equally likely."""
    spread: float = 3.0
    """Distance of the components' means from the origin."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or not 0 <= self.shrinkage <= 1 or not 0 <= self.spread < math.inf:
            raise ValueError(
                "a regularizer needs a finite weight >= 0, 0 <= shrinkage <= 1 and a finite spread >= 0, not "
                f"weight={self.weight}, shrinkage={self.shrinkage}, spread={self.spread}"
            )
        for name in ("directions", "subspaces", "components"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def directions(
    config: RegularizerConfig, dim: int, *, seed: int, step: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Unit vectors (dim, M) that the regularizer needs at this step, the same on every rank; None if it needs none."""
    if config.kind in ("kl", "kl_diagonal"):
        return None
    where = {"seed": seed, "step": step, "device": device, "dtype": dtype}
    if config.kind == "subspace":
        return regularizers.subspace_directions(dim, config.directions, subspaces=config.subspaces, **where)
    return regularizers.random_directions(dim, config.directions, **where)


def regularize(config: RegularizerConfig, z_BJD: Tensor, directions_DM: Tensor | None) -> Tensor:
    """The regularizer of the global batch of latents, a scalar."""
    if config.kind == "kl":
        return regularizers.gaussian_kl(z_BJD, shrinkage=config.shrinkage)
    if config.kind == "kl_diagonal":
        return regularizers.gaussian_kl_diagonal(z_BJD)
    if directions_DM is None:
        raise ValueError(f"{config.kind} needs random directions: pass directions_DM")
    return regularizers.sigreg(z_BJD, directions_DM, _means(config, z_BJD.shape[-1], z_BJD.device))


def null_value(config: RegularizerConfig, *, windows: int, observations: int, dim: int) -> float:
    """Expected value on latents that have the wished distribution, for `windows` windows of `observations` each."""
    if config.kind == "kl":
        return regularizers.gaussian_kl_null(windows * observations, dim, shrinkage=config.shrinkage)
    if config.kind == "kl_diagonal":
        return regularizers.gaussian_kl_diagonal_null(windows * observations)
    if config.kind != "mixture":
        return regularizers.sigreg_null()
    device = torch.device("cpu")
    drawn = regularizers.random_directions(dim, config.directions, seed=0, step=0, device=device, dtype=torch.float64)
    return regularizers.sigreg_null(_means(config, dim, device, torch.float64), drawn)


def _means(
    config: RegularizerConfig, dim: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """Means (components, dim) of the mixture, fixed: random unit vectors times the spread."""
    if config.kind != "mixture":
        return None
    return (
        config.spread
        * regularizers.random_directions(dim, config.components, seed=0, step=0, device=device, dtype=dtype).T
    )
