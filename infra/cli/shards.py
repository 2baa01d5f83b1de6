"""`lewm shards ls|verify|stats`: look at datasets."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from infra.cli.common import Common, Verb, absolute
from infra.console import print_json, print_table

Directory = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]


@dataclass(frozen=True, kw_only=True, slots=True)
class LsArgs(Common):
    """List the datasets below the home's data directory, or the shards of one dataset."""

    directory: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DIRECTORY]")] = None
    """A dataset directory."""


def ls(args: LsArgs) -> None:
    from shards.dataset import Dataset
    from shards.manifest import load

    if args.directory is None:
        home = args.find_home()
        found = [Dataset.open(path.parent) for path in sorted(home.data.glob("*/manifest.json"))]
        rows = [_dataset_row(dataset) for dataset in found]
        if args.json:
            print_json(rows)
        elif not rows:
            print(f"no dataset below {home.data}; `lewm collect` makes one", file=sys.stderr)
        else:
            print_table(f"Datasets below {home.data}", tuple(rows[0]), [_text(row) for row in rows])
        return
    manifest = load(absolute(args.directory))
    rows = [asdict(shard) for shard in manifest.shards]
    if args.json:
        print_json(rows)
    else:
        shown = [{key: value for key, value in row.items() if "sha256" not in key} for row in rows]
        print_table(str(args.directory), tuple(shown[0]), [_text(row) for row in shown])


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyArgs:
    """Check every byte of a dataset: tars, indexes and manifest. Exit code 1 when anything is wrong."""

    directory: Directory
    """Dataset directory."""
    threads: int = len(os.sched_getaffinity(0))
    """Files checked at once."""
    json: bool = False
    """Print one JSON value on standard output."""


def verify(args: VerifyArgs) -> int:
    from shards.verify import verify

    report = verify(absolute(args.directory), args.threads)
    if args.json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        for problem in report.problems:
            print(problem)
        count = len(report.problems)
        print(f"{args.directory}: {'every byte checks' if report.ok else f'{count} problem(s)'}")
    return 0 if report.ok else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsArgs:
    """Show what a dataset holds: provenance, splits, state columns with their statistics, returns."""

    directory: Directory
    """Dataset directory."""
    json: bool = False
    """Print one JSON value on standard output."""


def stats(args: StatsArgs) -> None:
    from shards.dataset import Dataset

    dataset = Dataset.open(absolute(args.directory))
    returns = [float(dataset.reward(index).sum()) for index in range(len(dataset))]
    statistics = dataset.manifest.statistics
    columns = [
        {
            "column": column.name,
            "unit": column.unit,
            "kind": column.kind,
            "observable": column.observable,
            "mean": float(statistics.state_mean[index]),
            "std": float(statistics.state_std[index]),
        }
        for index, column in enumerate(dataset.columns)
    ]
    summary = _dataset_row(dataset) | {
        "dt": dataset.manifest.common.dt,
        "action_repeat": dataset.manifest.common.action_repeat,
        "camera": dataset.manifest.common.camera,
        "versions": dict(dataset.manifest.common.versions),
        "return_min": min(returns),
        "return_mean": sum(returns) / len(returns),
        "return_max": max(returns),
    }
    if args.json:
        print_json(summary | {"columns": columns, "digest": dataset.digest})
        return
    print_table(str(dataset.path), ("what", "value"), [(key, str(value)) for key, value in summary.items()])
    print_table("Physical state", tuple(columns[0]), [_text(column) for column in columns])


VERBS = {"ls": Verb(LsArgs, ls), "verify": Verb(VerifyArgs, verify), "stats": Verb(StatsArgs, stats)}


def _dataset_row(dataset: Any) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "name": dataset.path.name,
        "environment": dataset.environment,
        "episodes": manifest.n_episodes,
        "frames": manifest.n_frames,
        "size": dataset.size,
        "train/validation/test": "/".join(str(count) for count in manifest.splits.values()),
        "MB": round(sum(shard.tar_bytes + shard.index_bytes for shard in manifest.shards) / 1e6, 1),
        "digest": dataset.digest[:12],
    }


def _text(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
