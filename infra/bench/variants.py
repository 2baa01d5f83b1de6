"""Variants of a model, trained alike and read alike: what the benchmarks that compare models share.

A variant is trained from scratch on one or several datasets, without checkpoints, and what can be read from its latents
is scored by a linear probe on held-out episodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from models.lewm import LeWM, LeWMConfig
    from shards.dataset import Dataset
    from trainers.config import TrainConfig
    from trainers.evaluation.latents import EpisodeFeatures
    from trainers.evaluation.probes import ProbeScore


OnStep = Callable[[int], None]
"""Told of training steps that are done."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over training seeds."""

    mean: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.least:.3f}-{self.most:.3f})"


def spread(values: Sequence[float]) -> Spread:
    """The mean, the least and the most."""
    return Spread(sum(values) / len(values), min(values), max(values))


def train(
    config: "TrainConfig",
    datasets: "Sequence[Dataset]",
    device: "torch.device",
    on_step: OnStep,
    change: "Callable[[Tensor, int], Tensor]" = lambda frames, step: frames,
) -> "LeWM":
    """A model trained on the datasets' joined windows. `change` is what becomes of a batch's frames (B, U, h, w, 3)
    uint8 at a step. ValueError when the datasets cannot be joined; `Diverged` when the loss is not finite."""
    import torch

    from pipelines.loader import Loader, LoaderConfig
    from trainers.learner import Learner
    from trainers.loop import build_model
    from trainers.rundir import window_spec

    model = build_model(config, datasets[0], device)
    model.set_statistics(**_pooled(datasets))
    learner = Learner(config, model)
    with Loader(
        datasets,
        window_spec(config.model),
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        config=LoaderConfig(threads=config.decode_threads, prefetch=config.prefetch, tier=config.tier),
    ) as loader:
        for step in range(config.stop_step):
            batch = next(loader)
            learner.step(change(batch.frames, step), batch.action, step)
            if (step + 1) % 25 == 0 or step + 1 == config.stop_step:
                learner.check_finite()
                on_step(step + 1)
    torch.manual_seed(config.seed)
    return model.eval()


def read(
    model: "LeWM", config: "LeWMConfig", dataset: "Dataset", *, stride: int = 2
) -> "tuple[tuple[ProbeScore, ...], np.ndarray]":
    """The linear probe's scores from three latents, and the held-out latents (M, D)."""
    import numpy as np

    from trainers.evaluation.latents import encode_episodes, held_out, model_encoder
    from trainers.evaluation.probing import window_spacing

    encoders = {"lewm": model_encoder(model)}
    parts = [
        encode_episodes(dataset, part, config, encoders, stride=stride)["lewm"]
        for part in (dataset.indices("train"), held_out(dataset)[0])
    ]
    scores = probe(dataset, *parts, window=3, spacing=window_spacing(config.frame_skip, stride))
    return scores, np.concatenate([each.features for each in parts[1]])


def probe(
    dataset: "Dataset",
    fit_on: "Sequence[EpisodeFeatures]",
    score_on: "Sequence[EpisodeFeatures]",
    *,
    window: int = 1,
    spacing: int = 1,
) -> "tuple[ProbeScore, ...]":
    """A linear probe's scores, without intervals."""
    from trainers.evaluation.probes import ProbeData, linear_probe

    states = {each.episode: dataset.state(each.episode) for each in (*fit_on, *score_on)}
    data = ProbeData.of(fit_on, score_on, states, dataset.columns, window=window, spacing=spacing)
    return linear_probe(data, bootstraps=1).scores


def with_model(config: "TrainConfig", **changes: object) -> "TrainConfig":
    """The configuration with fields of its model changed."""
    return replace(config, model=replace(config.model, **changes))  # pyright: ignore[reportArgumentType]


def _pooled(datasets: "Sequence[Dataset]") -> "dict[str, Tensor]":
    """Means and deviations over the frames and the actions of several datasets."""
    import numpy as np
    import torch

    weight = np.array([dataset.manifest.n_frames for dataset in datasets], np.float64)
    weight /= weight.sum()
    found = {}
    for name in ("pixel", "action"):
        means, stds = (
            np.array([getattr(dataset.manifest.statistics, f"{name}_{what}") for dataset in datasets], np.float64)
            for what in ("mean", "std")
        )
        mean = weight @ means
        std = np.sqrt(weight @ (stds**2 + means**2) - mean**2)
        found |= {f"{name}_mean": torch.tensor(mean).float(), f"{name}_std": torch.tensor(std).float()}
    return found
