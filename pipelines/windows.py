"""What a window is: which frames and actions of an episode one training item takes.

A window with history H, frame skip k and stack n (stride s) that starts at t0 has H+1 observations, j = 0..H, each the
n frames t0 + jk - (n-1)s, ..., t0 + jk - s, t0 + jk, oldest first; and H blocks of k actions, j = 0..H-1, each
action[t0 + jk : t0 + (j+1)k]. In an episode of T steps t0 runs over [(n-1)s, T - Hk], so that a window never crosses an
episode's end. Observations share frames: a window holds U <= (H+1)n distinct ones, each read and decoded once, and
`observation_index` says which observation shows which. Pure arithmetic on small integers.
"""

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """History H (0: one observation and no action), frame skip k, stack n, stack stride s, in recorded steps."""

    history: int
    frame_skip: int = 1
    stack: int = 1
    stack_stride: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "history" else 1
            if type(value) is not int or value < least:
                raise ValueError(f"window {name} is {value!r}; use an integer of at least {least}")

    @property
    def first_start(self) -> int:
        """The least t0: earlier, the first stack would begin before the episode."""
        return (self.stack - 1) * self.stack_stride

    @property
    def steps(self) -> int:
        """Actions that a window takes: Hk."""
        return self.history * self.frame_skip

    def count(self, length: int) -> int:
        """Windows in an episode of `length` steps (decisions)."""
        return max(0, length - self.steps - self.first_start + 1)

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """`count` of each of `lengths` (E,), as int64 (E,)."""
        return np.maximum(0, np.asarray(lengths, np.int64) - (self.steps + self.first_start - 1))

    @property
    def unique_offsets(self) -> np.ndarray:
        """The distinct frames that a window needs, relative to t0, ascending: int64 (U,)."""
        return np.unique(self._frame_offsets())

    @property
    def observation_index(self) -> np.ndarray:
        """Which of the U distinct frames each observation stacks, oldest first: int64 (H+1, n).

        `frames[:, observation_index]` turns a batch's (B, U, h, w, 3) into (B, H+1, n, h, w, 3).
        """
        return np.searchsorted(self.unique_offsets, self._frame_offsets())

    @property
    def action_offsets(self) -> np.ndarray:
        """The actions of each block relative to t0, oldest first: int64 (H, k)."""
        return np.arange(self.steps).reshape(self.history, self.frame_skip)

    @property
    def state_offsets(self) -> np.ndarray:
        """The times of the observations (of the newest frame of each) relative to t0: int64 (H+1,)."""
        return np.arange(self.history + 1) * self.frame_skip

    def _frame_offsets(self) -> np.ndarray:
        return self.state_offsets[:, None] + self.stack_stride * np.arange(1 - self.stack, 1)
