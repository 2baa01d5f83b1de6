"""Matched rollouts: a held-out episode simulated again as it was, and once more with each event in the middle.

The clean rollout replays the recorded seed and actions, so it shows the recorded frames, before JPEG. A rollout with an
event goes back to the simulator's exact state and does the same actions from there (other ones only where the event is
about actions). Both are rendered by one renderer; the
event's frame is the first that can differ. A rollout costs its frames' simulation and rendering.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from dm_control.rl.control import PhysicsError

from collectors.envs.base import Env, EnvConfig, Quality, VariationConfig
from collectors.rollout import replay
from shards.dataset import Dataset
from trainers.evaluation.events import Change, Event, NotHere, SceneRenderer, Simulator


class Diverged(RuntimeError):
    """The simulator came to no finite state after an event."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where an event happens: frame `frame` of an episode is the first that may show it."""

    episode: int
    frame: int


@dataclass(frozen=True, slots=True)
class Clean:
    """A rollout without an event: frames (before + after, h, w, 3) and the recorded actions between them.

    `states` are the simulator's at the event's frame and one step before it.
    """

    moment: Moment
    frames: np.ndarray
    action: np.ndarray
    states: tuple[Any, Any]


class Stage:
    """One environment, for episodes of one dataset. `before` and `after` count frames up to and from the event's."""

    def __init__(self, env: Env, dataset: Dataset, *, before: int, after: int) -> None:
        self.env, self.dataset, self.before, self.after = env, dataset, before, after
        self.simulator = Simulator.of(env)
        self.renderer = SceneRenderer(self.simulator, size=env.spec.size, quality=cast(Quality, env.spec.quality))

    def close(self) -> None:
        """Free the renderer and the environment."""
        self.renderer.close()
        self.env.close()

    def moments(self, episodes: Sequence[int] | np.ndarray, count: int, seed: int) -> list[Moment]:
        """`count` moments, each of another episode, all where there are fewer; drawn by `seed`."""
        long = [int(i) for i in episodes if self.dataset.lengths[i] >= self.before + self.after - 1]
        if not long:
            raise ValueError(
                f"no held-out episode of {self.dataset.location} has {self.before + self.after - 1} steps: ask for "
                f"fewer frames before and after the event, or collect longer episodes"
            )
        rng = np.random.default_rng([seed, 0])
        drawn = sorted(rng.permutation(long)[:count].tolist())
        return [Moment(i, int(rng.integers(self.before, self.dataset.lengths[i] - self.after + 2))) for i in drawn]

    def clean(self, moment: Moment) -> Clean:
        """The rollout as it was recorded."""
        first, last = moment.frame - self.before, moment.frame + self.after - 1
        action = np.array(self.dataset.action(moment.episode))
        replay(self.env, self.dataset.info(moment.episode), action, first)
        self.renderer.reload_terrain()
        frames, states = [self._render(None)], {first: self.env.get_state()}
        for t in range(first, last):
            self.env.step(action[t])
            frames.append(self._render(None))
            if t + 1 in (moment.frame - 1, moment.frame):
                states[t + 1] = self.env.get_state()
        return Clean(moment, np.stack(frames), action[first:last], (states[moment.frame - 1], states[moment.frame]))

    def event(self, clean: Clean, event: Event, rng: np.random.Generator) -> np.ndarray:
        """The frames (after, h, w, 3) from the event on. NotHere when the environment has nothing for it to happen to,
        Diverged when the simulator does not survive it.

        A lasting event happens one step before the first frame that may show it, because it acts through that step.
        """
        began = self.before - 1 if event.lasting else self.before
        with self._changed(clean.states[0 if event.lasting else 1], event, rng) as change:
            action = clean.action[began:]
            done = (change.gain * (rng.permutation(clean.action) if change.shuffle else action)).astype(np.float32)
            frames = [] if event.lasting else [self._render(change)]
            for t in range(len(action)):
                try:
                    self.env.step(done[t])
                except (PhysicsError, FloatingPointError) as error:
                    raise Diverged(f"{event.label}: {error}") from error
                frames.append(self._render(change))
        return np.stack(frames)

    def possible(self, clean: Clean, events: Sequence[Event]) -> tuple[list[Event], list[str]]:
        """Events that can happen in this environment, and why others cannot."""
        found, missing = [], []
        for event in events:
            try:
                with self._changed(clean.states[0], event, np.random.default_rng(0)):
                    found.append(event)
            except NotHere as error:
                missing.append(f"{event.label}: {error}")
        return found, missing

    @contextmanager
    def _changed(self, state: Any, event: Event, rng: np.random.Generator) -> Iterator[Change]:
        """The simulator in `state` with the event; afterwards the model is as it was."""
        gravity = self.simulator.model.opt.gravity
        kept = gravity.copy()
        self.env.set_state(state)
        try:
            yield event.apply(self.simulator, rng, event.size)
        finally:
            gravity[:] = kept
            self.env.set_state(state)

    def _render(self, change: Change | None) -> np.ndarray:
        self.renderer.ball = change.ball if change else None
        return self.renderer.render(self.simulator.data)


def recorded_environment(dataset: Dataset) -> EnvConfig:
    """The environment that recorded a dataset, variation included."""
    common, policy = dataset.manifest.common, dataset.info(0).policy
    return EnvConfig(
        name=dataset.environment,
        size=dataset.size,
        camera=common.camera,
        quality=cast(Quality, common.quality),
        action_repeat=common.action_repeat,
        variation=VariationConfig(**policy.get("variation", {}).get("strength", {})),
    )
