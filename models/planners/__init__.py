"""Planning in latent space: CEM, iCEM and MPPI over a batch of environments.

    solution = solve(
        goal_objective(goal_ED), model, z_ED,
        config=CEMConfig(), mean_K=mean_K, std_K=std_K, bounds=(-1.0, 1.0), generators=generators,
    )

A planner minimises an objective (`objectives`) over action plans whose latents a dynamics imagines, a LeWM or anything
with its `rollout` (`problem`). `solve` is the one way in; `Planner` (`graph`) is the same for many solves of one shape,
on a GPU as a single CUDA graph. Plans are raw actions, in blocks.
"""

from models.planners.cem import REFERENCE_CEM, CEMConfig
from models.planners.graph import Planner, compiled
from models.planners.icem import ICEMConfig
from models.planners.mppi import MPPIConfig
from models.planners.objectives import goal_objective, weighted_sum
from models.planners.problem import Bounds, Dynamics, Objective, Solution, WarmStart
from models.planners.solve import PlannerConfig, planner_name, solve

__all__ = [
    "REFERENCE_CEM",
    "Bounds",
    "CEMConfig",
    "Dynamics",
    "ICEMConfig",
    "MPPIConfig",
    "Objective",
    "Planner",
    "PlannerConfig",
    "Solution",
    "WarmStart",
    "compiled",
    "goal_objective",
    "planner_name",
    "solve",
    "weighted_sum",
]
