"""iCEM: the cross-entropy method with noise that is smooth in time and elites that live on (Pinneri et al., 2020).

Against `cem`: noise with power spectrum 1 / f^beta over the decisions of a plan, for white noise hardly moves anything
that has inertia; a share of the elites stays a candidate in the next iteration, and, shifted, in the next solve; the
Gaussian moves with momentum; the population shrinks; the best candidate is returned, not the mean, which is itself a
candidate of the last iteration. A kept elite keeps its cost, for dynamics and objective are deterministic. Sizes depend
on the number of the iteration alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.planners.problem import Evaluate, Solution, Start, best, check_sizes, pick


@dataclass(frozen=True, kw_only=True, slots=True)
class ICEMConfig:
    """Settings of iCEM. Costs sum(populations) * horizon predictions an environment."""

    samples: int = 300
    """Candidates of the first iteration."""
    iterations: int = 10
    elites: int = 30
    horizon: int = 5
    """Action blocks in a plan."""
    chunk: int | None = None
    """Candidates of each environment imagined at a time, where all at once need too much memory."""
    color: float = 2.0
    """beta: 0 for white noise; more for slower actions."""
    kept: float = 0.3
    """Share of the elites that stay candidates."""
    momentum: float = 0.1
    """Share of the old mean and deviation in the new."""
    decay: float = 1.25
    """By how much the population shrinks an iteration; never below twice the elites."""

    def __post_init__(self) -> None:
        check_sizes("iCEM", samples=self.samples, iterations=self.iterations, elites=self.elites, horizon=self.horizon,
                    chunk=self.chunk)  # fmt: skip
        if self.color < 0 or self.decay < 1 or not 0 <= self.kept <= 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"iCEM needs color >= 0, decay >= 1, 0 <= kept <= 1 and 0 <= momentum < 1, not color={self.color}, "
                f"decay={self.decay}, kept={self.kept}, momentum={self.momentum}"
            )

    @property
    def populations(self) -> tuple[int, ...]:
        """Candidates drawn in each iteration."""
        least = min(self.samples, 2 * self.elites)
        return tuple(max(least, int(self.samples / self.decay**index)) for index in range(self.iterations))


def search(
    config: ICEMConfig, evaluate: Evaluate, noise: tuple[Tensor, ...], start: Start, *, decisions: int
) -> Solution:
    """Minimise `evaluate` from `start`; `noise` holds standard normals (E, S, H, K) for every iteration, and a block
    of a plan `decisions` actions, one after the other."""
    mean, std = start.mean_EHK, start.std_EHK
    mixing_TT = coloring(mean.shape[1] * decisions, config.color, mean)
    kept, momentum = int(config.kept * config.elites), config.momentum
    elites, cost_EM = mean.new_empty(0), mean.new_empty(0)
    for index, white_ESHK in enumerate(noise):
        noise_ESHK = color(white_ESHK, mixing_TT, decisions)
        plans = start.clamp(torch.addcmul(mean[:, None], std[:, None], noise_ESHK))
        if index == 0 and start.elites_EMHK is not None:
            # They end earlier than a plan does: what the noise says goes on from there.
            _, count, blocks, _ = start.elites_EMHK.shape
            plans[:, :count, :blocks] = start.clamp(start.elites_EMHK)
        if index == len(noise) - 1:
            plans[:, -1] = start.clamp(mean)
        cost_ES = evaluate(plans)
        if index > 0:
            plans = torch.cat([plans, elites[:, :kept]], dim=1)
            cost_ES = torch.cat([cost_ES, cost_EM[:, :kept]], dim=1)
        cost_EM, index_EM = best(cost_ES, config.elites)
        elites = pick(plans, index_EM)
        elite_std, elite_mean = torch.std_mean(elites, dim=1)
        mean, std = torch.lerp(elite_mean, mean, momentum), torch.lerp(elite_std, std, momentum)
    return Solution(elites[:, 0], cost_EM[:, 0], mean, elites[:, :kept])


def color(white_ESHK: Tensor, mixing_TT: Tensor, decisions: int) -> Tensor:
    """White noise mixed over the T = H * decisions steps of a plan, each action dimension by itself."""
    *batch, horizon, block = white_ESHK.shape
    white = white_ESHK.reshape(*batch, horizon * decisions, block // decisions)
    return (mixing_TT @ white).view(white_ESHK.shape)


def coloring(steps: int, beta: float, like: Tensor) -> Tensor:
    """The symmetric (T, T) matrix that makes white noise of T steps one with spectrum 1 / f^beta and variance 1.

    A filter by f^(-beta / 2), written as the circulant matrix that it is; f = 0 counts as the lowest frequency.
    """
    step = torch.arange(steps, device=like.device, dtype=like.dtype)
    frequency = torch.minimum(step, steps - step).clamp_min(1) / steps
    phase = 2 * math.pi / steps * torch.outer(step, step).remainder(steps)
    response = (frequency.pow(-beta / 2) * phase.cos()).sum(dim=1)
    lag = (step[:, None] - step).long().remainder(steps)
    return (response / response.square().sum().sqrt())[lag]
