"""`lewm bench lambda`: is the weight of the Gaussian term the one hyper-parameter that it is said to be?

One model, one dataset, one seed, one schedule; only the weight differs. Every weight's training goes on from its own
checkpoint, and what is measured is kept, so that the command can be stopped and repeated. Judged on held-out episodes:
the mean R2 of linear probes from three latents over the columns declared observable, the least of them, and the
effective rank of the latents, which is near 1 where they collapsed. Six weights at 1,000 steps take about ten minutes
on one core.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra.bench.common import write_csv
from infra.bench.variants import read, with_model
from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, progress
from shards.atomic import write_atomically

if TYPE_CHECKING:
    import torch

    from shards.dataset import Dataset
    from trainers.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Train one model with several weights of the term against collapse, and compare what can be read from each."""

    data: Path
    """Dataset directory."""
    weights: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
    """Weights of the regularizer."""
    preset: str = "tiny"
    """Model preset with its training configuration."""
    steps: int = 1000
    """Training steps of each."""
    seed: int = 0
    device: Device = "auto"
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, not {self.steps}")
        if not self.weights or min(self.weights) < 0 or len(set(self.weights)) < len(self.weights):
            raise ValueError(f"--weights must be different numbers from 0 on, not {self.weights}")


@dataclass(frozen=True, slots=True)
class Row:
    """One weight. `regularizer_null` is what the term is worth on latents as it wants them."""

    weight: float
    r2_mean: float
    r2_least: float
    least: str
    effective_rank: float
    latent_dim: int
    prediction: float
    regularizer: float
    regularizer_null: float
    held_out_episodes: int
    environment: str
    preset: str
    regularizer_kind: str
    training_steps: int
    seed: int


def run(args: Args) -> None:
    import torch

    from shards.dataset import Dataset
    from trainers.config import train_preset

    device = torch.device(pick_device(args.device))
    dataset = Dataset.open(absolute(args.data))
    base = train_preset(args.preset, absolute(args.data))
    base = replace(base, stop_step=args.steps, seed=args.seed, checkpoint_every=200, validate_every=args.steps)
    place = args.find_home().path / "bench" / f"lambda-{args.preset}-{args.steps}-s{args.seed}-{dataset.digest[:12]}"
    rows = []
    with progress("lambda", len(args.weights) * args.steps, "steps") as bar:
        for number, weight in enumerate(args.weights):
            folder = place / f"{weight:g}"
            done, note = number * args.steps, f"weight {weight:g}"
            rows.append(
                measure(
                    _weighted(base, weight),
                    dataset,
                    folder,
                    device,
                    lambda step, d=done, n=note: bar.update(d + step, n),
                )
            )
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json(rows)
        return
    print_table(
        f"{args.preset}, {args.steps:,} steps on {dataset.environment}: weight of the {base.model.regularizer.kind}",
        ("weight", "mean R2", "least R2", "of", "effective rank", "prediction", "term", "its null value"),
        [
            (f"{row.weight:g}", f"{row.r2_mean:.3f}", f"{row.r2_least:.3f}", row.least,
             f"{row.effective_rank:.1f} of {row.latent_dim}", f"{row.prediction:.4f}", f"{row.regularizer:.3f}",
             f"{row.regularizer_null:.3f}")
            for row in rows
        ],
    )  # fmt: skip


def measure(
    config: "TrainConfig", dataset: "Dataset", folder: Path, device: "torch.device", on_step: Callable[[int], None]
) -> Row:
    """Train `config` in `folder`, or go on there, and read the latents of held-out episodes."""
    import torch

    from models.diagnostics import effective_rank
    from trainers.checkpoint import LocalSink
    from trainers.evaluation.latents import held_out
    from trainers.evaluation.scorecard import mean_r2
    from trainers.loop import fit, null_value
    from trainers.rundir import load_model
    from trainers.tracker import NullTracker

    kept = folder / "row.json"
    if kept.is_file():
        on_step(config.stop_step)
        return Row(**json.loads(kept.read_text()))
    sink, tracker = LocalSink(folder, 1), NullTracker()
    summary = fit(config, sink=sink, tracker=tracker, device=device, on_progress=lambda line: on_step(line.step))
    weights = sink.latest()
    assert weights is not None
    model = load_model(config.model, weights, device)
    scores, latents = read(model, config.model, dataset)
    observable = [score for score in scores if score.observable != "hidden" and score.r2 == score.r2]
    least = min(observable, key=lambda score: score.r2)
    row = Row(
        weight=config.model.regularizer.weight,
        r2_mean=mean_r2(scores),
        r2_least=least.r2,
        least=least.target,
        effective_rank=effective_rank(torch.from_numpy(latents)),
        latent_dim=config.model.latent_dim,
        prediction=summary.metrics["train/prediction"],
        regularizer=summary.metrics["train/regularizer"],
        regularizer_null=null_value(config.model, config.batch_size),
        held_out_episodes=len(held_out(dataset)[0]),
        environment=dataset.environment,
        preset=config.preset,
        regularizer_kind=config.model.regularizer.kind,
        training_steps=config.stop_step,
        seed=config.seed,
    )
    write_atomically(kept, json.dumps(asdict(row)).encode())
    return row


def _weighted(base: "TrainConfig", weight: float) -> "TrainConfig":
    return with_model(base, regularizer=replace(base.model.regularizer, weight=weight))
