"""The fleet: Ray actors that record episodes into shards, restartable at any moment.

A unit of work is a fixed range of `UNIT` episodes. An actor owns environment, renderer and writer, and writes a unit's
missing episodes as one shard; only counts return to the driver. What is committed is found from the shards' indexes, so
running the same command again collects exactly the missing episodes, and a unit that was interrupted gets a further
shard. Asked to stop, actors commit the episodes that they have complete. One collector works on a directory at a time,
and waits for the actors of one that was killed (`locks`).
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectors.cluster import ensure_ray
from collectors.config import CollectConfig
from collectors.envs import EnvSpec, make_env
from collectors.gl import choose_backend, gl_environment
from collectors.locks import join_writers, locked, writers_gone
from collectors.policies import components, make_policy
from collectors.rollout import EpisodeFailed, record_episode
from shards.atomic import remove_leftovers
from shards.codec import parse_metadata
from shards.index import ShardIndex
from shards.manifest import Manifest, assemble, committed, committed_keys
from shards.writer import ShardWriter, shard_paths

UNIT = 8
"""Episodes in a unit of work, and at most in a shard. Part of where episodes lie, never of what they are."""

_STOP_SECONDS = 30.0
"""How long actors may take to end the episode that they are at, when a collection is stopped."""
_ORPHAN_SECONDS = 60.0
"""How long to wait for the actors of a collector that was killed. Ray ends them within seconds."""


class CollectionFailed(RuntimeError):
    """An actor failed; what was committed stands, and the same command goes on from there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a collection is: `episodes` of `total`, of which `existing` were there before."""

    episodes: int
    total: int
    existing: int
    frames: int
    bytes: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to go at the rate so far; None before the first episode."""
        recorded = self.episodes - self.existing
        return self.seconds / recorded * (self.total - self.episodes) if recorded else None


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """What a collection came to. `frames` and `seconds` are of this call alone, from the first actor's start."""

    path: str
    episodes: int
    existing: int
    frames: int
    seconds: float
    frames_per_second: float
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What an actor says of a unit that it committed."""

    episodes: int
    frames: int
    bytes: int


class Collector:
    """One actor: an environment and its renderer, recording unit after unit."""

    def __init__(self, config: CollectConfig, out: Path) -> None:
        self._writing = join_writers(out)
        self._config, self._out = config, out
        self._env = make_env(config.env)

    def collect(self, name: str, numbers: list[int]) -> UnitResult:
        """Record episodes `numbers` into the shard `name` and commit it; fewer when the task is cancelled meanwhile."""
        import ray

        frames = 0
        writer = ShardWriter(self._out, name, self._config.encoding)
        try:
            for number in numbers:
                if ray.get_runtime_context().is_canceled():
                    break
                episode = record_episode(self._env, self._config, number)
                writer.write(episode)
                frames += len(episode.frames)
        except BaseException:
            writer.abort()
            raise
        if not writer.episodes:
            writer.abort()
            return UnitResult(0, 0, 0)
        info = writer.commit()
        return UnitResult(info.episodes, frames, info.tar_bytes + info.index_bytes)


def collect(
    config: CollectConfig,
    out: Path,
    *,
    workers: int,
    address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> CollectSummary:
    """Record the episodes of `config` that `out` does not hold yet, and assemble its manifest.

    Raises ValueError for a configuration that cannot work and for a directory that holds another collection or is in
    use, CollectionFailed when an actor fails. However it ends, the manifest names what was committed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    spec = _check(config)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if not writers_gone(out, _ORPHAN_SECONDS):
            raise ValueError(f"{out}: actors of an earlier collector still write here: try again when they have ended")
        remove_leftovers(out)
        prefix = _prefix(config)
        keys = committed_keys(out)
        _check_same_collection(out, keys, prefix, spec)
        missing = [number for number in range(config.episodes) if f"{prefix}-{number:08d}" not in keys]
        began = time.perf_counter()
        existing = config.episodes - len(missing)
        done = Progress(existing, config.episodes, existing, 0, 0, 0.0)
        if missing:
            ensure_ray(address, cpus=max(workers, os.cpu_count() or 1))

            def count(result: UnitResult) -> None:
                nonlocal done
                done = Progress(
                    done.episodes + result.episodes,
                    config.episodes,
                    existing,
                    done.frames + result.frames,
                    done.bytes + result.bytes,
                    time.perf_counter() - began,
                )
                if on_progress is not None:
                    on_progress(done)

            try:
                _run(config, out, missing, workers, count, local=address is None)
            except BaseException:
                if writers_gone(out, _STOP_SECONDS) and committed(out):
                    assemble(out)
                raise
        manifest: Manifest = assemble(out)
    return CollectSummary(
        path=str(out),
        episodes=manifest.n_episodes,
        existing=existing,
        frames=done.frames,
        seconds=done.seconds,
        frames_per_second=done.frames_per_second,
        bytes=done.bytes,
        digest=manifest.digest,
    )


