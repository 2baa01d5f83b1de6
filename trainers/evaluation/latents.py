"""Latents of whole episodes: what probes, figures and planning read a frozen model through."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.lewm import LeWM, LeWMConfig
from shards.dataset import Dataset

Encode = Callable[[Tensor], Tensor]
"""Observations (N, n, h, w, 3) uint8 to features (N, D)."""


@dataclass(frozen=True, slots=True)
class EpisodeFeatures:
    """Features of one episode: `features` (M, D) at the frames `time` (M,) of episode `episode` (canonical number)."""

    episode: int
    time: np.ndarray
    features: np.ndarray


def held_out(dataset: Dataset) -> tuple[np.ndarray, str]:
    """Episodes that reports may use, and their name: the test split, or validation and test under 300 episodes."""
    if len(dataset) >= 300:
        return dataset.indices("test"), "test"
    return np.sort(np.concatenate([dataset.indices("validation"), dataset.indices("test")])), "validation+test"


def observations(frames: np.ndarray, times: np.ndarray, config: LeWMConfig) -> np.ndarray:
    """Stacks (M, n, h, w, 3) that end at frames `times`; frames before the first repeat it (as at a reset)."""
    offsets = np.arange(1 - config.stack, 1) * config.stack_stride
    return frames[np.maximum(times[:, None] + offsets, 0)]


@torch.no_grad()
def encode_episodes(
    dataset: Dataset, episodes: np.ndarray, config: LeWMConfig, encode: Encode, *, stride: int = 1
) -> list[EpisodeFeatures]:
    """Features of whole stacks only: frames (n-1)s, (n-1)s + stride, ... of every episode."""
    sequences = []
    for episode in episodes:
        frames = dataset.read_episode(int(episode)).frames
        times = np.arange((config.stack - 1) * config.stack_stride, len(frames), stride)
        stacks = torch.from_numpy(observations(frames, times, config))
        sequences.append(EpisodeFeatures(int(episode), times, encode(stacks).float().cpu().numpy()))
    return sequences


def model_encoder(model: LeWM) -> Encode:
    """`model.encode` on the model's device."""
    return lambda stacks: model.encode(stacks.to(model.pixel_mean.device))


class PixelPCA:
    """The pixels' principal components, as many as a latent has dimensions: what a linear view of the input knows.

    Components come from at most `samples` evenly spaced training observations.
    """

    def __init__(
        self, dataset: Dataset, episodes: np.ndarray, config: LeWMConfig, *, samples: int = 1500, seed: int = 0
    ) -> None:
        per_episode = max(1, samples // len(episodes))
        stacks = []
        for episode in episodes:
            frames = dataset.read_episode(int(episode)).frames
            times = np.linspace((config.stack - 1) * config.stack_stride, len(frames) - 1, per_episode).astype(int)
            stacks.append(observations(frames, times, config))
        pixels = torch.from_numpy(np.concatenate(stacks)).flatten(1).float()
        self.mean = pixels.mean(dim=0)
        components = min(config.latent_dim, *pixels.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.basis = torch.pca_lowrank(pixels - self.mean, q=components, center=False, niter=2)[2]

    def __call__(self, stacks: Tensor) -> Tensor:
        return (stacks.flatten(1).float() - self.mean) @ self.basis
