"""Drives the actors: hands out units, watches over the actors, and replaces those that die, get stuck or grow old.

An actor has one call at a time. Its process may die (SIGKILL, out of memory) or answer no more: it is then killed and
replaced, what its unit still lacks is recorded into a further shard, and the loss is counted. An episode may take as
long as it likes: the actor is asked aside when its last step was. Above `max_lost` losses the collection fails. An
actor that has recorded `recycle` episodes is replaced too, which bounds what GL drivers leak.
"""

import itertools
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from collectors.config import CollectConfig
from collectors.gl import choose_backend, gl_environment
from collectors.locks import NotShared
from collectors.recorder import ASIDE, Committed, Recorded, Recorder, Started
from collectors.rollout import BadFrame, EpisodeFailed
from shards.writer import shard_paths

_DEATH_SECONDS = 10.0
"""How long to wait for an actor's death to be reported after it was killed."""
_ASIDE_SECONDS = 10.0
"""How long an actor may take to say when its last step was."""


class CollectionFailed(RuntimeError):
    """The collection cannot go on; what was committed stands, and the same command goes on from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorConfig:
    """What an actor takes of its machine, and when it is given up."""

    cpus: float = 1.0
    """Cores an actor."""
    gpus: float = 0.0
    """GPUs an actor, a fraction for several on one: for EGL on GPU nodes."""
    recycle: int = 500
    """Episodes after which an actor is replaced by a fresh process."""
    stuck_seconds: float = 600.0
    """An actor that takes longer over one step of an episode, over its files, or over loading its simulator is killed
    and replaced."""
    max_lost: int = 20
    """Actors that may die or get stuck before the collection fails."""
    skip_failed: bool = False
    """Go on without episodes whose physics or policy fails; they are named in collection.json."""

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"cpus and gpus must not be negative, not {self.cpus} and {self.gpus}")
        if self.recycle < 1:
            raise ValueError(f"recycle must be at least 1, not {self.recycle}")
        if self.stuck_seconds <= 0:
            raise ValueError(f"stuck_seconds must be positive, not {self.stuck_seconds}")
        if self.max_lost < 0:
            raise ValueError(f"max_lost must not be negative, not {self.max_lost}")


@dataclass(frozen=True, slots=True)
class ActorCounts:
    """What an actor does and has done, with those that it replaced. What was recorded counts, committed or not."""

    worker: int
    host: str
    """Where it runs; empty until it does."""
    doing: str
    episodes: int
    frames: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts since the start: committed `episodes` with their `frames` and `bytes`, and what went wrong on the way."""

    episodes: int = 0
    frames: int = 0
    bytes: int = 0
    retries: int = 0
    renderers: int = 0
    """Renderers that gave frames that cannot be right, and were replaced."""
    lost: int = 0
    """Actors that died or got stuck, and were replaced."""
    recycled: int = 0
    actors: tuple[ActorCounts, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """Episodes that go into one shard, named `<stem>-<part>`: what an interrupted unit lacks is a further part."""

    stem: str
    numbers: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Actor:
    """An actor as the driver sees it. Of its unit it has `written` episodes, each with its frames; the rest wait."""

    worker: int
    handle: Any
    node: str = ""
    rank: int = 0
    doing: Literal["starting", "preparing", "recording", "committing"] = "starting"
    since: float = 0.0
    unit: Unit | None = None
    shard: str = ""
    waiting: deque[int] = field(default_factory=deque)
    written: dict[int, int] = field(default_factory=dict)
    episodes: int = 0
    bad_renderer: bool = False


class Supervisor:
    """Records `units` with up to `workers` actors. `parts` counts the shards that each stem has already; `word` is that
    of the lock on `out`. Unless `local`, actors choose their GL backend themselves."""

    def __init__(
        self,
        config: CollectConfig,
        out: Path,
        units: list[Unit],
        parts: dict[str, int],
        *,
        word: str,
        workers: int,
        actor: ActorConfig,
        local: bool,
        on_commit: Callable[[Counts], None],
    ) -> None:
        import ray

        self.counts = Counts()
        self.skipped: dict[int, str] = {}
        self._config, self._out, self._word, self._local = config, out, word, local
        self._settings, self._on_commit = actor, on_commit
        self._units, self._parts = deque(units), dict(parts)
        self._free = list(range(min(workers, len(units))))
        self._actors: list[_Actor] = []
        self._busy: dict[Any, _Actor] = {}
        self._bad_frames: set[int] = set()
        self._tally = {worker: ActorCounts(worker, "", "starting", 0, 0) for worker in self._free}
        # On a cluster the head's backend says nothing about the nodes: each actor then chooses for itself.
        env_vars = {"OMP_NUM_THREADS": "1"} | (gl_environment(choose_backend()) if local else {})
        remote: Any = ray.remote  # whose stubs know no concurrency groups
        self._class: Any = remote(
            num_cpus=actor.cpus,
            num_gpus=actor.gpus,
            concurrency_groups={ASIDE: 1},
            runtime_env={"env_vars": env_vars},
        )(Recorder)

    def run(self) -> None:
        """Until every unit is committed. Raises CollectionFailed; then, and when interrupted, complete episodes are
        committed first, unless it is interrupted again. Ends the actors. NotShared when a node has another `out`."""
        import ray

        try:
            self._hire()
            while self._busy:
                ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=self._patience())
                for call in ready:
                    self._answered(self._busy.pop(call), call)
                self._replace_stuck()
        except BaseException:
            self._stop()
            raise
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)
            if self._busy:  # nobody may write when this returns
                ray.wait(list(self._busy), num_returns=len(self._busy), timeout=_DEATH_SECONDS)

    def _hire(self) -> None:
        while self._free and len(self._units) > sum(actor.unit is None for actor in self._actors):
            worker = self._free.pop(0)
            actor = _Actor(worker, self._class.remote(self._config, self._out, self._word))
            self._actors.append(actor)
            self._call(actor, "starting", actor.handle.start.remote())

    def _call(self, actor: _Actor, doing: Any, call: Any) -> None:
        actor.doing, actor.since = doing, time.monotonic()
        self._tally[actor.worker] = replace(self._tally[actor.worker], doing=doing)
        self._busy[call] = actor

    def _answered(self, actor: _Actor, call: Any) -> None:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            result: Any = ray.get(call)
        except RayActorError as error:
            self._lost(actor, _death(error))
            return
        except RayTaskError as error:
            self._failed(actor, error.cause)
            return
        if actor.doing == "starting":
            self._started(actor, result)
            return
        if actor.doing == "recording":
            self._recorded(actor, result)
        elif actor.doing == "committing":
            self._committed(actor, result)
        self._next(actor)

    def _started(self, actor: _Actor, result: Started) -> None:
        """Have it load its simulator, as the first that is free of the ranks on its node."""
        taken = {other.rank for other in self._actors if other.node == result.node}
        actor.rank = next(rank for rank in itertools.count() if rank not in taken)
        actor.node = result.node
        self._tally[actor.worker] = replace(self._tally[actor.worker], host=result.host)
        self._call(actor, "preparing", actor.handle.prepare.remote(actor.rank))

    def _next(self, actor: _Actor) -> None:
        """Give an actor without a call its next one, or let it go."""
        if actor.waiting:
            self._call(actor, "recording", actor.handle.record.remote(actor.shard, actor.waiting[0]))
        elif actor.written:
            self._call(actor, "committing", actor.handle.commit.remote())
        elif actor.bad_renderer or actor.episodes >= self._settings.recycle:
            actor.unit = None
            self._dismiss(actor)
            if self._units and not actor.bad_renderer:
                self.counts = replace(self.counts, recycled=self.counts.recycled + 1)
            self._hire()
        elif self._units:
            actor.unit = self._units.popleft()
            part = self._parts.get(actor.unit.stem, 0)
            self._parts[actor.unit.stem] = part + 1
            actor.shard, actor.waiting = f"{actor.unit.stem}-{part:02d}", deque(actor.unit.numbers)
            self._next(actor)
        else:
            self._dismiss(actor)  # there may be fewer cores than workers, and another actor that waits for this one's

    def _recorded(self, actor: _Actor, result: Recorded) -> None:
        actor.written[actor.waiting.popleft()] = result.frames
        actor.episodes += 1
        before = self._tally[actor.worker]
        self._tally[actor.worker] = replace(before, episodes=before.episodes + 1, frames=before.frames + result.frames)
        self.counts = replace(
            self.counts,
            retries=self.counts.retries + result.retries,
            renderers=self.counts.renderers + result.renderers,
        )

    def _committed(self, actor: _Actor, result: Committed) -> None:
        frames, actor.written, actor.unit = sum(actor.written.values()), {}, None
        counts = self.counts
        self.counts = replace(
            counts,
            episodes=counts.episodes + result.episodes,
            frames=counts.frames + frames,
            bytes=counts.bytes + result.bytes,
            actors=tuple(self._tally.values()),
        )
        self._on_commit(self.counts)

    def _failed(self, actor: _Actor, cause: Exception) -> None:
        """A call raised. Of an episode this is the second failure, in an environment made anew."""
        if isinstance(cause, NotShared):
            raise cause
        where = "" if self._local else f"node {self._tally[actor.worker].host}: "
        if actor.doing != "recording" or not isinstance(cause, EpisodeFailed):
            raise CollectionFailed(f"{where}{_reason(cause)}; run the same command again to go on") from cause
        number = actor.waiting[0]
        if isinstance(cause, BadFrame) and number not in self._bad_frames:
            # Twice in one process: the fault may be the process's. What it has is good; the rest is another's.
            self._bad_frames.add(number)
            assert actor.unit is not None
            self._units.append(Unit(actor.unit.stem, tuple(actor.waiting)))
            actor.waiting.clear()
            actor.bad_renderer = True
            self.counts = replace(self.counts, renderers=self.counts.renderers + 1, retries=self.counts.retries + 1)
        elif self._settings.skip_failed:
            self.skipped[actor.waiting.popleft()] = str(cause)
        else:
            raise CollectionFailed(
                f"{where}{cause} (and again when it was repeated); --actor.skip-failed goes on without such episodes"
            ) from cause
        self._next(actor)

    def _lost(self, actor: _Actor, reason: str) -> None:
        """Replace an actor that is dead. A shard that it committed without saying so counts."""
        if actor.doing == "committing" and shard_paths(self._out, actor.shard)[1].exists():
            size = sum(path.stat().st_size for path in shard_paths(self._out, actor.shard))
            self._committed(actor, Committed(len(actor.written), size))
        numbers = (*actor.written, *actor.waiting)
        if actor.unit is not None and numbers:
            self._units.append(Unit(actor.unit.stem, tuple(sorted(numbers))))
        actor.written.clear()
        self._dismiss(actor)
        self.counts = replace(self.counts, lost=self.counts.lost + 1)
        if self.counts.lost > self._settings.max_lost:
            raise CollectionFailed(
                f"{self.counts.lost} actors were lost, the last because {reason}; "
                f"run the same command again to go on, with --actor.max-lost to bear more"
            )
        self._hire()

    def _dismiss(self, actor: _Actor) -> None:
        import ray

        ray.kill(actor.handle)
        self._actors.remove(actor)
        self._free.append(actor.worker)

    def _patience(self) -> float | None:
        """Seconds until the first actor counts as stuck. One that has not started waits for a core, however long."""
        began = [actor.since for actor in self._busy.values() if actor.doing != "starting"]
        return max(0.0, min(began) + self._settings.stuck_seconds - time.monotonic()) if began else None

    def _replace_stuck(self) -> None:
        import ray

        limit = time.monotonic() - self._settings.stuck_seconds
        for call, actor in list(self._busy.items()):
            if actor.doing == "recording" and actor.since <= limit:
                actor.since = max(actor.since, time.monotonic() - self._idle_seconds(actor))
            if actor.doing != "starting" and actor.since <= limit:
                del self._busy[call]
                ray.kill(actor.handle)
                ray.wait([call], timeout=_DEATH_SECONDS)  # it must not commit what another records again
                limit_text = f"the {self._settings.stuck_seconds:g} s of --actor.stuck-seconds"
                self._lost(actor, f"{actor.doing} stood still for more than {limit_text}")

    def _idle_seconds(self, actor: _Actor) -> float:
        """How long ago an actor took a step; without end if it does not answer."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        answer = actor.handle.idle_seconds.options(concurrency_group=ASIDE).remote()
        try:
            return ray.get(answer, timeout=_ASIDE_SECONDS)
        except (GetTimeoutError, RayError):
            return float("inf")

    def _stop(self) -> None:
        """Let every actor commit what it has complete: recordings end at their next step, and the call after them
        commits."""
        import ray

        ready = [actor for actor in self._actors if actor.doing in ("recording", "committing")]
        for actor in ready:
            actor.handle.interrupt.options(concurrency_group=ASIDE).remote()
        calls = [actor.handle.commit.remote() for actor in ready]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=self._settings.stuck_seconds)


def _reason(cause: Exception) -> str:
    """What a call's failure was, in one line."""
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else f"cannot write: {cause.strerror}"
    lines = str(cause).strip().splitlines() or [""]
    return lines[0] if isinstance(cause, EpisodeFailed) else f"{type(cause).__name__}: {lines[0]}"


def _death(error: Exception) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    # Of an actor that could not start Ray shows the traceback, whose last line is the reason.
    return f"an actor died: {lines[-1] if 'creation task' in lines[0] else lines[0]}"
