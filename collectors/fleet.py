"""The fleet: Ray actors that record episodes into shards, restartable at any moment.

A unit of work is a fixed range of `UNIT` episodes. An actor owns environment, renderer and writer, and writes a unit's
missing episodes as one shard; only counts return to the driver. What is committed is found from the shards' indexes, so
running the same command again collects exactly the missing episodes, and a unit that was interrupted gets a further
shard. One collector works on a directory at a time, held by a lock.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectors.cluster import ensure_ray
from collectors.config import CollectConfig
from collectors.envs import check_name
from collectors.gl import choose_backend, gl_environment
from shards.atomic import remove_leftovers
from shards.manifest import Manifest, assemble, committed, committed_keys
from shards.writer import ShardWriter

UNIT = 8
"""Episodes in a unit of work, and at most in a shard. Part of where episodes lie, never of what they are."""


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
        from collectors.envs import make_env

        self._config, self._out = config, out
        self._env = make_env(config.env)

    def collect(self, name: str, numbers: list[int]) -> UnitResult:
        """Record episodes `numbers` into the shard `name` and commit it."""
        from collectors.rollout import record_episode

        frames = 0
        writer = ShardWriter(self._out, name, self._config.encoding)
        try:
            for number in numbers:
                episode = record_episode(self._env, self._config, number)
                writer.write(episode)
                frames += len(episode.frames)
        except BaseException:
            writer.abort()
            raise
        info = writer.commit()
        return UnitResult(len(numbers), frames, info.tar_bytes + info.index_bytes)


def collect(
    config: CollectConfig,
    out: Path,
    *,
    workers: int,
    address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> CollectSummary:
    """Record the episodes of `config` that `out` does not hold yet, and assemble its manifest.

    Raises ValueError for a directory that holds another collection or is in use, CollectionFailed when an actor fails.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    check_name(config.env.name)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        remove_leftovers(out)
        prefix = _prefix(config)
        keys = committed_keys(out)
        _check_same_collection(out, keys, prefix)
        missing = [number for number in range(config.episodes) if f"{prefix}-{number:08d}" not in keys]
        began = time.perf_counter()
        existing = config.episodes - len(missing)
        done = Progress(existing, config.episodes, existing, 0, 0, 0.0)
        if missing:
            ensure_ray(address, cpus=max(workers, os.cpu_count() or 1))
            for result in _run(config, out, missing, workers, local=address is None):
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


def _run(config: CollectConfig, out: Path, missing: list[int], workers: int, *, local: bool) -> Iterator[UnitResult]:
    """Hand units to actors, one at a time each, and yield results as they come. Ends the actors."""
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
            yield ray.get(ready[0])
            unit = next(waiting, None)
            if unit is not None:
                busy[actor.collect.remote(*unit)] = actor
    except RayTaskError as error:
        raise CollectionFailed(f"{_first_line(error)}; run the same command again to go on") from error
    except RayActorError as error:
        raise CollectionFailed(f"an actor died ({_first_line(error)}); run the same command again to go on") from error
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


def _check_same_collection(out: Path, keys: set[str], prefix: str) -> None:
    other = next((key for key in sorted(keys) if not key.startswith(f"{prefix}-")), None)
    if other is not None:
        raise ValueError(
            f"{out} holds episodes of another collection ({other[:-9]}; this one is {prefix}): "
            f"choose another --out, or repeat that one's settings and seed"
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the directory against a second collector. The lock goes with the process, however it ends."""
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out} is in use by another collector: wait for it, or choose another --out") from None
        yield


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
