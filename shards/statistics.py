"""Normalisation statistics of a dataset, the same to the last bit however its episodes are sharded.

Pixels are summed as exact integers. Actions and states are merged episode by episode in key order (Chan, Golub and
LeVeque 1983), which loses no precision where a column's mean is large against its spread, and gives a constant column
a variance of exactly zero; its standard deviation is then 1, so that standardising it yields zeros.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shards.index import ShardIndex


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Means and population standard deviations, float64: pixel_* (3,) on the 0..255 scale over the frames before they
    were encoded, action_* (A,), state_* (S,). A standard deviation of zero is recorded as 1."""

    pixel_mean: np.ndarray
    pixel_std: np.ndarray
    action_mean: np.ndarray
    action_std: np.ndarray
    state_mean: np.ndarray
    state_std: np.ndarray


class _Moments:
    """Running mean and sum of squared deviations of rows of numbers."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.empty(0), np.empty(0)

    def add(self, values: np.ndarray) -> None:
        values = values.astype(np.float64)
        count, mean = len(values), values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, delta = self.count + count, mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.count = total

    def std(self) -> np.ndarray:
        return _unless_zero(np.sqrt(self.squares / self.count))


def statistics_of(episodes: Iterable[tuple[ShardIndex, int]], size: int) -> Statistics:
    """Statistics over episodes given as (index, row) in key order, at least one, with frames of size x size pixels."""
    action, state = _Moments(), _Moments()
    pixels, sums, squares = 0, [0, 0, 0], [0, 0, 0]
    for index, row in episodes:
        action.add(index.action(row))
        state.add(index.state(row))
        episode_sums, episode_squares = index.pixel_sums(row)
        pixels += (int(index.lengths[row]) + 1) * size * size
        sums = [a + b for a, b in zip(sums, episode_sums, strict=True)]
        squares = [a + b for a, b in zip(squares, episode_squares, strict=True)]
    variance = [(pixels * q - s * s) / pixels**2 for s, q in zip(sums, squares, strict=True)]  # integers before "/"
    return Statistics(
        pixel_mean=np.array([s / pixels for s in sums]),
        pixel_std=_unless_zero(np.sqrt(variance)),
        action_mean=action.mean,
        action_std=action.std(),
        state_mean=state.mean,
        state_std=state.std(),
    )


def pixel_sums(frames: np.ndarray) -> tuple[list[int], list[int]]:
    """Sum and sum of squares of each channel, exact, from a histogram."""
    values = np.arange(256, dtype=np.int64)
    histograms = [np.bincount(frames[..., channel].reshape(-1), minlength=256) for channel in range(3)]
    return [int(h @ values) for h in histograms], [int(h @ values**2) for h in histograms]


def _unless_zero(std: np.ndarray) -> np.ndarray:
    return np.where(std > 0, std, 1.0)
