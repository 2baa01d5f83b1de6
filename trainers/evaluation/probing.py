"""Probe a run: its latents, the same encoder at random initialisation, the pixels' PCA and the true state.

All of them see the same frames of the same episodes and are read by the same probes, linear and MLP, from one feature
and from a window of three. Two cores take about a minute for 10,000 training rows of 256 dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from models.diagnostics import effective_rank
from models.lewm import LeWM
from shards.dataset import Dataset
from trainers.config import TrainConfig
from trainers.evaluation.baselines import PixelPCA, shown_state
from trainers.evaluation.latents import EpisodeFeatures, encode_episodes, held_out, model_encoder, spread_out
from trainers.evaluation.mlp_probe import mlp_probe
from trainers.evaluation.probes import ProbeData, ProbeFit, linear_probe
from trainers.evaluation.scorecard import Probe, ProbeResult, ProbeScorecard, Source, mean_r2, verdict
from trainers.loop import build_model

_FRAMES = 80_000
"""Frames of either split that are read at most, from evenly spaced episodes: memory is bounded by it."""
_WINDOWS = (1, 3)


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The scorecard, and what figures need: linear fits of the latents by window, and the held-out latents with their
    states."""

    scorecard: ProbeScorecard
    fits: dict[int, ProbeFit]
    held_out: list[EpisodeFeatures]
    states: dict[int, np.ndarray]


def probe_model(
    model: LeWM,
    config: TrainConfig,
    dataset: Dataset,
    *,
    stride: int = 2,
    seed: int = 0,
    on_probe: Callable[[int, int], None] | None = None,
) -> ProbeReport:
    """Fit probes on the training episodes (every `stride`-th frame) and score them on held-out ones.

    `seed` is that of the MLP probes. `on_probe(done, total)` is called after every probe.
    """
    test, name = held_out(dataset)
    train, test = spread_out(dataset, dataset.indices("train"), _FRAMES), spread_out(dataset, test, _FRAMES)
    states = {int(episode): dataset.state(int(episode)) for episode in (*train, *test)}
    device, columns = model.pixel_mean.device, dataset.columns
    spacing = window_spacing(config.model.frame_skip, stride)
    encoders = {
        "lewm": model_encoder(model),
        "random_encoder": model_encoder(build_model(config, dataset, device).eval()),
        "pixel_pca": PixelPCA(dataset, train, config.model),
    }
    fit_on = encode_episodes(dataset, train, config.model, encoders, stride=stride)
    score_on = encode_episodes(dataset, test, config.model, encoders, stride=stride)
    for part in (fit_on, score_on):
        part["true_state"] = shown_state(part["lewm"], states, columns, config.model)

    sources: tuple[Source, ...] = ("lewm", "random_encoder", "pixel_pca", "true_state")
    results: list[ProbeResult] = []
    fits: dict[int, ProbeFit] = {}
    total = 2 * len(sources) * len(_WINDOWS)
    for source in sources:
        for window in _WINDOWS:
            rows = ProbeData.of(fit_on[source], score_on[source], states, columns, window=window, spacing=spacing)
            linear = linear_probe(rows)
            fitted: dict[Probe, ProbeFit] = {"linear": linear, "mlp": mlp_probe(rows, seed=seed, device=device)}
            results += [ProbeResult(source, probe, window, fit.scores) for probe, fit in fitted.items()]
            if source == "lewm":
                fits[window] = linear
            if on_probe is not None:
                on_probe(len(results), total)

    validation = spread_out(dataset, dataset.indices("validation"), _FRAMES)
    states |= {int(episode): dataset.state(int(episode)) for episode in validation}
    validated = encode_episodes(dataset, validation, config.model, {"lewm": encoders["lewm"]}, stride=stride)["lewm"]
    scorecard = ProbeScorecard(
        episodes=name,
        n_train=len(train),
        n_held_out=len(test),
        window_spacing=spacing,
        results=tuple(results),
        verdicts=tuple(verdict(results, probe) for probe in ("linear", "mlp")),
        r2_mean=mean_r2(fits[3].scores),
        r2_mean_validation=_validation_r2(fit_on["lewm"], validated, states, dataset, spacing),
        effective_rank=effective_rank(torch.from_numpy(np.concatenate([each.features for each in score_on["lewm"]]))),
        latent_dim=config.model.latent_dim,
    )
    return ProbeReport(scorecard, fits, score_on["lewm"], states)


def _validation_r2(
    train: list[EpisodeFeatures],
    validation: list[EpisodeFeatures],
    states: dict[int, np.ndarray],
    dataset: Dataset,
    spacing: int,
) -> float:
    """Mean R2 over the observable columns on validation episodes, from three latents; NaN without any."""
    if not validation:
        return float("nan")
    rows = ProbeData.of(train, validation, states, dataset.columns, window=3, spacing=spacing)
    return mean_r2(linear_probe(rows, bootstraps=1).scores)


def window_spacing(frame_skip: int, stride: int) -> int:
    """Frames between the latents of a window: the model's own step, rounded up to the stride."""
    return -(-frame_skip // stride) * stride
