"""MPPI: candidates weighted by the exponential of their cost, as TD-MPC2 has it (Hansen et al., arXiv 2310.16828).

Of every iteration the elites alone count, each with the softmax of minus its cost, and mean and standard deviation of
the next are theirs. Deviations have a floor, so a search goes on looking and a warm start stays able to move. Costs are
measured in standard deviations of the elites' own, so that the temperature means the same for a distance of latents as
for a reward; TD-MPC2 measures them in returns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.planners.problem import Evaluate, Solution, Start, best, check_sizes, pick


@dataclass(frozen=True, kw_only=True, slots=True)
class MPPIConfig:
    """Settings of MPPI. Costs samples * iterations * horizon predictions an environment."""

    samples: int = 512
    iterations: int = 6
    elites: int = 64
    """As many as `samples` for MPPI without elites."""
    horizon: int = 5
    """Action blocks in a plan."""
    chunk: int | None = None
    """Candidates of each environment imagined at a time, where all at once need too much memory."""
    temperature: float = 0.5
    """In standard deviations of the elites' costs: near 0 the best counts alone, at infinity all elites alike."""
    floor: float = 0.05
    """Least standard deviation, as a share of that at the start."""

    def __post_init__(self) -> None:
        check_sizes("MPPI", samples=self.samples, iterations=self.iterations, elites=self.elites, horizon=self.horizon,
                    chunk=self.chunk)  # fmt: skip
        if not self.temperature > 0 or not 0 <= self.floor <= 1:
            raise ValueError(f"MPPI needs temperature > 0 and 0 <= floor <= 1, not {self.temperature} and {self.floor}")

    @property
    def populations(self) -> tuple[int, ...]:
        """Candidates in each iteration."""
        return (self.samples,) * self.iterations


def search(config: MPPIConfig, evaluate: Evaluate, noise: tuple[Tensor, ...], start: Start) -> Solution:
    """Minimise `evaluate` from `start`; `noise` holds standard normals (E, S, H, K) for every iteration."""
    mean, std = start.mean_EHK, start.std_EHK
    cost_EM = mean.new_empty(0)
    for noise_ESHK in noise:
        plans = start.clamp(torch.addcmul(mean[:, None], std[:, None], noise_ESHK))
        plans[:, 0] = start.clamp(mean)
        cost_EM, index_EM = best(evaluate(plans), config.elites)
        elites = pick(plans, index_EM)
        weight = weights(cost_EM, config.temperature)[:, :, None, None].to(elites.dtype)
        mean = (weight * elites).sum(dim=1)
        variance = (weight * (elites - mean[:, None]).square()).sum(dim=1)
        std = torch.maximum(variance.sqrt(), config.floor * start.std_EHK)
    return Solution(start.clamp(mean), cost_EM[:, 0], mean, mean.new_empty(len(mean), 0, *mean.shape[1:]))


def weights(cost_EM: Tensor, temperature: float) -> Tensor:
    """Weights (E, M) that add up to 1 of elites with these costs, best first; equal where no cost is finite."""
    cost_EM = torch.where(torch.isfinite(cost_EM), cost_EM, 0.0)
    scale = (temperature * cost_EM.std(dim=1, keepdim=True)).clamp_min(torch.finfo(cost_EM.dtype).tiny)
    return torch.softmax((cost_EM[:, :1] - cost_EM) / scale, dim=1)
