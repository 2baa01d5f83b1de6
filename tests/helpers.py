"""Small synthetic episodes and datasets for the tests of every package. No simulator, milliseconds each."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from shards.codec import Encoding
from shards.dataset import Dataset
from shards.episode import Episode, EpisodeInfo, StateColumn
from shards.manifest import assemble
from shards.writer import ShardWriter

COLUMNS = (
    StateColumn("x", "m", "position", "one_frame"),
    StateColumn("angle", "rad", "angle", "one_frame", periodic=True),
    StateColumn("x_dot", "m/s", "velocity", "several_frames"),
)


def make_episode(
    number: int, steps: int = 20, size: int = 16, seed: int = 0, action_size: int = 2, **info: Any
) -> Episode:
    """Episode `number`: smooth frames (so that JPEG stays close) in which a bright bar is at column t, random arrays.
    The same arguments give the same episode. Further keywords replace fields of EpisodeInfo."""
    rng = np.random.default_rng([seed, number])
    t, y, x = np.meshgrid(np.arange(steps + 1), np.arange(size), np.arange(size), indexing="ij")
    phase = rng.uniform(0, 6)
    ramp = 110 + 60 * np.sin(x / size * 3 + phase + t / 9) + 40 * np.cos(y / size * 3 + t / 7)
    frames = np.stack([ramp, 255 - ramp, np.full_like(ramp, (17 * number) % 256)], axis=-1)
    frames[x == t % size] += 40
    fields: dict[str, Any] = {
        "environment": "dmc/cartpole-swingup",
        "config8": hashlib.sha256(b"test").hexdigest()[:8],
        "seed": seed,
        "number": number,
        "episode_seed": 1000 * seed + number,
        "policy": {"kind": "uniform", "scale": 1.0},
        "camera": "fixed",
        "size": size,
        "quality": "fast",
        "action_repeat": 2,
        "dt": 0.02,
        "columns": COLUMNS,
        "versions": {"mujoco": "3.16.0"},
    }
    return Episode(
        info=EpisodeInfo(**(fields | info)),
        frames=frames.clip(0, 255).astype(np.uint8),
        action=rng.uniform(-1, 1, (steps, action_size)).astype(np.float32),
        reward=rng.uniform(0, 1, steps).astype(np.float32),
        state=rng.normal(3, 2, (steps + 1, len(COLUMNS))).astype(np.float32),
    )


def make_dataset(
    path: Path,
    n: int = 12,
    steps: int | tuple[int, int] = 20,
    size: int = 16,
    shard_episodes: int = 4,
    seed: int = 0,
    encoding: Encoding = "jpeg",
    **keywords: Any,
) -> Dataset:
    """A dataset of n episodes in shards of `shard_episodes`; `steps` may be a range (lowest, highest)."""
    low, high = (steps, steps) if isinstance(steps, int) else steps
    lengths = np.random.default_rng(seed).integers(low, high + 1, n)
    for begin in range(0, n, shard_episodes):
        with ShardWriter(path, f"part-{begin:05d}", encoding) as writer:
            for number in range(begin, min(begin + shard_episodes, n)):
                writer.write(make_episode(number, int(lengths[number]), size, seed, **keywords))
    assemble(path)
    return Dataset.open(path)
