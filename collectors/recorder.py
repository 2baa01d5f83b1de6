"""The actor of the fleet: an environment, its renderer and a writer, one process, one episode at a time.

It answers after every episode, which is the back-pressure: an actor never holds more than one episode in memory, and
the driver never more than its counts. Meanwhile a second thread (Ray's concurrency group `ASIDE`) says when the last
step was, so that a slow episode can be told from one that is stuck, and takes the order to stop, which a recording
obeys before its next step.

An episode that fails is tried once more in an environment made anew, because a renderer may go bad; physics that
diverges does so again, since an episode is a pure function of its seed, and the second failure is then reported.
"""

import importlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from collectors.config import CollectConfig
from collectors.envs import Env, make_env
from collectors.gl import choose_backend
from collectors.locks import check_shared, join_writers
from collectors.rollout import BadFrame, EpisodeFailed, Interrupted, record_episode
from shards.writer import ShardWriter

ASIDE = "aside"
"""The concurrency group of `idle_seconds` and `interrupt`, which answer while an episode is recorded."""


@dataclass(frozen=True, slots=True)
class Started:
    """Where an actor runs: Ray's id of the node, and the name of its host."""

    node: str
    host: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an actor says of an episode that it wrote: frames, tries after the first, renderers replaced."""

    frames: int
    retries: int
    renderers: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What an actor says of a shard that it committed; nothing when it had no episode to commit."""

    episodes: int
    bytes: int


class Recorder:
    """Records episodes into one shard after another. `word` is the one in the lock of the collector of `out`."""

    def __init__(self, config: CollectConfig, out: Path, word: str) -> None:
        self._config, self._out, self._word = config, out, word
        self._interrupted = threading.Event()
        self._stepped = time.monotonic()
        self._writing: IO[str] | None = None
        self._env: Env | None = None
        self._writer: ShardWriter | None = None

    def start(self) -> Started:
        """Answers once this process runs: there may be fewer cores than actors. NotShared where `out` is another."""
        import ray

        check_shared(self._out, self._word)
        self._writing = join_writers(self._out)
        return Started(ray.get_runtime_context().get_node_id(), socket.gethostname())

    def prepare(self, rank: int) -> None:
        """Load the simulator. `rank` counts the actors of this node from 0: by it EGL actors share out the GPUs.

        The GPU to render on is chosen here, where it is known which this process may see.
        """
        choose_backend(rank)
        importlib.import_module("simplejpeg")
        self._env = make_env(self._config.env)

    def record(self, shard: str, number: int) -> Recorded | None:
        """Record episode `number` and append it to `shard`; None if it was interrupted. EpisodeFailed when it fails
        twice."""
        assert self._env is not None
        retries = renderers = 0
        try:
            try:
                episode = record_episode(self._env, self._config, number, self._step)
            except EpisodeFailed as error:
                retries, renderers = 1, int(isinstance(error, BadFrame))
                self._env.close()
                self._env = make_env(self._config.env)
                episode = record_episode(self._env, self._config, number, self._step)
        except Interrupted:
            return None
        if self._writer is None:
            self._writer = ShardWriter(self._out, shard, self._config.encoding)
        try:
            self._writer.write(episode)
        except BaseException:  # the tar may end in half an episode
            self._writer.abort()
            self._writer = None
            raise
        return Recorded(len(episode.frames), retries, renderers)

    def commit(self) -> Committed:
        """Commit the episodes that are complete."""
        if self._writer is None:
            return Committed(0, 0)
        writer, self._writer = self._writer, None
        info = writer.commit()
        return Committed(info.episodes, info.tar_bytes + info.index_bytes)

    def idle_seconds(self) -> float:
        """Seconds since the last step."""
        return time.monotonic() - self._stepped

    def interrupt(self) -> None:
        """End the recording of this episode, and of all that follow."""
        self._interrupted.set()

    def _step(self) -> None:
        self._stepped = time.monotonic()
        if self._interrupted.is_set():
            raise Interrupted
