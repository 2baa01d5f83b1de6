"""A dataset, open for reading: a directory, or the URI of one in a bucket (`mirror`).

Opening reads the manifest and maps `episodes.arrow`, whatever the number of shards; a shard's index is mapped, and
checked against the manifest, when one of its episodes is first asked for. Episodes are numbered in canonical order, by
key. A Dataset pickles as its location: a worker process opens it again, and refuses it if it has changed meanwhile.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from shards.atomic import file_sha256
from shards.codec import decode, parse_metadata, sample_sha256
from shards.episode import Episode, EpisodeInfo, StateColumn
from shards.index import ShardIndex, open_ipc
from shards.manifest import EPISODES, EPISODES_SCHEMA, Manifest, digest_of, load
from shards.mirror import open_file, open_mirror, origin_of, present
from shards.remote import is_remote
from shards.split import SPLITS, Split
from shards.writer import shard_paths


@dataclass(frozen=True, slots=True)
class FrameMembers:
    """Where an episode's frames are: `path` of the tar, `offset` (T+1,) uint64 and `size` (T+1,) uint32 in bytes."""

    path: Path
    offset: np.ndarray
    size: np.ndarray


class Dataset:
    """A dataset's episodes, in canonical order. `lengths` is (episodes,) int64, in steps.

    `location` is what it was opened by, an absolute path or a URI; `path` is where its files are on this machine.
    """

    def __init__(self, path: Path, manifest: Manifest, location: str) -> None:
        self.path, self.manifest, self.location = path, manifest, location
        file = path / EPISODES
        if not file.exists() or file_sha256(file) != manifest.episodes_sha256:
            raise ValueError(f"{file} is missing or does not belong to {path}/manifest.json; run `lewm collect` again")
        batch = open_ipc(file, EPISODES_SCHEMA)
        self.keys = Keys(batch.column("key"))
        self._shard, self._row, lengths, self._split = (
            batch.column(name).to_numpy() for name in ("shard", "row", "length", "split")
        )
        if len(batch) != manifest.n_episodes or (self._shard >= len(manifest.shards)).any() or (self._split > 2).any():
            raise ValueError(f"{file} is malformed: it names shards or splits that do not exist")
        self.lengths: np.ndarray = lengths.astype(np.int64)
        self._indexes: dict[int, ShardIndex] = {}

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Open the dataset in a directory, or at an s3:// or gs:// URI; ValueError when it is none, or its manifest is
        damaged."""
        if is_remote(path):
            mirror = open_mirror(str(path))
            return cls(mirror, load(mirror), str(path))
        path = Path(path).absolute()
        return cls(path, load(path), str(path))

    def __reduce__(self) -> "tuple[Callable[[str, str], Dataset], tuple[str, str]]":
        return _reopen, (self.location, self.digest)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Dataset({self.location!r}, {self.environment}, {len(self)} episodes, digest {self.digest[:12]})"

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def environment(self) -> str:
        return self.manifest.common.environment

    @property
    def columns(self) -> tuple[StateColumn, ...]:
        return self.manifest.common.columns

    @property
    def action_size(self) -> int:
        return self.manifest.common.action_size

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""
        return self.manifest.common.size

    @cached_property
    def splits(self) -> np.ndarray:
        """Each episode's split, (episodes,) str."""
        return np.array(SPLITS)[self._split]

    @property
    def shard_numbers(self) -> np.ndarray:
        """Which of the manifest's shards holds each episode, (episodes,) unsigned."""
        return self._shard

    def indices(self, split: Split | None = None) -> np.ndarray:
        """Numbers of the episodes of a split, or of all, ascending, int64."""
        if split is None:
            return np.arange(len(self))
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        return np.flatnonzero(self._split == SPLITS.index(split))

    def info(self, i: int) -> EpisodeInfo:
        """Where episode i comes from."""
        index, row = self._find(i)
        return parse_metadata(self.keys[i], index.info(row)).info

    def action(self, i: int) -> np.ndarray:
        """Actions (T, A) float32, a read-only view of the index."""
        index, row = self._find(i)
        return index.action(row)

    def reward(self, i: int) -> np.ndarray:
        """Rewards (T,) float32, a read-only view of the index."""
        index, row = self._find(i)
        return index.reward(row)

    def state(self, i: int) -> np.ndarray:
        """Physical state (T+1, S) float32, a read-only view of the index."""
        index, row = self._find(i)
        return index.state(row)

    def frame_members(self, i: int) -> FrameMembers:
        """Where the T+1 frames of episode i are; `codec.decode_frame` reads their bytes."""
        index, row = self._find(i)
        return FrameMembers(index.tar, *index.frames(row))

    def members(self, i: int) -> list[tuple[str, memoryview]]:
        """The members (suffix, bytes) of episode i in tar order, with one read, unchecked; ValueError when the tar is
        cut off, OSError when it cannot be read."""
        return read_members(*self._find(i))

    def check_members(self, i: int, members: Sequence[tuple[str, memoryview]]) -> None:
        """ValueError when the bytes of episode i do not have its sha256."""
        index, row = self._find(i)
        if sample_sha256(members) != index.sha256(row):
            raise ValueError("its bytes do not have its sha256")

    def check_digest(self) -> None:
        """ValueError when the episodes' checksums do not have the dataset's digest. Reads every index."""
        indexed = (self._find(i) for i in range(len(self)))
        digest = digest_of((key, index.sha256(row)) for key, (index, row) in zip(self.keys[:], indexed, strict=True))
        if digest != self.digest:
            raise ValueError(
                f"the manifest of {self.location} claims digest {self.digest[:12]}, its episodes have {digest[:12]}; "
                f"see `lewm shards verify`"
            )

    def read_episode(self, i: int) -> Episode:
        """Episode i whole, with one read of the tar; ValueError naming shard and episode when it is damaged."""
        index, row = self._find(i)
        try:
            members = self.members(i)
            self.check_members(i, members)
            return decode(self.keys[i], {**dict(members), **index.foreign_members(row)})
        except (ValueError, OSError) as error:
            raise ValueError(f"{origin_of(index.tar)}: episode {self.keys[i]} is damaged: {error}") from error

    def _find(self, i: int) -> tuple[ShardIndex, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}")
        shard = int(self._shard[i])
        if shard not in self._indexes:
            self._indexes[shard] = self._open_index(shard)
        index, row = self._indexes[shard], int(self._row[i])
        if row >= len(index) or index.keys[row] != self.keys[i] or index.lengths[row] != self.lengths[i]:
            raise ValueError(
                f"{self.location}: {EPISODES} names episode {self.keys[i]} as row {row} of shard "
                f"{self.manifest.shards[shard].name}, whose index has another there; see `lewm shards verify`"
            )
        return index, row

    def _open_index(self, shard: int) -> ShardIndex:
        info = self.manifest.shards[shard]
        path = present(shard_paths(self.path, info.name)[1])
        if not path.exists() or file_sha256(path) != info.index_sha256:
            raise ValueError(
                f"{origin_of(path)} is missing or is not the index that the manifest names; see `lewm shards verify`"
            )
        return ShardIndex.open(path)


