"""What an episode is: the types that cross every package boundary of the project.

An episode of T steps (decisions) has T+1 frames, T actions, T rewards and T+1 rows of named physical state.
`action[t]` is applied to the state shown in `frame[t]`, for `action_repeat` control steps of the simulator, and leads
to `frame[t+1]`; `reward[t]` is the sum over the repeats. One decision lasts `dt` seconds.

The key is the episode's name everywhere: in the tar, in the index, in the split. It contains no dots, because
WebDataset splits a member's name into key and extension at the first one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["position", "velocity", "angle", "angular_velocity", "orientation", "other"]
Observability = Literal["one_frame", "several_frames", "hidden"]

_KEY = re.compile(r"[a-z0-9][a-z0-9_-]*-[0-9a-f]{8}-\d+-\d{8}")


@dataclass(frozen=True, slots=True)
class StateColumn:
    """One named physical quantity, declared with the environment.

    `periodic` columns are angles in radians that wrap, probed as sine and cosine. `observable` says from how much of
    this camera's view the quantity can be read: one frame, several frames (velocities), or not at all.
    """

    name: str
    unit: str
    kind: Kind
    observable: Observability
    periodic: bool = False


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """Where an episode comes from: everything needed to simulate it again.

    `environment` is a name such as `dmc/cartpole-swingup`; `config8` the first 8 hex digits of the sha256 of the
    collection config; `seed` the dataset's seed; `number` the episode's number under it; `episode_seed` the seed that
    the environment and the policy got. `dt` is seconds a decision. `success` is None where the task knows none.
    `sample` is the key of a sample that another program wrote, None for our own.
    """

    environment: str
    config8: str
    seed: int
    number: int
    episode_seed: int
    policy: Mapping[str, Any]
    camera: str
    size: int
    quality: str
    action_repeat: int
    dt: float
    columns: tuple[StateColumn, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    success: bool | None = None
    sample: str | None = None

    @property
    def key(self) -> str:
        """`<env-slug>-<config8>-<seed>-<episode:08d>`, or the sample's own key in a foreign tar."""
        if self.sample is not None:
            return self.sample
        slug = self.environment.lower().replace("/", "-").replace(".", "-")
        key = f"{slug}-{self.config8}-{self.seed}-{self.number:08d}"
        if not _KEY.fullmatch(key):
            raise ValueError(f"episode key {key!r} is not <env-slug>-<config8>-<seed>-<episode:08d>")
        return key


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded episode.

    frames (T+1, size, size, 3) uint8 RGB, upright; action (T, A) float32; reward (T,) float32;
    state (T+1, S) float32 in the order of `info.columns`.
    """

    info: EpisodeInfo
    frames: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    state: np.ndarray

    def __post_init__(self) -> None:
        steps, size = len(self.action), self.info.size
        expected = {
            "frames": ((steps + 1, size, size, 3), np.uint8),
            "action": ((steps, self.action.shape[-1]), np.float32),
            "reward": ((steps,), np.float32),
            "state": ((steps + 1, len(self.info.columns)), np.float32),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"episode {self.info.key}: {name} is {array.dtype}{list(array.shape)}, "
                    f"expected {np.dtype(dtype)}{list(shape)}"
                )
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise ValueError(f"episode {self.info.key}: {name} has a value that is not finite")

    def __len__(self) -> int:
        """Number of steps T."""
        return len(self.action)

    @property
    def episode_return(self) -> float:
        """Sum of rewards."""
        return float(self.reward.sum(dtype=np.float64))
