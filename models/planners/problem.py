"""What a planner is given and what it returns, and the two steps that all planners share.

E environments, S candidates, H blocks in a plan, K numbers in a block, T known latents, M elites.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Dynamics(Protocol):
    """Anything that imagines; a latent is a vector, so one of many tokens is flattened."""

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None, /) -> Tensor:
        """Latents (B, H, D) that follow T known ones (B, T, D) under the raw blocks of a plan (B, H, K).

        `past_BPK` holds the P = T - 1 raw blocks between the known latents; None for one known latent.
        """
        ...


Objective = Callable[[Tensor, Tensor], Tensor]
"""Imagined latents (E, S, H, D) and the plans (E, S, H, K) that lead to them, to costs (E, S). Every candidate is
judged by itself: with `chunk`, a call sees some of the S candidates only. A cost that is not finite counts as +inf."""

Bounds = tuple[float, float] | tuple[Tensor, Tensor] | None
"""Lowest and highest raw action, numbers or a (K,) each; None for no bounds."""

Evaluate = Callable[[Tensor], Tensor]
"""Plans (E, S, H, K) to costs (E, S), finite or +inf."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What is left of an earlier solution: a mean (E, L, K) and elites (E, M, L, K), L blocks from the present on."""

    mean_EHK: Tensor
    elites_EMHK: Tensor


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan for every environment, and what the next solve can start from. Nothing here has waited for the device."""

    plan_EHK: Tensor
    """Raw actions to execute, within the bounds."""
    cost_E: Tensor
    """The lowest cost among the last candidates; +inf where none was finite, and the plan there means nothing."""
    mean_EHK: Tensor
    """Where the search ended; the plan itself except in iCEM."""
    elites_EMHK: Tensor
    """Plans that iCEM keeps, best first; none (M = 0) from the other planners."""

    def after(self, blocks: int = 1) -> WarmStart:
        """The warm start once the first `blocks` of the plan have been executed."""
        if not 1 <= blocks <= self.plan_EHK.shape[1]:
            raise ValueError(f"a plan of {self.plan_EHK.shape[1]} blocks has no warm start after {blocks}")
        return WarmStart(self.mean_EHK[:, blocks:], self.elites_EMHK[:, :, blocks:])

    def checked(self) -> "Solution":
        """This solution; ValueError where no candidate had a finite cost. Waits for the device."""
        failed = (~torch.isfinite(self.cost_E)).nonzero()[:, 0].tolist()
        if failed:
            raise ValueError(
                f"no candidate plan has a finite cost in environments {failed}: the latents, the imagined latents or "
                "the objective are NaN or infinite (was the model trained in a precision that overflowed?)"
            )
        return self


@dataclass(frozen=True, slots=True)
class Start:
    """Where a search begins: mean and standard deviation (E, H, K), bounds, and elites of an earlier solution."""

    mean_EHK: Tensor
    std_EHK: Tensor
    bounds: Bounds
    elites_EMHK: Tensor | None
    """(E, M, L, K) with L <= H, or None."""

    def clamp(self, plans: Tensor) -> Tensor:
        """Plans (..., K) within the bounds."""
        if self.bounds is None:
            return plans
        low, high = self.bounds
        return torch.clamp(plans, low, high)  # pyright: ignore[reportArgumentType, reportCallIssue]


def best(cost_ES: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Costs and indices (E, count) of the best candidates, best first.

    Where fewer than `count` have a finite cost, the best one stands in for the others.
    """
    cost_EM, index_EM = cost_ES.topk(count, dim=1, largest=False)
    finite = torch.isfinite(cost_EM)
    return torch.where(finite, cost_EM, cost_EM[:, :1]), torch.where(finite, index_EM, index_EM[:, :1])


def pick(plans_ESHK: Tensor, index_EM: Tensor) -> Tensor:
    """The plans (E, M, H, K) at indices (E, M)."""
    return plans_ESHK.gather(1, index_EM[:, :, None, None].expand(-1, -1, *plans_ESHK.shape[2:]))


def check_sizes(name: str, *, samples: int, iterations: int, elites: int, horizon: int, chunk: int | None) -> None:
    """ValueError unless these sizes, which all planners have, make sense."""
    if not 2 <= elites <= samples:
        raise ValueError(f"{name} needs 2 <= elites <= samples, not elites={elites}, samples={samples}")
    if iterations < 1 or horizon < 1:
        raise ValueError(f"{name} needs iterations and horizon of 1 or more, not {iterations} and {horizon}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"{name} needs a chunk of 1 candidate or more, not {chunk}")
