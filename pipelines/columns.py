"""Actions and states of a split as flat arrays, for the tiers whose frames are flat too."""

import numpy as np

from pipelines.episodes import EpisodeTable


class FlatColumns:
    """`action` (steps, A) and `state` (frames, S; None unless asked for) of the split's episodes, end to end.

    `first_step` and `first_frame` say where an episode begins, by its number. Memory is 4 (A + S) bytes a step, a small
    part of what decoded frames take.
    """

    def __init__(self, table: EpisodeTable, with_state: bool) -> None:
        lengths, count = table.lengths, int(table.numbers[-1]) + 1
        self.first_step, self.first_frame = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.first_step[table.numbers] = np.cumsum(lengths) - lengths
        self.first_frame[table.numbers] = first_frames(lengths)
        self.frames = int((lengths + 1).sum())
        self.action = np.empty((int(lengths.sum()), table.action_size), np.float32)
        self.state = np.empty((self.frames, table.state_size), np.float32) if with_state else None
        for number, steps in zip(table.numbers.tolist(), lengths.tolist(), strict=True):
            dataset, i = table.locate(number)
            step, frame = self.first_step[number], self.first_frame[number]
            self.action[step : step + steps] = dataset.action(i)
            if self.state is not None:
                self.state[frame : frame + steps + 1] = dataset.state(i)


def first_frames(lengths: np.ndarray) -> np.ndarray:
    """Where each episode's frames begin when all are end to end, an episode of T steps having T+1: int64 (E,)."""
    return np.cumsum(lengths + 1) - (lengths + 1)
