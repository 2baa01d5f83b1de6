"""`lewm run TASK`: one task from nothing to a judged, registered model, in one command."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from infra.cli.common import Common, Device, absolute, pick_device
from infra.cli.errors import Failed
from infra.console import print_json, print_table, say
from infra.recipes import Scale, recipe

if TYPE_CHECKING:
    from infra.line import LineReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Bring a task from nothing to a judged, registered model: collect, train, probe, surprise, plan, control, report.

    The same command goes on after any interruption with what is missing, and does nothing twice.
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """Environment that there is a recipe for, such as dmc/cartpole-swingup."""
    scale: Scale = "small"
    """small: two CPU cores and an hour. full: the paper's model at 64 px, for a GPU."""
    seed: int = 0
    """Seed of data, training and evaluation."""
    name: str = ""
    """Name of the run; task, scale and seed unless given."""
    device: Device = "auto"
    """Device that trains and judges: auto, cpu or cuda."""
    workers: int = len(os.sched_getaffinity(0))
    """Ray actors that collect, one core each."""
    show: bool = False
    """Print the recipe as JSON and do nothing."""
    csv: Path | None = None
    """Directory of tables that get this run's rows: run, training, probes, surprise, goals and control.csv."""


def run(args: Args) -> None:
    chosen = recipe(args.task, args.scale, args.seed)
    if args.show:
        print_json(chosen)
        return
    from collectors.fleet import CollectionFailed
    from collectors.gl import choose_backend
    from infra.line import run_recipe
    from trainers.ray_train import TrainingFailed

    device, home = pick_device(args.device), args.find_home()
    name = args.name or f"{args.task.split('/')[-1]}-{args.scale}-s{args.seed}"
    choose_backend()
    try:
        report = run_recipe(chosen, home, name=name, device=device, workers=args.workers)
    except (CollectionFailed, TrainingFailed) as error:
        raise Failed(f"{error}; the same command goes on from there") from error
    except KeyboardInterrupt:
        say("the same command goes on from there")
        raise
    if args.csv is not None:
        _write(report, absolute(args.csv))
    if args.json:
        print_json(report)
        return
    print_line(report)
    where = f" --home {args.home}" if args.home else ""
    say(f"the whole story: {report.report}; curves, figures and the model: lewm ui{where}")


def print_line(report: "LineReport") -> None:
    """A row a stage, with what came of it, and the sentence that control is for."""
    told = {
        "collect": f"{report.episodes:,} episodes, {report.frames:,} frames",
        "train": f"{report.training_steps:,} steps, {report.parameters / 1e6:.2f}M parameters, on {report.device}",
        "probe": _probes(report),
        "surprise": _surprise(report),
        "plan": f"{report.planning.planned_progress:.0%} of the way to {report.planning.goals} goals, random actions "
        f"{report.planning.random_progress:.0%}",
        "control": f"return {_return(report, 'plan')} planned, {_return(report, 'prior')} by the prior alone",
        "register": f"{report.model} version {report.model_version}{', the champion' if report.champion else ''}",
        "report": report.report,
    }
    rows = [
        (stage.name, f"{stage.seconds:,.0f}", "was done" if stage.done_before else "", told[stage.name])
        for stage in report.stages
    ]
    rows.append(("all", f"{report.seconds:,.0f}", "", f"seed {report.seed}"))
    print_table(report.environment, ("stage", "seconds", "", "what came of it"), rows, justify="left")
    collection = report.control.score("collection")
    for who, name in (("plan", "Planning with LeWM"), ("prior", "The prior alone")):
        verb = "beats" if report.control.score(who).low > collection.high else "does not surely beat"
        print(
            f"{name} {verb} the policies that collected its data: return {_return(report, who)} against "
            f"{_return(report, 'collection')}."
        )


def _probes(report: "LineReport") -> str:
    found = next(each for each in report.probe.verdicts if each.probe == "linear")
    return (
        f"linear R2 > {found.threshold} for {found.passed} of {found.columns} observable quantities; "
        f"least {found.worst_r2:.3f}, {found.worst}"
    )


def _surprise(report: "LineReport") -> str:
    found = next(each for each in report.surprise.verdicts if each.score == "prediction")
    count = len(found.reached) + len(found.missed)
    return f"AUROC >= {found.aim} for {len(found.reached)} of {count} events that must not be missed"


def _return(report: "LineReport", who: str) -> str:
    score = report.control.score(who)
    return f"{score.mean:.0f} [{score.low:.0f}, {score.high:.0f}]"


def _write(report: "LineReport", folder: Path) -> None:
    from infra import results
    from trainers.rundir import Run

    run, step = Run.open(Path(report.run)), report.training_steps
    seconds = {stage.name: stage.seconds for stage in report.stages}
    for table, rows in (
        ("run", results.stage_rows(seconds, report.device)),
        ("validation", results.validation_rows(run, step)),
        ("probes", results.probe_rows(report.probe)),
        ("surprise", results.surprise_rows(report.surprise)),
        ("goals", results.planning_rows(report.planning)),
        ("control", results.control_rows(report.control)),
    ):
        results.write(folder / f"{table}.csv", run, step, rows)
