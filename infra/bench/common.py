"""What benchmarks share: contenders measured in turns, and where a figure comes from.

Contenders take turns, so that a machine that slows down for a while slows all of them; a figure is the median over the
turns, a ratio that of the turns' ratios, and only ratios within one run mean anything on another machine.
"""

import csv
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """What a contender reached in each turn: `rate` is the median, `low` and `high` are the extremes."""

    rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def low(self) -> float:
        return min(self.rates)

    @property
    def high(self) -> float:
        return max(self.rates)

    @property
    def turns(self) -> int:
        return len(self.rates)

    def over(self, other: "Figure") -> float:
        """How many times the other's rate: the median of the turns' own ratios, each of one stretch of time."""
        return median(ours / theirs for ours, theirs in zip(self.rates, other.rates, strict=True))


def take_turns(contenders: Mapping[str, Callable[[], float]], turns: int) -> dict[str, Figure]:
    """Measure every contender once a turn, `turns` times. A contender's call returns its rate, larger is better."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, measure in contenders.items():
            rates[name].append(measure())
    return {name: Figure(tuple(each)) for name, each in rates.items()}


def provenance() -> dict[str, str]:
    """The columns that every row of `docs/results` has: command, commit, hardware and day (UTC)."""
    return {
        "command": shlex.join(["lewm", *sys.argv[1:]]),
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def hardware() -> str:
    """Cores at hand and the processor's name; the GPU's where torch sees one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} core{'s' * (cores > 1)} of {names[0] if names else platform.machine()}"
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        found += f", {torch.cuda.get_device_name()}"
    return found


def commit() -> str:
    """The commit of the source tree, with + where tracked files differ from it; "unknown" outside a repository."""
    root = Path(__file__).resolve().parent
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with their provenance; floats to four significant digits."""
    _write(path, _stamped(rows))


def update_csv(path: Path, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """As `write_csv`, but rows of the file whose `key` no new row has stay, before the new ones.

    ValueError where the file has other columns.
    """
    stamped = _stamped(rows)
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            kept = list(reader)
        if list(reader.fieldnames or ()) != list(stamped[0]):
            raise ValueError(f"{path} has other columns than this program writes: move it away")
    replaced = {str(row[key]) for row in rows}
    _write(path, [row for row in kept if row[key] not in replaced] + stamped)


def _stamped(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    source = provenance()
    return [{name: _cell(value) for name, value in {**row, **source}.items()} for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
