"""The fleet: Ray actors that record episodes into shards, restartable at any moment.

A unit of work is a fixed range of `UNIT` episodes. An actor owns environment, renderer and writer, and writes a unit's
missing episodes as one shard (`recorder`); only counts return to the driver, which replaces actors that fail
(`supervisor`). What is committed is found from the shards' indexes, so running the same command again collects exactly
the missing episodes, and a unit that was interrupted gets a further shard. Asked to stop, actors commit the episodes
that they have complete. One collector works on a directory at a time, and waits for the actors of one that was killed
(`locks`). `collection.json` beside the shards is what was asked for; it is no part of the dataset.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from collectors.cluster import ensure_ray
from collectors.config import CollectConfig
from collectors.envs import EnvSpec, make_env
from collectors.locks import locked, writers_gone
from collectors.policies import components, make_policy
from collectors.supervisor import ActorConfig, ActorCounts, CollectionFailed, Counts, Supervisor, Unit
from shards.atomic import remove_leftovers, write_atomically
from shards.codec import parse_metadata
from shards.index import ShardIndex
from shards.manifest import Manifest, assemble, committed, committed_keys
from shards.writer import shard_paths

COLLECTION = "collection.json"
UNIT = 8
"""Episodes in a unit of work, and at most in a shard. Part of where episodes lie, never of what they are."""

_STOP_SECONDS = 30.0
"""How long actors may take to end after a collection that was stopped."""
_ORPHAN_SECONDS = 60.0
"""How long to wait for the actors of a collector that was killed. Ray ends them within seconds."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a collection is: `episodes` of `total`, of which `existing` were there before."""

    episodes: int
    total: int
    existing: int
    frames: int
    bytes: int
    seconds: float
    retries: int = 0
    renderers: int = 0
    lost: int = 0
    recycled: int = 0
    actors: tuple[ActorCounts, ...] = ()

    @property
    def failures(self) -> int:
        """What went wrong and was made good: episodes tried again and actors replaced."""
        return self.retries + self.lost

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
    retries: int
    """Episodes that were tried again."""
    renderers: int
    """Renderers that went bad and were replaced."""
    lost: int
    """Actors that died or got stuck and were replaced."""
    recycled: int
    """Actors that were replaced after their share of episodes."""
    skipped: tuple[int, ...]
    """Episodes that failed and are missing, by number."""
    actors: tuple[ActorCounts, ...]


def collect(
    config: CollectConfig,
    out: Path,
    *,
    workers: int,
    address: str | None = None,
    actor: ActorConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> CollectSummary:
    """Record the episodes of `config` that `out` does not hold yet, and assemble its manifest.

    Raises ValueError for a configuration that cannot work and for a directory that holds another collection or is in
    use, CollectionFailed when it cannot go on. However it ends, the manifest names what was committed.
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
        supervisor: Supervisor | None = None
        if missing:
            _save(out, config, {})
            ensure_ray(address, cpus=max(workers, os.cpu_count() or 1))

            def report(counts: Counts) -> None:
                nonlocal done
                done = _progress(counts, existing, config.episodes, time.perf_counter() - began)
                if on_progress is not None:
                    on_progress(done)

            units, parts = _units(config, out, missing)
            supervisor = Supervisor(
                config,
                out,
                units,
                parts,
                workers=workers,
                actor=actor or ActorConfig(),
                local=address is None,
                on_commit=report,
            )
            try:
                supervisor.run()
            except BaseException:
                if writers_gone(out, _STOP_SECONDS):
                    remove_leftovers(out)
                    if committed(out):
                        assemble(out)
                raise
            done = _progress(supervisor.counts, existing, config.episodes, done.seconds)
            if writers_gone(out, _STOP_SECONDS):
                remove_leftovers(out)  # of actors that were lost
            if supervisor.skipped:
                _save(out, config, supervisor.skipped)
        if not committed(out):
            raise CollectionFailed(f"{out}: every episode failed; {COLLECTION} says how")
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
        retries=done.retries,
        renderers=done.renderers,
        lost=done.lost,
        recycled=done.recycled,
        skipped=tuple(sorted(supervisor.skipped)) if supervisor else (),
        actors=done.actors,
    )


def _progress(counts: Counts, existing: int, total: int, seconds: float) -> Progress:
    return Progress(
        existing + counts.episodes,
        total,
        existing,
        counts.frames,
        counts.bytes,
        seconds,
        counts.retries,
        counts.renderers,
        counts.lost,
        counts.recycled,
        counts.actors,
    )


def _save(out: Path, config: CollectConfig, skipped: Mapping[int, str]) -> None:
    value = {"config": asdict(config), "skipped": {str(number): why for number, why in sorted(skipped.items())}}
    write_atomically(out / COLLECTION, (json.dumps(value, indent=2) + "\n").encode())


def _units(config: CollectConfig, out: Path, missing: list[int]) -> tuple[list[Unit], dict[str, int]]:
    """Every unit with missing episodes, and how many shards each has: a unit begun before gets a new part."""
    names = committed(out)
    units, parts = [], {}
    for first in range(0, config.episodes, UNIT):
        numbers = tuple(number for number in missing if first <= number < first + UNIT)
        if numbers:
            stem = f"{_prefix(config)}-{first:08d}"
            units.append(Unit(stem, numbers))
            parts[stem] = 1 + max(
                (int(name.rsplit("-", 1)[1]) for name in names if name.startswith(f"{stem}-")), default=-1
            )
    return units, parts


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


__all__ = [
    "COLLECTION",
    "UNIT",
    "ActorConfig",
    "CollectSummary",
    "CollectionFailed",
    "Progress",
    "collect",
]
