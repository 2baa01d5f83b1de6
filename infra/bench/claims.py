"""`lewm bench claims`: the page docs/claims.md, from the tables in docs/results.

What is claimed and where a figure is looked up is in `infra.claims`; this writes it down. Parameters of the models here
are counted, those of others are quoted from `published.csv`. A test compares the page with what this makes, so that a
table and the page cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.claims import GROUPS, Claim, Tables
from infra.console import print_json, say
from shards.atomic import write_atomically

DOCS = Path(__file__).resolve().parents[2] / "docs"
_HEAD = """# The scoreboard

Every claim of the LeWorldModel article and of the LeWM paper (arXiv 2603.19312) that can be measured, and what was
measured here. This page is written by `lewm bench claims` from the tables in [results/](results/): no figure in it is
typed by hand. Intervals in brackets are 95 %, by bootstrap over episodes; of several training seeds the mean is given
with the least and the most. "Not yet measured" says on what it would be.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Write docs/claims.md from the tables in docs/results."""

    results: Path = DOCS / "results"
    """Folder of the tables."""
    out: Path = DOCS / "claims.md"
    """The page."""
    json: bool = False
    """Print one JSON value on standard output."""


def run(args: Args) -> None:
    tables = Tables(args.results)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, page(tables).encode())
    claims = [claim for _, group in GROUPS for claim in group]
    measured = sum(claim.find(tables) is not None for claim in claims)
    if args.json:
        print_json({"page": args.out, "claims": len(claims), "measured": measured})
    else:
        say(f"{args.out}: {measured} of {len(claims)} claims have a figure")


def page(tables: Tables) -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    for title, claims in GROUPS:
        rows = [_row(claim, tables) for claim in claims]
        parts.append(f"## {title}\n\n{_table(('claim', 'how', 'figure', 'hardware', 'command', 'verdict'), rows)}\n")
    parts.append(f"## Parameters\n\n{_table(('model', 'parameters', 'source'), parameters(tables))}\n")
    return "\n".join(parts)


def parameters(tables: Tables) -> list[tuple[str, str, str]]:
    """Sizes of the models here, counted for 2-d actions, and of others, as their authors state them."""
    import torch

    from models.dino_wm import DinoWM, DinoWMConfig
    from models.presets import describe

    found = [(f"LeWM, `{row.preset}`", f"{row.parameters:,}", "counted, for 2-d actions") for row in describe(2)]
    with torch.device("meta"):
        twin = DinoWM(DinoWMConfig(), 2)
    count = sum(parameter.numel() for parameter in twin.parameters())
    found.append(("DINO-WM, frozen encoder included", f"{count:,}", "counted, of the twin in `models/dino_wm.py`"))
    return found + [(row["model"], f"{int(row['parameters']):,}", row["source"]) for row in tables.rows("published")]


def _row(claim: Claim, tables: Tables) -> tuple[str, ...]:
    found = claim.find(tables)
    command = f"`{claim.command}`" if claim.command else ""
    if found is None:
        return claim.said, claim.protocol, "", "", command, f"not yet measured: needs {claim.needs}"
    return claim.said, claim.protocol, found.figure, found.hardware, command, f"**{found.verdict}**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
