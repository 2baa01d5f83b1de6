"""`lewm probe RUN`: linear and MLP probes of physical state."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, progress, say
from trainers.evaluation.probes import ProbeScore
from trainers.evaluation.scorecard import Probe, ProbeScorecard, ProbeVerdict

_TITLES: dict[Probe, str] = {"linear": "Linear probes", "mlp": "MLP probes"}
_PROBES = 16
"""Probes fitted: two kinds, four sources, two windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Probe a run's latents for physical state on held-out episodes, beside three baselines."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""
    device: Device = "auto"
    """Device that encodes and fits: auto, cpu or cuda."""
    seed: int = 0
    """Seed of the MLP probes."""
    csv: Path | None = None
    """Table that gets this run's rows; rows of other runs stay."""


def run(args: Args) -> None:
    import torch

    from infra import results, workflows
    from infra.home import find_run

    home = args.find_home()
    found = find_run(args.run, home)
    tracker = workflows.record_of(found, home)
    try:
        with progress("probe", _PROBES, "probes") as bar:
            report = workflows.probe(
                found,
                tracker,
                torch.device(pick_device(args.device)),
                seed=args.seed,
                on_probe=lambda done, _: bar.update(done),
            )
    finally:
        tracker.close()
    if args.csv is not None:
        results.write(absolute(args.csv), found, workflows.checkpoint_step(found), results.probe_rows(report.scorecard))
    if args.json:
        print_json(report.scorecard)
        return
    print_probe(report.scorecard)
    say(f"figures: {found.path.name} in the MLflow page (lewm ui)")


def print_probe(card: ProbeScorecard) -> None:
    """A table a kind of probe, all columns from one latent and from three, baselines beside them, and the verdicts."""
    for verdict in card.verdicts:
        _print_probes(card, verdict.probe)
    for verdict in card.verdicts:
        print(_sentence(verdict))


def _print_probes(card: ProbeScorecard, probe: Probe) -> None:
    first = card.scores("lewm", probe)
    rows = []
    for index, target in enumerate(first):
        for window in (1, 3):
            score, *others = (
                card.scores(source, probe, window)[index]
                for source in ("lewm", "random_encoder", "pixel_pca", "true_state")
            )
            name = f"{target.target}{' (hidden)' if target.observable == 'hidden' else ''}" if window == 1 else ""
            rows.append((name, str(window), *_cells(score), *(_number(other.r2) for other in others)))
    print_table(
        f"{_TITLES[probe]} on {card.n_held_out} held-out episodes ({card.episodes}), fitted on {card.n_train}; "
        f"effective rank {card.effective_rank:.1f} of {card.latent_dim}",
        ("quantity", "latents", "R2 [95 %]", "r", "MSE", "random encoder", "pixel PCA", "true state"),
        rows,
    )


def _cells(score: ProbeScore) -> tuple[str, str, str]:
    if math.isnan(score.r2):
        return "does not vary", "-", "-"
    return f"{score.r2:.3f}  [{score.low:.3f}, {score.high:.3f}]", f"{score.r:.3f}", f"{score.mse:.3f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _sentence(verdict: ProbeVerdict) -> str:
    head = f"{_TITLES[verdict.probe]}: R2 > {verdict.threshold} for {verdict.passed} of {verdict.columns} observable"
    if verdict.met:
        return f"{head} quantities (for {verdict.sure} with the whole interval): met."
    return f"{head} quantities: not met. The worst is {verdict.worst} with {verdict.worst_r2:.3f}."
