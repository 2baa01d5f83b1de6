"""What the loader delivers, and the shapes of it."""

from dataclasses import dataclass

from torch import Tensor

from pipelines.windows import WindowSpec


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share, B windows, of a global batch, in the order of the epoch.

    frames (B, U, h, w, 3) uint8: the U distinct frames of each window; `frames[:, spec.observation_index]` stacks them
    into observations (B, H+1, n, h, w, 3). action (B, H, k*A) float32, raw, each block's k actions oldest first. state
    (B, H+1, S) float32, physical state at the observations' times, or None when it was not asked for. These three are
    on the loader's device, in memory that the loader uses again: see `Loader` for how long they stay valid.

    episode (B,) and start (B,), int64, always on the CPU and never reused: each window's episode number (for joined
    datasets counted through all of them) and t0. `epoch`, and `step` within the epoch, count from 0.
    """

    frames: Tensor
    action: Tensor
    state: Tensor | None
    episode: Tensor
    start: Tensor
    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Shapes of a rank's batches: `rows` B windows of `spec`, frames of `size` px, `action_size` A, `state_size` S
    (0: no state)."""

    spec: WindowSpec
    rows: int
    size: int
    action_size: int
    state_size: int

    @property
    def frames(self) -> tuple[int, ...]:
        """(B, U, h, w, 3)"""
        return (self.rows, len(self.spec.unique_offsets), self.size, self.size, 3)

    @property
    def action(self) -> tuple[int, ...]:
        """(B, H, k*A)"""
        return (self.rows, self.spec.history, self.spec.frame_skip * self.action_size)

    @property
    def state(self) -> tuple[int, ...]:
        """(B, H+1, S)"""
        return (self.rows, self.spec.history + 1, self.state_size)
