"""Windows straight from their definition, in loops over plain Python integers; and loaders run to lists."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pipelines.loader import Loader
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
from shards.episode import Episode

specs = st.builds(
    WindowSpec,
    history=st.integers(0, 3),
    frame_skip=st.integers(1, 3),
    stack=st.integers(1, 3),
    stack_stride=st.integers(1, 2),
)


def starts(steps: int, spec: WindowSpec) -> list[int]:
    """Every t0 whose frames are within 0..steps and whose actions are within 0..steps-1."""
    return [t0 for t0 in range(steps + 1) if _fits(steps, spec, t0)]


def _fits(steps: int, spec: WindowSpec, t0: int) -> bool:
    frames = [t for observation in observation_frames(spec, t0) for t in observation]
    actions = [t for block in action_steps(spec, t0) for t in block]
    return all(0 <= t <= steps for t in frames) and all(0 <= t < steps for t in actions)


def observation_frames(spec: WindowSpec, t0: int) -> list[list[int]]:
    return [
        [t0 + j * spec.frame_skip - (spec.stack - 1 - i) * spec.stack_stride for i in range(spec.stack)]
        for j in range(spec.history + 1)
    ]


def action_steps(spec: WindowSpec, t0: int) -> list[list[int]]:
    return [[t0 + j * spec.frame_skip + i for i in range(spec.frame_skip)] for j in range(spec.history)]


def windows(lengths: Sequence[int] | np.ndarray, spec: WindowSpec) -> list[tuple[int, int]]:
    return [(episode, t0) for episode, steps in enumerate(lengths) for t0 in starts(int(steps), spec)]


class Item(NamedTuple):
    """One window as delivered, copied."""

    episode: int
    start: int
    frames: np.ndarray
    action: np.ndarray
    state: np.ndarray | None

    @property
    def window(self) -> tuple[int, int]:
        return self.episode, self.start


def global_batches(
    data: Dataset | list[Dataset],
    spec: WindowSpec,
    steps: int,
    *,
    world_size: int = 1,
    state: Any = None,
    **keywords: Any,
) -> list[list[Item]]:
    """The first `steps` global batches (after `state`): the shares of all ranks, one after the other."""
    shares = []
    for rank in range(world_size):
        with Loader(data, spec, rank=rank, world_size=world_size, **keywords) as loader:
            if state is not None:
                loader.load_state_dict(state)
            shares.append([items(next(loader)) for _ in range(steps)])
    return [flat(of_ranks) for of_ranks in zip(*shares, strict=True)]


def items(batch: Any) -> list[Item]:
    count = len(batch.episode)
    states = [None] * count if batch.state is None else batch.state.numpy().copy()
    columns = zip(batch.frames.numpy().copy(), batch.action.numpy().copy(), states, strict=True)
    return [Item(int(batch.episode[i]), int(batch.start[i]), *column) for i, column in enumerate(columns)]


def flat(batches: Iterable[list[Item]]) -> list[Item]:
    return list(chain.from_iterable(batches))


def take(loader: Loader, steps: int) -> None:
    """Ask for batches and forget them."""
    for _ in range(steps):
        next(loader)


def window_ids(batches: list[list[Item]]) -> list[list[tuple[int, int]]]:
    return [[item.window for item in batch] for batch in batches]


def is_right(item: Item, episode: Episode, spec: WindowSpec) -> bool:
    """Whether a delivered window is what the whole episode says, element by element."""
    stacked = item.frames[spec.observation_index]
    pairs = [
        (stacked[j, i], episode.frames[t])
        for j, observation in enumerate(observation_frames(spec, item.start))
        for i, t in enumerate(observation)
    ]
    for j, block in enumerate(action_steps(spec, item.start)):
        pairs.append((item.action[j], np.concatenate([episode.action[t] for t in block])))
    if item.state is not None:
        for j, observation in enumerate(observation_frames(spec, item.start)):
            pairs.append((item.state[j], episode.state[observation[-1]]))
    return all(np.array_equal(left, right) for left, right in pairs)


def same(left: list[list[Item]], right: list[list[Item]]) -> bool:
    """Whether two lists of batches have equal windows in equal order, with equal pixels, actions and states."""
    return window_ids(left) == window_ids(right) and all(
        np.array_equal(a.frames, b.frames)
        and np.array_equal(a.action, b.action)
        and (a.state is None) == (b.state is None)
        and (a.state is None or b.state is None or np.array_equal(a.state, b.state))
        for a, b in zip(flat(left), flat(right), strict=True)
    )
