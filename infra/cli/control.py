"""`lewm control RUN`: act in the task with a run's latents, for reward."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, say
from trainers.evaluation.control import ControlConfig, ControlScorecard, ReturnScore


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Fit reward, value and prior on a run's frozen latents, and measure the returns of acting with them.

    With --dagger.rounds the prior imitates an expert that sees the simulator's state; the scorecard says so.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""
    device: Device = "auto"
    """Device that encodes and plans: auto, cpu or cuda."""
    csv: Path | None = None
    """Table that gets this run's rows; rows of other runs stay."""
    settings: Annotated[ControlConfig, tyro.conf.arg(name="")] = field(default_factory=ControlConfig)


def run(args: Args) -> None:
    import torch

    from collectors.gl import choose_backend
    from infra import results, workflows
    from infra.home import find_run

    home = args.find_home()
    found = find_run(args.run, home)
    choose_backend()
    tracker = workflows.record_of(found, home)
    try:
        scorecard = workflows.control(found, tracker, torch.device(pick_device(args.device)), args.settings, say)
    finally:
        tracker.close()
    if args.csv is not None:
        results.write(absolute(args.csv), found, workflows.checkpoint_step(found), results.control_rows(scorecard))
    if args.json:
        print_json(scorecard)
    else:
        print_control(scorecard)


def print_control(card: ControlScorecard) -> None:
    """The returns of every contender."""
    print_table(
        f"Control of {card.environment}: return of {card.decisions} decisions",
        ("who acts", "episodes", "return [95 %]", "success [95 %]", "seconds of planning an episode"),
        [(_WHO.get(score.name, score.name), *_cells(score)) for score in card.scores],
    )
    if card.dagger_episodes:
        print(
            f"The prior imitates an expert that sees the state: labels in {card.training_episodes} recorded episodes "
            f"and in {card.dagger_episodes} of its own."
        )


_WHO = {
    "plan": "plan with LeWM",
    "prior": "prior alone",
    "expert": "expert, from the state",
    "collection": "policies that collected",
    "random": "random",
}


def _cells(score: ReturnScore) -> tuple[str, str, str, str]:
    success = "-"
    if score.success is not None:
        success = f"{score.success:.0%}  [{score.success_low:.0%}, {score.success_high:.0%}]"
    seconds = "-" if score.planning_seconds is None else f"{score.planning_seconds:.2f}"
    return str(score.episodes), f"{score.mean:.1f}  [{score.low:.1f}, {score.high:.1f}]", success, seconds
