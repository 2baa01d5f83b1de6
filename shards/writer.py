"""Write a shard: episodes into a tar, then its index, committed together or not at all.

The commit protocol. The tar grows under a temporary name, hashed as it is written. `commit` fsyncs it; writes the
index, which holds the tar's size and sha256, under a temporary name and fsyncs it; renames the tar; renames the index.
The rename of the index is the commit. A process killed before it leaves temporary files and perhaps a tar without an
index, which `atomic.remove_leftovers` removes; killed after it, a complete shard. Nothing is ever overwritten but such
a leftover. Only one process may write a given name; different names never meet.

Tar headers have fixed times and owners: equal episodes in equal order give equal bytes.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from shards import atomic
from shards.codec import Encoding, encode, encoding_name, sample_sha256
from shards.episode import Episode
from shards.index import Row, index_bytes
from shards.statistics import pixel_sums
from shards.tar import TarWriter

_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A committed shard as the manifest names it: sizes in bytes, sha256 in hex."""

    name: str
    tar_bytes: int
    tar_sha256: str
    index_bytes: int
    index_sha256: str
    episodes: int
    steps: int


def check_shard_name(name: str) -> str:
    """A shard's name is letters, digits, `_` and `-`: it cannot leave the dataset's directory."""
    if not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"shard name {name!r}: use letters, digits, '_' and '-'")
    return name


def shard_paths(directory: Path, name: str) -> tuple[Path, Path]:
    """(tar, index) of a shard in a dataset."""
    return directory / "shards" / f"{name}.tar", directory / "shards" / f"{name}.arrow"


class ShardWriter:
    """Writes one shard of the dataset in `directory`; as a context manager, commits unless an exception leaves it."""

    def __init__(self, directory: Path, name: str, encoding: Encoding = "jpeg") -> None:
        self.name = check_shard_name(name)
        self.encoding: Encoding = encoding
        self._tar, self._index = shard_paths(Path(directory), name)
        if self._index.exists():
            raise ValueError(f"{self._index}: shard {name} is already committed; choose another name")
        self._tar.parent.mkdir(parents=True, exist_ok=True)
        self._tar_tmp = atomic.temporary(self._tar)
        self._index_tmp = atomic.temporary(self._index)
        self._rows: list[Row] = []
        self._encoding_name = ""
        self._file = _HashingFile(self._tar_tmp)
        self._writer = TarWriter(self._file)

    @property
    def episodes(self) -> int:
        """Episodes written so far."""
        return len(self._rows)

    def write(self, episode: Episode) -> None:
        """Append an episode; ValueError when it cannot be stored or its key or frame size does not fit this shard."""
        key, name = episode.info.key, encoding_name(self.encoding, episode.info.size)
        if any(row.key == key for row in self._rows):
            raise ValueError(f"shard {self.name} already has episode {key}")
        if self._rows and name != self._encoding_name:
            raise ValueError(f"episode {key} would be {name}, but shard {self.name} has {self._encoding_name}")
        self._encoding_name = name
        members = encode(episode, self.encoding)
        located = [(suffix, self._writer.write(f"{key}.{suffix}", data), len(data)) for suffix, data in members]
        frames = len(episode.frames)
        sums, squares = pixel_sums(episode.frames)
        self._rows.append(
            Row(
                key=key,
                sha256=sample_sha256(members),
                info=dict(members)["json"].decode(),
                frames=located[:frames],
                members=located[frames:],
                action=episode.action.copy(),
                reward=episode.reward.copy(),
                state=episode.state.copy(),
                pixel_sum=sums,
                pixel_sum_squares=squares,
            )
        )

    def commit(self) -> ShardInfo:
        """Make the shard part of the dataset. ValueError when it has no episode, or its name is taken by now."""
        try:
            if not self._rows:
                raise ValueError(f"shard {self.name} has no episode to commit")
            self._writer.close()
            tar_bytes, tar_sha256 = self._file.finish()
            index = index_bytes(self._rows, self._encoding_name, tar_bytes, tar_sha256)
            atomic.write_durably(self._index_tmp, index)
            if self._index.exists():
                raise ValueError(f"{self._index}: another process committed shard {self.name}")
        except BaseException:
            self.abort()
            raise
        # From here on an error leaves the temporary index, by which the next run knows a tar without an index as ours.
        atomic.publish(self._tar_tmp, self._tar)
        atomic.publish(self._index_tmp, self._index)
        return ShardInfo(
            name=self.name,
            tar_bytes=tar_bytes,
            tar_sha256=tar_sha256,
            index_bytes=len(index),
            index_sha256=hashlib.sha256(index).hexdigest(),
            episodes=len(self._rows),
            steps=sum(len(row.reward) for row in self._rows),
        )

    def abort(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._tar_tmp.unlink(missing_ok=True)
        self._index_tmp.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


class _HashingFile:
    """A new file that hashes and counts what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", buffering=1 << 20)  # noqa: SIM115 (closed by `close`)
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self._bytes += len(data)
        return self._file.write(data)

    def finish(self) -> tuple[int, str]:
        """Make the bytes durable; returns their number and sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._bytes, self._sha256.hexdigest()

    def close(self) -> None:
        self._file.close()
