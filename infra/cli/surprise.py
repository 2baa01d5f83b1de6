"""`lewm surprise RUN`: does the model notice what no action explains."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, progress, say
from trainers.evaluation.detection import Detection
from trainers.evaluation.surprise import SurpriseConfig, SurpriseScorecard
from trainers.evaluation.surprise_scores import SCORES, Score

_SHOWN: tuple[Score, ...] = ("prediction", "mahalanobis")
"""Scores that are shown with intervals; `--json` has all."""
_HEADS = {"mahalanobis": "mahal.", "no_actions": "no act."}


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Judge a run by events in the simulator, each beside the same rollout without it.

    Obstacles appear, objects and bodies are moved by hand, colours, light, gravity, friction and actuators change.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""
    device: Device = "auto"
    """Device that encodes: auto, cpu or cuda."""
    csv: Path | None = None
    """Table that gets this run's rows; rows of other runs stay."""
    settings: Annotated[SurpriseConfig, tyro.conf.arg(name="")] = field(default_factory=SurpriseConfig)


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
        with progress("surprise", args.settings.episodes, "episodes") as bar:
            report = workflows.surprise(
                found,
                tracker,
                torch.device(pick_device(args.device)),
                args.settings,
                on_episode=lambda done, _: bar.update(done),
            )
    finally:
        tracker.close()
    if args.csv is not None:
        rows = results.surprise_rows(report.scorecard)
        results.write(absolute(args.csv), found, workflows.checkpoint_step(found), rows)
    if args.json:
        print_json(report.scorecard)
        return
    print_surprise(report.scorecard)
    say(f"figures and clips: {found.path}/figures, and in the MLflow page (lewm ui)")


def print_surprise(card: SurpriseScorecard) -> None:
    """AUROC of every event by every score, then all figures of two of the model's own, and the verdicts."""
    title = f"{card.n_episodes} held-out episodes ({card.episodes})"
    print_table(
        f"AUROC of frames with an event against the same frames without, {title}; the last three are baselines",
        ("event", "frames", "pixels", *(_HEADS.get(score, score) for score in SCORES)),
        [
            (
                each.label,
                str(each.frames),
                f"{each.pixels_changed:.1%}",
                *(f"{card.of(each.event, each.size, score).auroc:.3f}" for score in SCORES),
            )
            for each in card.records
        ],
    )
    for score in _SHOWN:
        print_table(
            f"By {score}: events detected and decisions until then at 1 % false alarms, and false alarms in 1,000 "
            f"frames at 95 % detection, all [95 %]",
            ("event", "AUROC", "detected", "delay", "false alarms"),
            [(each.label, *_cells(card.of(each.event, each.size, score))) for each in card.records],
        )
    for each in card.records:
        if each.diverged:
            print(f"{each.label}: {each.diverged} of {card.n_episodes} rollouts left out: the simulator diverged")
    for line in card.not_here:
        print(f"left out: {line}")
    for verdict in card.verdicts:
        missed = f"; not by {', '.join(verdict.missed)}" if verdict.missed else ""
        count = f"{len(verdict.reached)} of {len(verdict.reached) + len(verdict.missed)}"
        print(f"{verdict.score}: AUROC >= {verdict.aim} for {count} events that must not be missed{missed}")


def _cells(found: Detection) -> tuple[str, str, str, str]:
    delay = "-" if found.delay is None else f"{found.delay:.1f}  [{found.delay_low:.1f}, {found.delay_high:.1f}]"
    return (
        f"{found.auroc:.3f}  [{found.low:.3f}, {found.high:.3f}]",
        f"{found.detected:.0%}  [{found.detected_low:.0%}, {found.detected_high:.0%}]",
        delay,
        f"{found.false_alarms:.0f}  [{found.false_alarms_low:.0f}, {found.false_alarms_high:.0f}]",
    )