def read_members(index: ShardIndex, row: int) -> list[tuple[str, memoryview]]:
    """The members (suffix, bytes) of an episode, in tar order; ValueError when the tar is cut off."""
    located = index.members(row)
    begin = min(offset for _, offset, _ in located)
    end = max(offset + size for _, offset, size in located)
    data = open_file(index.tar).read(begin, end - begin)
    if len(data) != end - begin:
        raise ValueError(f"the tar is cut off: {len(data)} of {end - begin} bytes at byte {begin}")
    return [(suffix, data[offset - begin : offset - begin + size]) for suffix, offset, size in located]


class Keys(Sequence[str]):
    """The sorted keys of a dataset, a sequence of str over the mapped file."""

    def __init__(self, column: pa.StringArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return self._column[i].to_pylist()
        return self._column[i].as_py()

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """Number of the episode with this key, by bisection; ValueError when there is none."""
        i = bisect_left(self, value, start, len(self) if stop is None else stop)
        if i == len(self) or self[i] != value:
            raise ValueError(f"no episode {value!r}")
        return i

    def __contains__(self, value: object) -> bool:
        i = bisect_left(self, str(value))
        return i < len(self) and self[i] == value


def _reopen(location: str, digest: str) -> Dataset:
    dataset = Dataset.open(location)
    if dataset.digest != digest:
        raise ValueError(
            f"{location} changed while it was in use: digest {dataset.digest[:12]} instead of {digest[:12]}"
        )
    return dataset
