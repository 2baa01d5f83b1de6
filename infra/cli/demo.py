"""`lewm demo`: the whole line in a few minutes."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from collectors.fleet import CollectionFailed
from infra.cli.common import Common, Device, pick_device
from infra.cli.errors import Failed
from infra.cli.plan import print_planning
from infra.cli.probe import print_probe
from infra.console import print_json, print_table, say
from infra.demo import DemoReport, DemoSettings, run_demo
from trainers.ray_train import TrainingFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Collect cartpole episodes, train the tiny preset, probe it, plan with it, register it. A few minutes."""

    device: Device = "auto"
    """Device that trains: auto, cpu or cuda."""
    settings: Annotated[DemoSettings, tyro.conf.arg(name="")] = field(default_factory=DemoSettings)


def run(args: Args) -> None:
    try:
        report = run_demo(args.settings, args.find_home(), pick_device(args.device))
    except (CollectionFailed, TrainingFailed) as error:
        raise Failed(str(error)) from error
    if args.json:
        print_json(report)
        return
    _print(report)
    home = f" --home {args.home}" if args.home else ""
    say(f"done in {report.seconds:.0f} s. Look at it:  lewm ui{home}")


def _print(report: DemoReport) -> None:
    print_probe(report.probe)
    print_planning(report.planning)
    aliases = f" ({', '.join(report.model_aliases)})" if report.model_aliases else ""
    rows = [
        ("episodes", f"{report.collection.episodes} ({report.collection.existing} were there)"),
        ("frames/s collected", f"{report.collection.frames_per_second:,.0f}"),
        ("training steps/s", f"{report.training_steps_per_second:.1f} ({report.training_steps:,} on {report.device})"),
        ("waiting for data", f"{report.data_wait_share:.1%}"),
        ("model", f"{report.model} version {report.model_version}{aliases}"),
        ("run", f"{report.run} (MLflow {report.run_id})"),
    ]
    print_table("Demo", ("what", "value"), rows)
