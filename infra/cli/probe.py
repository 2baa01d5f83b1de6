"""`lewm probe RUN`: linear probes of physical state."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from infra.cli.common import Common, Device, pick_device
from infra.console import print_json, print_table, say
from trainers.evaluation.scorecard import ProbeScorecard


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Probe a run's latents for physical state on held-out episodes, beside two baselines."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""
    device: Device = "auto"
    """Device that encodes: auto, cpu or cuda."""


def run(args: Args) -> None:
    import torch

    from infra import workflows
    from infra.home import find_run
    from infra.tracking import MlflowTracker

    home = args.find_home()
    found = find_run(args.run, home)
    tracker = MlflowTracker.attach(home.tracking_uri_to_read(), found.record.mlflow_run_id)
    try:
        report = workflows.probe(found, tracker, torch.device(pick_device(args.device)))
    finally:
        tracker.close()
    if args.json:
        print_json(report.scorecard)
        return
    print_probe(report.scorecard)
    say(f"figures: {found.path.name} in the MLflow page (lewm ui)")


def print_probe(card: ProbeScorecard) -> None:
    """The probe table: R2 from one latent and from three, and both baselines."""
    rows = [
        (
            one.target,
            f"{one.r2:.3f}  [{one.low:.3f}, {one.high:.3f}]",
            f"{three.r2:.3f}",
            f"{random.r2:.3f}",
            f"{pixels.r2:.3f}",
        )
        for one, three, random, pixels in zip(
            card.latent, card.window, card.random_encoder, card.pixel_pca, strict=True
        )
    ]
    print_table(
        f"Linear probes: R2 on {card.n_held_out} held-out episodes ({card.episodes}), fitted on {card.n_train}; "
        f"effective rank {card.effective_rank:.1f} of {card.latent_dim}",
        ("quantity", "LeWM latent [95 %]", "3 latents", "random encoder", "pixel PCA"),
        rows,
    )
