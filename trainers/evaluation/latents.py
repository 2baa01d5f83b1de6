"""Latents of whole episodes: what probes, figures and planning read a frozen model through."""

from collections.abc import Callable, Mapping
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
    dataset: Dataset, episodes: np.ndarray, config: LeWMConfig, encoders: Mapping[str, Encode], *, stride: int = 1
) -> dict[str, list[EpisodeFeatures]]:
    """Features by each of `encoders` of whole stacks only: frames (n-1)s, (n-1)s + stride, ... of every episode.

    Every episode is read and decoded once.
    """
    found: dict[str, list[EpisodeFeatures]] = {name: [] for name in encoders}
    for episode in episodes:
        frames = dataset.read_episode(int(episode)).frames
        times = np.arange((config.stack - 1) * config.stack_stride, len(frames), stride)
        features = encode_stacks(frames, times, config, encoders)
        for name, sequences in found.items():
            sequences.append(EpisodeFeatures(int(episode), times, features[name]))
    return found


@torch.no_grad()
def encode_stacks(
    frames: np.ndarray, times: np.ndarray, config: LeWMConfig, encoders: Mapping[str, Encode], *, batch: int = 256
) -> dict[str, np.ndarray]:
    """Features (M, D) float32 by each encoder of the stacks that end at frames `times` (M,)."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for begin in range(0, len(times), batch):
        stacks = torch.from_numpy(observations(frames, times[begin : begin + batch], config))
        for name, encode in encoders.items():
            parts[name].append(encode(stacks).float().cpu().numpy())
    return {name: np.concatenate(each) for name, each in parts.items()}


def spread_out(dataset: Dataset, episodes: np.ndarray, frames: int) -> np.ndarray:
    """As many of `episodes`, evenly spaced, as hold about `frames` frames together; all, where they hold fewer."""
    mean = float(np.mean(dataset.lengths[episodes])) + 1 if len(episodes) else 1.0
    count = min(len(episodes), max(1, round(frames / mean)))
    return episodes[np.linspace(0, len(episodes) - 1, count).round().astype(int)]


def model_encoder(model: LeWM) -> Encode:
    """`model.encode` on the model's device."""
    return lambda stacks: model.encode(stacks.to(model.pixel_mean.device))
