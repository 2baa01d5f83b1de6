"""Planning in latent space: the cross-entropy method over a batch of environments.

A planner minimises an objective over action plans, imagining their latents with a dynamics (a LeWM, or anything with
`rollout`). Every environment has its own generator, so planning one or fifty at once gives each the same plan. The
update is the reference's (LeWM, section B): Gaussian per action, mean and standard deviation of the elites, candidate
0 is the mean itself, the final mean is returned. Plans live in raw actions and are clipped to the action bounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Dynamics(Protocol):
    """Anything that imagines: latents (B, D) and raw plans (B, H, K) to latents (B, H, D)."""

    def rollout(self, z_BD: Tensor, plan_BHK: Tensor, /) -> Tensor: ...


Objective = Callable[[Tensor], Tensor]
"""Imagined latents (E, S, H, D) of E environments and S candidates to costs (E, S)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CEMConfig:
    """Settings of the cross-entropy method. Costs samples * iterations * horizon predictions an environment."""

    samples: int = 300
    iterations: int = 10
    elites: int = 30
    horizon: int = 5
    """Action blocks in a plan."""

    def __post_init__(self) -> None:
        if not 2 <= self.elites <= self.samples:
            raise ValueError(f"CEM needs 2 <= elites <= samples, not elites={self.elites}, samples={self.samples}")
        if self.iterations < 1 or self.horizon < 1:
            raise ValueError(f"CEM needs at least one iteration and one block, not {self}")


def goal_objective(goal_ED: Tensor) -> Objective:
    """Squared distance of the last imagined latent to each environment's goal latent (E, D)."""

    def cost(z_ESHD: Tensor) -> Tensor:
        return (z_ESHD[:, :, -1] - goal_ED[:, None]).square().sum(-1)

    return cost


@torch.no_grad()
def cem(
    objective: Objective,
    dynamics: Dynamics,
    z_ED: Tensor,
    *,
    mean_K: Tensor,
    std_K: Tensor,
    bounds: tuple[float, float],
    generators: Sequence[torch.Generator],
    config: CEMConfig,
) -> Tensor:
    """Plans (E, horizon, K) of raw actions for E environments whose present latents are `z_ED`.

    The search starts from N(mean_K, std_K), the distribution of the training actions tiled to a block; `generators`
    holds one generator an environment, on the latents' device.
    """
    environments, latent_dim = z_ED.shape
    samples, horizon, block = config.samples, config.horizon, len(mean_K)
    if len(generators) != environments:
        raise ValueError(f"{environments} environments need as many generators, not {len(generators)}")
    mean = mean_K.expand(environments, horizon, block).clone()
    std = std_K.expand(environments, horizon, block).clone()
    start_ND = z_ED.repeat_interleave(samples, dim=0)
    for _ in range(config.iterations):
        noise = torch.stack(
            [
                torch.randn(samples, horizon, block, generator=generator, device=z_ED.device, dtype=z_ED.dtype)
                for generator in generators
            ]
        )
        plans_ESHK = (mean[:, None] + std[:, None] * noise).clamp_(*bounds)
        plans_ESHK[:, 0] = mean.clamp(*bounds)
        z_NHD = dynamics.rollout(start_ND, plans_ESHK.flatten(0, 1))
        cost_ES = objective(z_NHD.view(environments, samples, horizon, latent_dim))
        elite = cost_ES.topk(config.elites, dim=1, largest=False).indices
        elites = plans_ESHK.gather(1, elite[:, :, None, None].expand(-1, -1, horizon, block))
        mean, std = elites.mean(dim=1), elites.std(dim=1)
    return mean.clamp(*bounds)
