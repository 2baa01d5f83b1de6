"""What people see: progress with rate and ETA on standard error, results on standard output.

With `--json` standard output holds exactly one JSON value. On a terminal progress is a live bar, elsewhere a line every
few seconds.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collectors.fleet import Progress as CollectProgress

_LINE_SECONDS = 5.0


class Bar(Protocol):
    """One progress bar."""

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total so far; `note` is shown behind it."""
        ...


def say(text: str) -> None:
    """A line for the person watching, on standard error."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


@contextmanager
def progress(name: str, total: int, unit: str) -> Iterator[Bar]:
    """A progress bar of `total` `unit`s on standard error, with rate and ETA."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(name, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as live:
        yield _Live(live, live.add_task(f"{name} ({unit})", total=total, note=""))


class _Live:
    def __init__(self, live: Progress, task: Any) -> None:
        self.live, self.task = live, task

    def update(self, done: int, note: str = "") -> None:
        self.live.update(self.task, completed=done, note=note)


class _Lines:
    """A line now and then, for logs. The ETA counts from the first update: what came before was starting up."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.printed = time.monotonic()
        self.first: tuple[float, int] | None = None

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        self.first = self.first or (now, done)
        if done < self.total and now - self.printed < _LINE_SECONDS:
            return
        self.printed = now
        since, begun = self.first
        eta = f"{(now - since) / (done - begun) * (self.total - done):.0f} s" if done > begun else "unknown"
        print(f"{self.name}: {done}/{self.total} {self.unit}  {note}  ETA {eta}", file=sys.stderr, flush=True)


def collection_note(line: "CollectProgress", per_actor: bool = False) -> str:
    """Rate, volume and failures of a collection, in one line."""
    note = f"{line.frames_per_second:,.0f} frames/s  {line.bytes / 1e6:.0f} MB"
    if line.failures:
        note += f"  {line.retries} retries, {line.lost} actors replaced"
    if per_actor:
        note += "  " + "  ".join(f"{each.worker}: {each.episodes} {each.doing}" for each in line.actors)
    return note


def training_note(metrics: dict[str, float]) -> str:
    """The few numbers of training worth watching, in one line; the bar adds the time left."""
    note = (
        f"loss {metrics['train/prediction']:.4f} + reg {metrics['train/regularizer']:.3f}  "
        f"lr {metrics['train/lr']:.1e}  {metrics['train/steps_per_second']:.1f} steps/s  "
        f"{metrics['train/samples_per_second']:,.0f} samples/s  "
        f"wait {metrics['data/wait_share']:.0%}  MFU {metrics['train/mfu']:.0%}"
    )
    memory = metrics.get("train/gpu_memory_gb")
    return note if memory is None else f"{note}  {memory:.1f} GB"


def print_json(value: Any) -> None:
    """The one JSON value of `--json`. What is not finite becomes null, which JSON has."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    justify: Literal["left", "right"] = "right",
) -> None:
    """A table on standard output; the first column is text, the others are figures unless justified left."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=max(console.width, 120))
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else justify, no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
