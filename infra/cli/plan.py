"""`lewm plan RUN`: reach goals of held-out episodes by planning in latent space."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table
from models.planners import CEMConfig, ICEMConfig, MPPIConfig, PlannerConfig
from trainers.evaluation.planning import PlanningConfig, PlanningScore


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Plan from states of held-out episodes to what followed them, in latent space."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""
    goals: int = 16
    """Goals, each from a held-out episode."""
    seed: int = 0
    """Seed of the goals, of the random actions and of the planner."""
    device: Device = "auto"
    """Device that plans: auto, cpu or cuda."""
    csv: Path | None = None
    """Table that gets this run's rows; rows of other runs stay."""
    planner: Literal["cem", "icem", "mppi"] = "cem"
    """Which planner; the settings of the others are not looked at, and giving any is an error."""
    cem: CEMConfig = field(default_factory=CEMConfig)
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    mppi: MPPIConfig = field(default_factory=MPPIConfig)

    def solver(self) -> PlannerConfig:
        """The settings of the planner that was chosen."""
        settings: dict[str, PlannerConfig] = {"cem": self.cem, "icem": self.icem, "mppi": self.mppi}
        for name, given in settings.items():
            if name != self.planner and given != type(given)():
                raise ValueError(f"--{name}.* is given but --planner is {self.planner}: add --planner {name}")
        return settings[self.planner]


def run(args: Args) -> None:
    import torch

    from collectors.gl import choose_backend
    from infra import results, workflows
    from infra.home import find_run

    if args.goals < 1:
        raise ValueError(f"--goals must be at least 1, not {args.goals}")
    solver = args.solver()
    home = args.find_home()
    found = find_run(args.run, home)
    choose_backend()
    tracker = workflows.record_of(found, home)
    settings = PlanningConfig(goals=args.goals, seed=args.seed, solver=solver)
    try:
        score = workflows.plan(found, tracker, torch.device(pick_device(args.device)), settings)
    finally:
        tracker.close()
    if args.csv is not None:
        results.write(absolute(args.csv), found, workflows.checkpoint_step(found), results.planning_rows(score))
    if args.json:
        print_json(score)
    else:
        print_planning(score)


def print_planning(score: PlanningScore) -> None:
    """The planning table."""
    print_table(
        f"Reaching {score.goals} goals of held-out episodes ({score.episodes}), {score.decisions} decisions each",
        ("actions", "distance to the goal (std)", "of the way"),
        [
            ("none: the start", f"{score.start_distance:.3f}", "0 %"),
            ("random", f"{score.random_distance:.3f}", f"{score.random_progress:.0%}"),
            (f"planned ({score.planner})", f"{score.planned_distance:.3f}", f"{score.planned_progress:.0%}"),
        ],
    )
