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
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from collectors.cluster import check_fits, ensure_ray
from collectors.config import CollectConfig
from collectors.envs import EnvConfig, EnvSpec, make_env
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
_VISIBLE_SECONDS = 60.0
"""How long a network file system may take to show here what another node has committed."""


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


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """What a collection came to. `frames` and `seconds` are of this call alone, from when its actors were
    asked for to the last commit."""

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

    Raises ValueError for a configuration that cannot work and for a directory that holds another collection or more
    episodes, is in use, or is not shared by the nodes; CollectionFailed when it cannot go on. However it ends, the
    manifest names what was committed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    config, spec = _checked(config)
    actor = actor or ActorConfig()
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as word:
        if not writers_gone(out, _ORPHAN_SECONDS):
            raise ValueError(f"{out}: actors of an earlier collector still write here: try again when they have ended")
        remove_leftovers(out)
        prefix = _prefix(config)
        keys = committed_keys(out)
        _check_same_collection(out, keys, prefix, spec)
        _check_no_more(out, keys, config)
        missing = [number for number in range(config.episodes) if _key(prefix, number) not in keys]
        existing = config.episodes - len(missing)
        done = Progress(existing, config.episodes, existing, 0, 0, 0.0)
        supervisor: Supervisor | None = None
        if missing:
            ensure_ray(address, cpus=max(workers, os.cpu_count() or 1))
            check_fits(actor.cpus, actor.gpus)
            _save(out, config, {})
            began = time.perf_counter()

            def report(counts: Counts) -> None:
                nonlocal done
                done = _progress(counts, existing, config.episodes, time.perf_counter() - began)
                if on_progress is not None:
                    on_progress(done)

            units, parts = _units(prefix, committed(out), missing)
            supervisor = Supervisor(
                config,
                out,
                units,
                parts,
                word=word,
                workers=workers,
                actor=actor,
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
        skipped = supervisor.skipped if supervisor else {}
        if len(skipped) == config.episodes:
            raise CollectionFailed(f"{out}: every episode failed; {COLLECTION} says how")
        manifest = _assemble(out, config.episodes - len(skipped), 0.0 if address is None else _VISIBLE_SECONDS)
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
        skipped=tuple(sorted(skipped)),
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


def _units(prefix: str, names: Iterable[str], missing: Iterable[int]) -> tuple[list[Unit], dict[str, int]]:
    """Every unit with missing episodes (in order), and how many shards each stem has: a unit begun before gets a new
    part. `names` are the committed shards."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for number in missing:
        numbers[number // UNIT * UNIT].append(number)
    parts: dict[str, int] = defaultdict(int)
    for name in names:
        if found := re.fullmatch(rf"({prefix}-\d{{8}})-(\d+)", name):
            parts[found[1]] = max(parts[found[1]], 1 + int(found[2]))
    return [Unit(_key(prefix, first), tuple(unit)) for first, unit in numbers.items()], parts


def _prefix(config: CollectConfig) -> str:
    slug = config.env.name.replace("/", "-").replace(".", "-")
    return f"{slug}-{config.config8}-{config.seed}"


def _key(prefix: str, number: int) -> str:
    return f"{prefix}-{number:08d}"


def _assemble(out: Path, expected: int, seconds: float) -> Manifest:
    """The manifest of all `expected` episodes, looking for them for up to `seconds`. CollectionFailed when some are not
    there although their actors committed them."""
    deadline = time.monotonic() + seconds
    while True:
        manifest = assemble(out) if committed(out) else None
        found = manifest.n_episodes if manifest else 0
        if manifest and found >= expected:
            return manifest
        if time.monotonic() >= deadline:
            raise CollectionFailed(
                f"{out} holds {found} episodes, and actors committed {expected}: does every node share this directory?"
            )
        time.sleep(1)


def _checked(config: CollectConfig) -> tuple[CollectConfig, EnvSpec]:
    """`config` without what it would be anyway, and its environment as seen without rendering.

    So the same episodes have the same keys, whether or not somebody wrote a default out. ValueError when the
    environment or one of the policies cannot be made.
    """
    spec = _spec(config.env)
    for policy in components(config.policy):
        make_policy(policy, spec)
    env = config.env
    if env.camera is not None or env.action_repeat is not None:
        usual = _spec(replace(env, camera=None, action_repeat=None))
        env = replace(
            env,
            camera=None if env.camera == usual.camera else env.camera,
            action_repeat=None if env.action_repeat == usual.action_repeat else env.action_repeat,
        )
    return replace(config, env=env, steps=None if config.steps == spec.max_steps else config.steps), spec


def _spec(config: EnvConfig) -> EnvSpec:
    env = make_env(config)
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


def _check_no_more(out: Path, keys: set[str], config: CollectConfig) -> None:
    highest = max((int(key[-8:]) for key in keys), default=-1)
    if highest >= config.episodes:
        raise ValueError(
            f"{out} holds episodes up to number {highest}, more than the {config.episodes} asked for: "
            f"give --episodes {highest + 1} or more, or choose another --out"
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
