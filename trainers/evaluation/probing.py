"""Probe a run: latents, the same encoder at random initialisation and the pixels' PCA, on the same episodes."""

from dataclasses import dataclass

import numpy as np
import torch

from models.diagnostics import effective_rank
from models.lewm import LeWM
from shards.dataset import Dataset
from trainers.config import TrainConfig
from trainers.evaluation.latents import (
    Encode,
    EpisodeFeatures,
    PixelPCA,
    encode_episodes,
    held_out,
    model_encoder,
)
from trainers.evaluation.probes import ProbeFit, linear_probe
from trainers.evaluation.scorecard import ProbeScorecard, mean_r2
from trainers.loop import build_model


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The scorecard, and what figures need: the fit from one latent, and the held-out latents with their states."""

    scorecard: ProbeScorecard
    fit: ProbeFit
    held_out: list[EpisodeFeatures]
    states: dict[int, np.ndarray]


def probe_model(model: LeWM, config: TrainConfig, dataset: Dataset, *, stride: int = 2) -> ProbeReport:
    """Fit linear probes on the training episodes (every `stride`-th frame) and score them on held-out ones."""
    train = dataset.indices("train")
    test, name = held_out(dataset)
    states = {int(episode): dataset.state(int(episode)) for episode in (*train, *test)}
    device = model.pixel_mean.device
    spacing = _spacing(config.model.frame_skip, stride)

    def features(encode: Encode, episodes: np.ndarray) -> list[EpisodeFeatures]:
        return encode_episodes(dataset, episodes, config.model, encode, stride=stride)

    def probe(encode: Encode) -> ProbeFit:
        return linear_probe(features(encode, train), features(encode, test), states, dataset.columns)

    latent_train, latent_test = features(model_encoder(model), train), features(model_encoder(model), test)
    fit = linear_probe(latent_train, latent_test, states, dataset.columns)
    window = linear_probe(latent_train, latent_test, states, dataset.columns, window=3, spacing=spacing)
    validation = set(dataset.indices("validation").tolist())
    chosen = (
        linear_probe(
            latent_train,
            [sequence for sequence in latent_test if sequence.episode in validation],
            states,
            dataset.columns,
            window=3,
            spacing=spacing,
            bootstraps=1,
        )
        if validation
        else None
    )
    scorecard = ProbeScorecard(
        episodes=name,
        n_train=len(train),
        n_held_out=len(test),
        latent=fit.scores,
        window=window.scores,
        random_encoder=probe(model_encoder(build_model(config, dataset, device).eval())).scores,
        pixel_pca=probe(PixelPCA(dataset, train, config.model)).scores,
        r2_mean=mean_r2(window.scores),
        r2_mean_validation=mean_r2(chosen.scores) if chosen else float("nan"),
        effective_rank=effective_rank(torch.from_numpy(np.concatenate([each.features for each in latent_test]))),
        latent_dim=config.model.latent_dim,
    )
    return ProbeReport(scorecard, fit, latent_test, states)


def _spacing(frame_skip: int, stride: int) -> int:
    """Frames between the latents of a window: the model's own step, rounded up to the stride."""
    return -(-frame_skip // stride) * stride
