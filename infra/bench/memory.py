"""`lewm bench memory`: where frames are masked, is a recurrent memory worth more than stacked frames?

Three models of one size of encoder are trained on the same windows: each observation a single frame, three stacked
frames, or a single frame with a recurrent memory in the predictor. In training as in the test every frame is blanked
with the same probability, so that a model has to carry over what it saw before. What is read is what the predictor
reads: the latent, or the latent with its memory of the observations before it. Linear probes, fitted on training
episodes and scored on held-out ones, on all frames and on those that are blank themselves.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from infra.bench.common import write_csv
from infra.bench.variants import OnStep, probe, spread, train, with_model
from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, progress

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from models.lewm import LeWM
    from models.memory import LatentMemory
    from shards.dataset import Dataset
    from trainers.config import TrainConfig
    from trainers.evaluation.latents import EpisodeFeatures

SINGLE, STACKED, MEMORY = "single frame", "three stacked frames", "recurrent memory"
MODELS = (SINGLE, STACKED, MEMORY)
_GREY = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Train a single frame, stacked frames and a recurrent memory on frames of which some are blank."""

    data: Path
    """Dataset directory."""
    preset: str = "tiny"
    """Model preset with its training configuration."""
    masked: float = 0.5
    """Share of frames that are blank."""
    units: int = 256
    """Units of the memory."""
    history: int = 6
    """Observations before the predicted one, of every model: as far as the memory reaches."""
    batch_size: int = 32
    steps: int = 1000
    """Training steps of each."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    device: Device = "auto"
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise ValueError(f"--masked is a share of frames between 0 and 1, not {self.masked}")
        if self.steps < 1 or self.history < 1 or not self.seeds:
            raise ValueError(
                f"--steps and --history must be at least 1 and --seeds name one, not {self.steps}, {self.history} and "
                f"{self.seeds}"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """What can be read of one quantity from one model, of one training seed. `frames`: all, or blank ones."""

    model: str
    frames: str
    quantity: str
    observable: str
    r2: float
    seed: int
    environment: str
    masked: float
    history: int
    held_out_episodes: int
    preset: str
    training_steps: int


def run(args: Args) -> None:
    import torch

    from shards.dataset import Dataset
    from trainers.config import train_preset

    device = torch.device(pick_device(args.device))
    dataset = Dataset.open(absolute(args.data))
    base = replace(train_preset(args.preset, absolute(args.data)), batch_size=args.batch_size, stop_step=args.steps)
    rows: list[Row] = []
    with progress("memory", args.steps * len(args.seeds) * len(MODELS), "steps") as bar:
        runs = [(seed, name) for seed in args.seeds for name in MODELS]
        for number, (seed, name) in enumerate(runs):
            config = replace(configured(base, name, args), seed=seed)
            done, note = number * args.steps, f"{name}, seed {seed}"
            rows += measure(
                config, name, args.masked, dataset, device, lambda step, d=done, n=note: bar.update(d + step, n)
            )
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json(rows)
        return
    quantities = [row.quantity for row in rows if (row.model, row.frames, row.seed) == (SINGLE, "all", args.seeds[0])]
    print_table(
        f"{args.preset}, {args.steps:,} steps on {dataset.environment}, {args.masked:.0%} of frames blank, "
        f"{len(args.seeds)} seeds: R2, mean (least-most)",
        ("frames", "quantity", *MODELS),
        [
            (frames, quantity, *(str(spread(values)) for values in (
                [row.r2 for row in rows if (row.model, row.frames, row.quantity) == (name, frames, quantity)]
                for name in MODELS
            )))
            for frames in ("all", "blank")
            for quantity in quantities
        ],
    )  # fmt: skip


def configured(base: "TrainConfig", name: str, args: Args) -> "TrainConfig":
    """The preset as one of the three models."""
    predictor = replace(base.model.predictor, memory=args.units if name == MEMORY else 0)
    return with_model(base, stack=3 if name == STACKED else 1, history=args.history, predictor=predictor)


def measure(
    config: "TrainConfig", name: str, masked: float, dataset: "Dataset", device: "torch.device", on_step: OnStep
) -> list[Row]:
    """Train one model, and read every observable quantity from it."""
    import torch

    from trainers.evaluation.latents import held_out

    def blanked(frames: "Tensor", step: int) -> "Tensor":
        """A batch's frames (B, U, h, w, 3), blank as the step and the seed have it."""
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        blank = torch.rand(frames.shape[:2], generator=generator) < masked
        return frames.masked_fill(blank.to(frames.device)[:, :, None, None, None], _GREY)

    model = train(config, [dataset], device, on_step, blanked)
    test = held_out(dataset)[0]
    fit_on, _ = _features(model, dataset, dataset.indices("train"), masked)
    score_on, on_blank = _features(model, dataset, test, masked)
    return [
        Row(
            model=name,
            frames=frames,
            quantity=score.target,
            observable=score.observable,
            r2=score.r2,
            seed=config.seed,
            environment=dataset.environment,
            masked=masked,
            history=config.model.history,
            held_out_episodes=len(test),
            preset=config.preset,
            training_steps=config.stop_step,
        )
        for frames, features in (("all", score_on), ("blank", on_blank))
        for score in probe(dataset, fit_on, features)
        if score.observable != "hidden"
    ]


def _features(
    model: "LeWM", dataset: "Dataset", episodes: "np.ndarray", masked: float
) -> "tuple[list[EpisodeFeatures], list[EpisodeFeatures]]":
    """What the predictor reads at every other frame that has a whole history, and the part of it at blank frames.

    Which frames are blank depends on the episode alone, so that all models are read at the same ones.
    """
    import numpy as np
    import torch

    from trainers.evaluation.latents import EpisodeFeatures, encode_stacks, model_encoder

    config, encoders = model.config, {"lewm": model_encoder(model)}
    memory = cast("LatentMemory | None", model.predictor.memory)
    back = np.arange(1 - config.history, 1) * config.frame_skip
    everywhere, on_blank = [], []
    for episode in episodes.tolist():
        frames = dataset.read_episode(episode).frames.copy()
        blank = np.random.default_rng(episode).random(len(frames)) < masked
        frames[blank] = _GREY
        z_TD = encode_stacks(frames, np.arange(len(frames)), config, encoders)["lewm"]
        times = np.arange(2 - back[0], len(frames), 2)  # two frames more, for the stacks' sake
        features = z_TD[times]
        if memory is not None:
            with torch.no_grad():
                z_BTD = torch.from_numpy(z_TD[times[:, None] + back]).to(model.pixel_mean.device)
                features = memory(z_BTD)[0][:, -1].cpu().numpy()
        everywhere.append(EpisodeFeatures(episode, times, features))
        there = blank[times]
        on_blank.append(EpisodeFeatures(episode, times[there], features[there]))
    return everywhere, on_blank
