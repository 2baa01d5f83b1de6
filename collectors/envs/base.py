"""The environment protocol: what every simulator looks like to policies, collectors and evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np

from shards.episode import StateColumn

Quality = Literal["fast", "full"]
QUALITIES: tuple[Quality, ...] = ("fast", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class VariationConfig:
    """How strongly episodes differ in what a task itself does not vary, each from 0 (not at all) to 1."""

    colors: float = 0.0
    """Share of a random colour in every colour."""
    lighting: float = 0.0
    """Brightness by up to a half, and the directions that light comes from."""
    camera: float = 0.0
    """Camera shifted by up to a tenth of its distance and turned by up to 5 degrees, about each axis."""
    friction: float = 0.0
    """Contact friction, between half and twice."""
    masses: float = 0.0
    """Every body's mass by itself, between half and twice."""

    def __post_init__(self) -> None:
        for factor in fields(self):
            strength = getattr(self, factor.name)
            if not 0 <= strength <= 1:
                raise ValueError(f"variation of {factor.name} must be between 0 and 1, not {strength}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """Which environment, and how it is seen."""

    name: str
    """Such as dmc/cartpole-swingup or metaworld/pick-place-v3."""
    size: int = 64
    """Side of the square frames in pixels."""
    camera: str | None = None
    """Camera name; the environment's default unless given."""
    quality: Quality = "fast"
    """fast: no shadows, multisampling or reflections. full: the simulator's own look."""
    action_repeat: int | None = None
    """Control steps a decision; 2 for dm_control and 1 for Meta-World unless given."""
    variation: VariationConfig = VariationConfig()
    """What differs between episodes; nothing unless given."""

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 1024:
            raise ValueError(f"size must be between 16 and 1024 pixels, not {self.size}")
        if self.quality not in QUALITIES:
            raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, not {self.quality!r}")
        if self.action_repeat is not None and self.action_repeat < 1:
            raise ValueError(f"action_repeat must be at least 1, not {self.action_repeat}")


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What an environment is. Actions are in [-1, 1]; `dt` is seconds a decision, `max_steps` decisions an episode."""

    name: str
    action_size: int
    columns: tuple[StateColumn, ...]
    camera: str
    size: int
    quality: Quality
    action_repeat: int
    dt: float
    max_steps: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EnvEntry:
    """A line of the list of environments."""

    name: str
    action_size: int
    cameras: tuple[str, ...]


class Env(Protocol):
    """One simulator with its renderer. Not for use by several threads."""

    spec: EnvSpec

    def reset(self, seed: int) -> None:
        """Begin an episode, a pure function of `seed`."""
        ...

    def variation(self) -> Mapping[str, Any]:
        """What was drawn for this episode besides the task's own start, as JSON can hold it; empty without."""
        ...

    def randomize(self, rng: np.random.Generator) -> None:
        """Move to a random configuration, for coverage: joints uniform over most of their range, modest velocities.

        All else stays as `reset` left it.
        """
        ...

    def step(self, action: np.ndarray) -> float:
        """Apply an action (A,) for `action_repeat` control steps; the sum of their rewards."""
        ...

    def render(self) -> np.ndarray:
        """The present frame, (size, size, 3) uint8 RGB, upright."""
        ...

    def physical_state(self) -> np.ndarray:
        """The named state (S,) float32, in the order of `spec.columns`."""
        ...

    def observation(self) -> np.ndarray:
        """What the task shows a policy that may see the simulator's state (N,)."""
        ...

    def get_state(self) -> Any:
        """Everything that decides what comes next, for `set_state`."""
        ...

    def set_state(self, state: Any) -> None:
        """Go back to a state of this environment: the same actions then give the same states, rewards and frames."""
        ...

    def success(self) -> bool | None:
        """Whether the task is solved in this state; None for tasks without such a notion."""
        ...

    def close(self) -> None:
        """Free the renderer."""
        ...
