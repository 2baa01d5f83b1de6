"""What probes of a model are held against: an untrained encoder, a linear view of the pixels, and the true state.

The first two say what a probe finds without learning anything about the task. The third is the ceiling: the true values
of all that the frames of an observation show. It is 1 for what a frame shows; for velocities it is what knowing the
positions in the same frames exactly would give, which a linear probe need not turn into a velocity.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.lewm import LeWMConfig
from shards.dataset import Dataset
from shards.episode import StateColumn
from trainers.evaluation.latents import EpisodeFeatures, observations
from trainers.evaluation.probes import targets


def shown_state(
    sequences: Sequence[EpisodeFeatures],
    states: dict[int, np.ndarray],
    columns: Sequence[StateColumn],
    config: LeWMConfig,
) -> list[EpisodeFeatures]:
    """True values, at the times of `sequences`, of the columns that one frame shows, for every frame of the stack."""
    found = []
    for sequence in sequences:
        names, values = targets(columns, states[sequence.episode])
        shown = values[:, [observable == "one_frame" for _, observable in names]]
        # A camera may show nothing of the state: a constant then stands for no feature.
        shown = shown if shown.shape[1] else np.zeros((len(values), 1))
        offsets = np.arange(1 - config.stack, 1) * config.stack_stride
        stacks = shown[np.maximum(sequence.time[:, None] + offsets, 0)]
        found.append(EpisodeFeatures(sequence.episode, sequence.time, stacks.reshape(len(stacks), -1)))
    return found


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
