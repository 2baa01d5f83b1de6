"""The actor of the fleet: an environment, its renderer and a writer, one process, one episode at a time.

It answers after every episode, which is its heartbeat and the back-pressure: an actor never holds more than one episode
in memory, and the driver never more than its counts. An episode that fails is tried once more in an environment made
anew, because a renderer may go bad; physics that diverges does so again, since an episode is a pure function of its
seed, and the second failure is then reported.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path

from collectors.config import CollectConfig
from collectors.envs import Env, make_env
from collectors.gl import choose_backend
from collectors.locks import join_writers
from collectors.rollout import BadFrame, EpisodeFailed, record_episode
from shards.writer import ShardWriter


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
    """Records episodes into one shard after another. `worker` is its number, by which EGL actors share out the GPUs."""

    def __init__(self, config: CollectConfig, out: Path, worker: int) -> None:
        self._writing = join_writers(out)
        self._config, self._out, self._worker = config, out, worker
        self._env: Env | None = None
        self._writer: ShardWriter | None = None

    def start(self) -> int:
        """Answers once this process runs: there may be fewer cores than actors. Its process id."""
        return os.getpid()

    def prepare(self) -> None:
        """Load the simulator. The GPU to render on is chosen here, where it is known which this process may see."""
        choose_backend(self._worker)
        importlib.import_module("simplejpeg")
        self._env = make_env(self._config.env)

    def record(self, shard: str, number: int) -> Recorded:
        """Record episode `number` and append it to `shard`. EpisodeFailed when it fails twice."""
        assert self._env is not None
        retries = renderers = 0
        try:
            episode = record_episode(self._env, self._config, number)
        except EpisodeFailed as error:
            retries, renderers = 1, int(isinstance(error, BadFrame))
            self._env.close()
            self._env = make_env(self._config.env)
            episode = record_episode(self._env, self._config, number)
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
