"""Recording one episode, and returning to any state of it.

An episode is a pure function of (dataset seed, episode number, configuration), whoever records it and when. From the
recorded seed and actions the simulator can be brought back, exactly, to every state of the episode.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from collectors.config import CollectConfig, as_recorded, weights_of
from collectors.envs.base import Env
from collectors.policies import ExpertConfig, draw, make_policy
from shards.episode import Episode, EpisodeInfo

_MOVED = 0.2
"""Metres or radians by which visible state may not move while frames stay the same, without a second look."""


class EpisodeFailed(RuntimeError):
    """The simulator or its renderer failed; the message names the episode, its seed and the step."""


class BadFrame(EpisodeFailed):
    """The renderer gave a frame that cannot be right."""


class Interrupted(Exception):
    """For `on_step` to raise: the recording is to end at once. No failure of the episode."""


def episode_seed(seed: int, number: int) -> int:
    """The seed of episode `number` of a dataset, 53 bits: a million share none, and JSON holds them exactly."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) >> 11


def begin(env: Env, seed: int, *, random_start: bool) -> None:
    """Put `env` at the start of the episode with this seed."""
    env.reset(seed)
    if random_start:
        env.randomize(np.random.default_rng([seed, 1]))


def record_episode(env: Env, config: CollectConfig, number: int, on_step: Callable[[], None] | None = None) -> Episode:
    """Record episode `number`. Raises EpisodeFailed when the simulator or the renderer fails.

    `on_step` is called before each step; what it raises as Interrupted is passed on.

    An episode is a success if it was one after any step, as Meta-World counts.
    """
    seed = episode_seed(config.seed, number)
    rng = np.random.default_rng([seed, 0])
    policy_config = draw(config.policy, rng)
    random_start = bool(rng.random() < config.random_start)
    policy = make_policy(policy_config, env.spec)
    steps = config.steps or env.spec.max_steps

    size = env.spec.size
    frames = np.empty((steps + 1, size, size, 3), np.uint8)
    action = np.empty((steps, env.spec.action_size), np.float32)
    reward = np.empty(steps, np.float32)
    state = np.empty((steps + 1, len(env.spec.columns)), np.float32)
    step = 0
    try:
        begin(env, seed, random_start=random_start)
        policy.reset(env, rng)
        solved = env.success()
        for step in range(steps + 1):
            if on_step is not None:
                on_step()
            frames[step], state[step] = env.render(), env.physical_state()
            if not np.isfinite(state[step]).all():
                raise FloatingPointError("the physics is not finite")
            if step < steps:
                action[step] = policy.act(env)
                reward[step] = env.step(action[step])
                if not np.isfinite(reward[step]):
                    raise FloatingPointError("the reward is not finite")
                solved = solved or env.success()
    except Interrupted:
        raise
    except Exception as error:
        start = " from a random start" if random_start else ""
        raise EpisodeFailed(
            f"episode {number} of {env.spec.name} (seed {seed}{start}) failed at step {step}: "
            f"{type(error).__name__}: {error}"
        ) from error
    visible = [column.observable == "one_frame" for column in env.spec.columns]
    _check_colours(frames, number)
    frozen = _last_frozen(frames, state[:, visible], number)
    if frozen is not None:
        # What moves may have left the camera's view. A renderer that froze for good cannot show the first frame again,
        # and one that froze for a while now shows another frame than it did.
        begin(env, seed, random_start=random_start)
        same = np.array_equal(env.render(), frames[0])
        for step in range(frozen if same else 0):
            env.step(action[step])
        if not (same and np.array_equal(env.render(), frames[frozen])):
            raise BadFrame(f"episode {number}: the frames froze; does this GL backend work? see lewm doctor")
    info = EpisodeInfo(
        environment=env.spec.name,
        config8=config.config8,
        seed=config.seed,
        number=number,
        episode_seed=seed,
        policy={
            **asdict(as_recorded(policy_config)),
            **(weights_of(config.env.name) if isinstance(policy_config, ExpertConfig) else {}),
            "random_start": random_start,
            **_varied(env, config),
        },
        camera=env.spec.camera,
        size=size,
        quality=env.spec.quality,
        action_repeat=env.spec.action_repeat,
        dt=env.spec.dt,
        columns=env.spec.columns,
        versions=env.spec.versions,
        success=solved,
    )
    return Episode(info, frames, action, reward, state)


def replay(env: Env, info: EpisodeInfo, action: np.ndarray, steps: int) -> None:
    """Bring `env` to the state that the episode `info` was in after the first `steps` of its actions (T, A).

    Raises ValueError when `env` is not what recorded the episode: the result would be another state.
    """
    recorded = (info.environment, info.action_repeat, dict(info.versions))
    here = (env.spec.name, env.spec.action_repeat, dict(env.spec.versions))
    if recorded != here:
        raise ValueError(
            f"{info.key} cannot be replayed exactly: it was recorded with {_described(*recorded)}, "
            f"this is {_described(*here)}"
        )
    begin(env, info.episode_seed, random_start=bool(info.policy.get("random_start", False)))
    if info.policy.get("variation", {}).get("drawn", {}) != env.variation():
        raise ValueError(f"{info.key} was recorded with other factors of variation than this environment draws")
    for step in range(steps):
        env.step(action[step])


def _varied(env: Env, config: CollectConfig) -> dict[str, Any]:
    """What the record of an episode says of its variation: nothing without any."""
    drawn = env.variation()
    return {"variation": {"strength": asdict(config.env.variation), "drawn": drawn}} if drawn else {}


def _described(name: str, action_repeat: int, versions: dict[str, str]) -> str:
    packages = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    return f"{name}, action repeat {action_repeat}, {packages}"


def _check_colours(frames: np.ndarray, number: int) -> None:
    """BadFrame for a frame of one colour. Of a good frame it looks at every eighth pixel of every eighth row."""
    alike = (frames[:, ::8, ::8] == frames[:, :1, :1]).all(axis=(1, 2, 3))
    for step in np.flatnonzero(alike):
        if (frames[step] == frames[step, 0, 0]).all():
            raise BadFrame(
                f"episode {number}: frame {step} has one colour only; does this GL backend work? see lewm doctor"
            )


def _last_frozen(frames: np.ndarray, visible: np.ndarray, number: int) -> int | None:
    """The last frame of the longest run of equal frames while visible state moves; None without one.

    BadFrame where no frame of the whole episode differs.
    """
    differs = [not np.array_equal(before, after) for before, after in itertools.pairwise(frames)]
    edges = [0, *(np.flatnonzero(differs) + 1), len(frames)]
    runs = [(begin, end) for begin, end in itertools.pairwise(edges) if end - begin > 1]
    frozen = [(end - begin, end) for begin, end in runs if np.ptp(visible[begin:end], axis=0).max(initial=0) > _MOVED]
    if not frozen:
        return None
    length, end = max(frozen)
    if length == len(frames):
        raise BadFrame(f"episode {number}: the state moves and the frames do not; does this GL backend work?")
    return int(end) - 1
