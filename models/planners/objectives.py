"""Objectives: what a plan should achieve, as costs that add up.

An objective is any callable from imagined latents (E, S, H, D) and their plans (E, S, H, K) to costs (E, S). It holds
what it compares with, so a goal is encoded once a solve and not once a candidate.
"""

from torch import Tensor

from models.planners.problem import Objective


def goal_objective(goal_ED: Tensor) -> Objective:
    """Squared distance of the last imagined latent to each environment's goal latent (E, D): the reference's cost."""

    def cost(z_ESHD: Tensor, plan_ESHK: Tensor) -> Tensor:
        return (z_ESHD[:, :, -1] - goal_ED[:, None]).square().sum(-1)

    return cost


def weighted_sum(*terms: tuple[float, Objective]) -> Objective:
    """The sum of weighted objectives; one that rewards has a negative weight, or returns negative costs."""
    if not terms:
        raise ValueError("an objective needs at least one term")

    def cost(z_ESHD: Tensor, plan_ESHK: Tensor) -> Tensor:
        (first, objective), *others = terms
        total = first * objective(z_ESHD, plan_ESHK)
        for weight, other in others:
            total = total + weight * other(z_ESHD, plan_ESHK)
        return total

    return cost
