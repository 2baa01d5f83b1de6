"""`lewm bench mixture`: does a mixture of Gaussians serve data of several tasks better than one Gaussian?

The same model is trained on the windows of several datasets together, with latents asked to be one standard Gaussian
(SIGReg) or a mixture of as many as there are tasks: the same statistic on the same directions, against another target.
Every task is then read by itself: mean R2 of linear probes from three latents over its observable columns, on held-out
episodes, and the effective rank of its latents. Datasets must agree in action size and columns, as tasks of one robot
do.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra.bench.common import write_csv
from infra.bench.variants import OnStep, read, spread, train, with_model
from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from shards.dataset import Dataset
    from trainers.config import TrainConfig

TARGETS = {"one Gaussian": "sigreg", "mixture": "mixture"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Train on several tasks at once, with one Gaussian and with a mixture as the latents' distribution."""

    data: tuple[Path, ...]
    """Dataset directories, one a task."""
    preset: str = "tiny"
    """Model preset with its training configuration."""
    weight: float = 0.02
    """Weight of the regularizer."""
    spread: float = 3.0
    """Distance of the mixture's means from the origin."""
    steps: int = 1000
    """Training steps of each."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    device: Device = "auto"
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.seeds:
            raise ValueError(f"--steps must be at least 1 and --seeds name one, not {self.steps} and {self.seeds}")
        if len(self.data) < 2:
            raise ValueError(f"--data takes two datasets or more, not {len(self.data)}")


@dataclass(frozen=True, slots=True)
class Row:
    """One task's latents under one target, of one training seed."""

    target: str
    environment: str
    seed: int
    r2_mean: float
    effective_rank: float
    latent_dim: int
    components: int
    spread: float
    weight: float
    held_out_episodes: int
    preset: str
    training_steps: int


def run(args: Args) -> None:
    import torch

    from shards.dataset import Dataset
    from trainers.config import train_preset

    device = torch.device(pick_device(args.device))
    datasets = [Dataset.open(absolute(path)) for path in args.data]
    base = train_preset(args.preset, absolute(args.data[0]))
    total = args.steps * len(args.seeds) * len(TARGETS)
    rows: list[Row] = []
    with progress("mixture", total, "steps") as bar:
        for seed in args.seeds:
            for target in TARGETS:
                done = len(rows) // len(datasets) * args.steps
                config = replace(configured(args, base, target, len(datasets)), seed=seed)
                note = f"{target}, seed {seed}"
                rows += measure(config, target, datasets, device, lambda step, d=done, n=note: bar.update(d + step, n))
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json(rows)
        return
    print_table(
        f"{args.preset}, {args.steps:,} steps on {len(datasets)} tasks, {len(args.seeds)} seeds: mean (least-most)",
        ("latents as", "task", "mean R2", "effective rank"),
        [
            (target, dataset.environment, str(spread([row.r2_mean for row in some])),
             f"{spread([row.effective_rank for row in some]).mean:.1f} of {some[0].latent_dim}")
            for target in TARGETS
            for dataset in datasets
            if (some := [row for row in rows if (row.target, row.environment) == (target, dataset.environment)])
        ],
    )  # fmt: skip


def configured(args: Args, base: "TrainConfig", target: str, tasks: int) -> "TrainConfig":
    """The preset with the regularizer of a target."""
    regularizer = replace(
        base.model.regularizer, kind=TARGETS[target], weight=args.weight, components=tasks, spread=args.spread
    )
    return replace(with_model(base, regularizer=regularizer), stop_step=args.steps)


def measure(
    config: "TrainConfig", target: str, datasets: "Sequence[Dataset]", device: "torch.device", on_step: OnStep
) -> list[Row]:
    """Train one variant, and read every task from it."""
    import torch

    from models.diagnostics import effective_rank
    from trainers.evaluation.latents import held_out
    from trainers.evaluation.scorecard import mean_r2

    model, rows = train(config, datasets, device, on_step), []
    for dataset in datasets:
        scores, latents = read(model, config.model, dataset)
        rows.append(
            Row(
                target=target,
                environment=dataset.environment,
                seed=config.seed,
                r2_mean=mean_r2(scores),
                effective_rank=effective_rank(torch.from_numpy(latents)),
                latent_dim=config.model.latent_dim,
                components=config.model.regularizer.components if target == "mixture" else 1,
                spread=config.model.regularizer.spread if target == "mixture" else 0.0,
                weight=config.model.regularizer.weight,
                held_out_episodes=len(held_out(dataset)[0]),
                preset=config.preset,
                training_steps=config.stop_step,
            )
        )
    return rows