def _run(
    config: CollectConfig,
    out: Path,
    missing: list[int],
    workers: int,
    on_result: Callable[[UnitResult], None],
    *,
    local: bool,
) -> None:
    """Hand units to actors, one at a time each, until all are done, and pass on results as they come. Ends the actors.

    When this is interrupted, or an actor fails, the others first commit the episodes that they have complete.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    units = _units(config, out, missing)
    # On a cluster the head's backend says nothing about the nodes: each actor then chooses for itself.
    env_vars = gl_environment(choose_backend()) | {"OMP_NUM_THREADS": "1"} if local else {"OMP_NUM_THREADS": "1"}
    actor_class: Any = ray.remote(num_cpus=1, runtime_env={"env_vars": env_vars})(Collector)
    actors = [actor_class.remote(config, out) for _ in range(min(workers, len(units)))]
    waiting = iter(units)
    busy: dict[Any, Any] = {}
    try:
        for actor in actors:
            name, numbers = next(waiting)
            busy[actor.collect.remote(name, numbers)] = actor
        while busy:
            ready, _ = ray.wait(list(busy), num_returns=1)
            actor = busy.pop(ready[0])
            result = ray.get(ready[0])
            unit = next(waiting, None)
            if unit is not None:
                busy[actor.collect.remote(*unit)] = actor
            else:
                ray.kill(actor)  # there may be fewer cores than workers, and another actor that waits for this one's
            on_result(result)
    except BaseException as error:
        for task in busy:
            ray.cancel(task)
        if busy:
            ray.wait(list(busy), num_returns=len(busy), timeout=_STOP_SECONDS)
        if isinstance(error, RayTaskError | RayActorError):
            raise CollectionFailed(f"{_reason(error)}; run the same command again to go on") from error
        raise
    finally:
        for actor in actors:
            ray.kill(actor)


def _units(config: CollectConfig, out: Path, missing: list[int]) -> list[tuple[str, list[int]]]:
    """(shard name, episode numbers) of every unit with missing episodes; a unit begun before gets a new part."""
    names = committed(out)
    units = []
    for first in range(0, config.episodes, UNIT):
        numbers = [number for number in missing if first <= number < first + UNIT]
        if numbers:
            stem = f"{_prefix(config)}-{first:08d}"
            part = sum(name.startswith(f"{stem}-") for name in names)
            units.append((f"{stem}-{part:02d}", numbers))
    return units


def _prefix(config: CollectConfig) -> str:
    slug = config.env.name.replace("/", "-").replace(".", "-")
    return f"{slug}-{config.config8}-{config.seed}"


def _check(config: CollectConfig) -> EnvSpec:
    """What the environment is, seen without rendering; ValueError when it or one of the policies cannot be made."""
    env = make_env(config.env)
    for policy in components(config.policy):
        make_policy(policy, env.spec)
    env.close()
    return env.spec


def _check_same_collection(out: Path, keys: set[str], prefix: str, spec: EnvSpec) -> None:
    other = next((key for key in sorted(keys) if not key.startswith(f"{prefix}-")), None)
    if other is not None:
        raise ValueError(
            f"{out} holds episodes of another collection ({other[:-9]}; this one is {prefix}): "
            f"choose another --out, or repeat that one's settings and seed"
        )
    for name in committed(out)[:1]:
        index = ShardIndex.open(shard_paths(out, name)[1])
        before = dict(parse_metadata(index.keys[0], index.info(0)).info.versions)
        if before != dict(spec.versions):
            raise ValueError(
                f"{out} was recorded with {_listed(before)}, here is {_listed(spec.versions)}: install those versions "
                f"to add episodes, or choose another --out"
            )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))


def _reason(error: Exception) -> str:
    """What an actor's failure was, in one line."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        lines = str(cause).strip().splitlines() or [""]
        return lines[0] if isinstance(cause, EpisodeFailed) else f"{type(cause).__name__}: {lines[0]}"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    # Of an actor that could not start Ray shows the traceback, whose last line is the reason.
    return f"an actor died: {lines[-1] if 'creation task' in lines[0] else lines[0]}"
