"""The cross-entropy method: sample from a Gaussian, refit it to the best, repeat.

The update is the reference's (LeWM, arXiv 2603.19312, appendices B and D, and its code): an independent Gaussian for
every number of the plan; candidate 0 is the mean itself; mean and standard deviation (n - 1 in the denominator) of the
elites, without momentum or floor; the final mean is returned, which itself is never imagined.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.planners.problem import Evaluate, Solution, Start, best, check_sizes, pick


@dataclass(frozen=True, kw_only=True, slots=True)
class CEMConfig:
    """Settings of the cross-entropy method. Costs samples * iterations * horizon predictions an environment."""

    samples: int = 300
    iterations: int = 10
    elites: int = 30
    horizon: int = 5
    """Action blocks in a plan."""
    chunk: int | None = None
    """Candidates of each environment imagined at a time, where all at once need too much memory."""

    def __post_init__(self) -> None:
        check_sizes("CEM", samples=self.samples, iterations=self.iterations, elites=self.elites, horizon=self.horizon,
                    chunk=self.chunk)  # fmt: skip

    @property
    def populations(self) -> tuple[int, ...]:
        """Candidates in each iteration."""
        return (self.samples,) * self.iterations


REFERENCE_CEM = CEMConfig(samples=300, iterations=30, elites=30, horizon=5)
"""As the reference plans, from the statistics of the training actions and with `bounds=None`, for it clips nothing. Its
text says 10 iterations for all tasks but Push-T."""


def search(config: CEMConfig, evaluate: Evaluate, noise: tuple[Tensor, ...], start: Start) -> Solution:
    """Minimise `evaluate` from `start`; `noise` holds standard normals (E, S, H, K) for every iteration."""
    mean, std = start.mean_EHK, start.std_EHK
    cost_EM = mean.new_empty(0)
    for noise_ESHK in noise:
        plans = start.clamp(torch.addcmul(mean[:, None], std[:, None], noise_ESHK))
        plans[:, 0] = start.clamp(mean)
        cost_EM, index_EM = best(evaluate(plans), config.elites)
        elites = pick(plans, index_EM)
        std, mean = torch.std_mean(elites, dim=1)
    return Solution(start.clamp(mean), cost_EM[:, 0], mean, mean.new_empty(len(mean), 0, *mean.shape[1:]))
