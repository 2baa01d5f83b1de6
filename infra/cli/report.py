"""`lewm report RUN [RUN...]`: one HTML page about a run, or several side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from infra.cli.common import Common, absolute
from infra.console import print_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Write one self-contained HTML page about a run, or several side by side, and log it to their MLflow runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run directories, run names, or models:/NAME@alias."""
    out: Path | None = None
    """The page; report.html in the first run's directory unless given."""


def run(args: Args) -> None:
    from infra import workflows
    from infra.home import find_run

    if not args.runs:
        raise ValueError("name at least one run")
    home = args.find_home()
    runs = [find_run(name, home) for name in args.runs]
    path = absolute(args.out) if args.out else runs[0].path / "report.html"
    workflows.report(runs, home, path)
    if args.json:
        print_json({"report": path})
    else:
        print(path)
