"""CEM on linear dynamics with a known optimum, and independence of environments planned together."""

import pytest
import torch

from models.planners import CEMConfig, cem, goal_objective


class Integrator:
    """z' = z + a: a plan reaches the goal when its actions sum to goal - z."""

    def rollout(self, z_BD: torch.Tensor, plan_BHK: torch.Tensor) -> torch.Tensor:
        return z_BD[:, None] + plan_BHK.cumsum(dim=1)


def plan(z_ED: torch.Tensor, goal_ED: torch.Tensor, seeds: list[int], **changes) -> torch.Tensor:
    return cem(
        goal_objective(goal_ED),
        Integrator(),
        z_ED,
        mean_K=torch.zeros(2),
        std_K=torch.ones(2),
        bounds=(-1.0, 1.0),
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        config=CEMConfig(**({"samples": 200, "iterations": 15, "elites": 20, "horizon": 3} | changes)),
    )


def test_reaches_a_goal_within_bounds():
    z, goal = torch.zeros(1, 2), torch.tensor([[1.5, -2.0]])
    actions = plan(z, goal, [0])
    torch.testing.assert_close(actions.sum(dim=1), goal, rtol=0, atol=0.02)
    assert actions.abs().max() <= 1


def test_a_goal_out_of_reach_saturates_the_bounds():
    actions = plan(torch.zeros(1, 2), torch.tensor([[10.0, -10.0]]), [0])
    torch.testing.assert_close(actions[0], torch.tensor([[1.0, -1.0]]).expand(3, 2), rtol=0, atol=0.05)


def test_planning_together_gives_each_environment_its_own_plan():
    z, goal = torch.randn(5, 2), torch.randn(5, 2)
    together = plan(z, goal, list(range(5)))
    for index in range(5):
        alone = plan(z[index : index + 1], goal[index : index + 1], [index])
        torch.testing.assert_close(together[index], alone[0])


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="elites"):
        CEMConfig(samples=10, elites=11)
    with pytest.raises(ValueError, match="as many generators"):
        plan(torch.zeros(2, 2), torch.zeros(2, 2), [0])
