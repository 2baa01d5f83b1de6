"""A shard's index: an Arrow IPC file beside the tar, memory-mapped, one row an episode in tar order.

It says where every member is, so that any frame is one `pread`, and holds the low-dimensional arrays, so that probes
and statistics need no tar. Opening maps the file and checks that nothing it says reaches outside the tar; it reads the
offsets but not the arrays. The file descriptor is closed at once: processes share the pages, not handles.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.codec import frame_suffix, npy_bytes
from shards.members import BLOCK, MAX_EPISODE_BYTES
from shards.untrusted import read_json, record

FORMAT_VERSION = 1
_MAGIC = b"ARROW1\0\0"
_FAR = np.uint64(2**64 - 1)

_SCHEMA = pa.schema(
    [
        ("key", pa.utf8()),
        ("length", pa.uint32()),
        ("sha256", pa.binary(32)),
        ("info", pa.utf8()),
        ("frame_offset", pa.list_(pa.uint64())),
        ("frame_size", pa.list_(pa.uint32())),
        ("member_suffix", pa.list_(pa.utf8())),
        ("member_offset", pa.list_(pa.uint64())),
        ("member_size", pa.list_(pa.uint32())),
        ("action", pa.list_(pa.float32())),
        ("reward", pa.list_(pa.float32())),
        ("state", pa.list_(pa.float32())),
        ("pixel_sum", pa.list_(pa.uint64(), 3)),
        ("pixel_sum_squares", pa.list_(pa.uint64(), 3)),
    ]
)


@dataclass(frozen=True, slots=True)
class _Header:
    """What the schema's metadata says of the shard."""

    format_version: int
    encoding: str
    tar_bytes: int
    tar_sha256: str


@dataclass(frozen=True, slots=True)
class Row:
    """What the index says of one episode. `frames` and `members` are (suffix, offset, size) in tar order; `info` is the
    text of the json member; pixel sums are per channel over the frames as they were before encoding."""

    key: str
    sha256: bytes
    info: str
    frames: Sequence[tuple[str, int, int]]
    members: Sequence[tuple[str, int, int]]
    action: np.ndarray
    reward: np.ndarray
    state: np.ndarray
    pixel_sum: Sequence[int]
    pixel_sum_squares: Sequence[int]


def index_bytes(rows: Sequence[Row], encoding: str, tar_bytes: int, tar_sha256: str) -> bytes:
    """The index file of a shard whose frames are encoded as `encoding` (`codec.encoding_name`)."""
    header = _Header(FORMAT_VERSION, encoding, tar_bytes, tar_sha256)
    schema = _SCHEMA.with_metadata({"lewm": json.dumps(asdict(header), sort_keys=True)})
    columns = {
        "key": [row.key for row in rows],
        "length": [len(row.reward) for row in rows],
        "sha256": [row.sha256 for row in rows],
        "info": [row.info for row in rows],
        "frame_offset": [[offset for _, offset, _ in row.frames] for row in rows],
        "frame_size": [[size for _, _, size in row.frames] for row in rows],
        "member_suffix": [[suffix for suffix, _, _ in row.members] for row in rows],
        "member_offset": [[offset for _, offset, _ in row.members] for row in rows],
        "member_size": [[size for _, _, size in row.members] for row in rows],
        "action": [row.action.reshape(-1) for row in rows],
        "reward": [row.reward for row in rows],
        "state": [row.state.reshape(-1) for row in rows],
        "pixel_sum": [list(row.pixel_sum) for row in rows],
        "pixel_sum_squares": [list(row.pixel_sum_squares) for row in rows],
    }
    return ipc_bytes(pa.record_batch([pa.array(columns[f.name], f.type) for f in schema], schema=schema))


class ShardIndex:
    """The index of one shard. `path`, `encoding`, `tar_bytes`, `tar_sha256`, `keys`, `lengths` (steps, int64),
    `action_size`; methods take the row number i. Arrays are read-only views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._batch = open_ipc(path, _SCHEMA)
        try:
            header = record(_Header, read_json((self._batch.schema.metadata or {})[b"lewm"]))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: not a shard index: its lewm metadata is missing or malformed: {error}"
            ) from error
        if header.format_version != FORMAT_VERSION:
            raise ValueError(
                f"{path}: index format {header.format_version}; this program reads format {FORMAT_VERSION}"
            )
        self.encoding, self.tar_bytes, self.tar_sha256 = header.encoding, header.tar_bytes, header.tar_sha256
        self.lengths = _numbers(self._batch.column("length")).astype(np.int64)
        self._lists = {f.name: _List(self._batch.column(f.name)) for f in _SCHEMA if pa.types.is_list(f.type)}
        self.action_size = self._check()

    @classmethod
    def open(cls, path: Path | str) -> "ShardIndex":
        """Map an index; ValueError when it is damaged or reaches outside its tar."""
        return cls(Path(path))

    def __reduce__(self) -> tuple[type["ShardIndex"], tuple[Path]]:
        return ShardIndex, (self.path,)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tar(self) -> Path:
        """The tar that this index describes."""
        return self.path.with_suffix(".tar")

    @cached_property
    def keys(self) -> list[str]:
        return self._batch.column("key").to_pylist()

    def info(self, i: int) -> str:
        """Text of the json member."""
        return self._batch.column("info")[i].as_py()

    def sha256(self, i: int) -> bytes:
        """The episode's sha256 (`codec.sample_sha256`)."""
        return self._batch.column("sha256")[i].as_py()

    def frames(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Offset (T+1,) uint64 and size (T+1,) uint32 of each frame's bytes in the tar."""
        return self._lists["frame_offset"][i], self._lists["frame_size"][i]

    def members(self, i: int) -> list[tuple[str, int, int]]:
        """(suffix, offset, size) of every member of the episode, in tar order."""
        offset, size = self.frames(i)
        suffixes = [frame_suffix(t, self.encoding) for t in range(len(offset))]
        frames = zip(suffixes, offset.tolist(), size.tolist(), strict=True)
        others = zip(
            self._batch.column("member_suffix")[i].as_py(),
            self._lists["member_offset"][i].tolist(),
            self._lists["member_size"][i].tolist(),
            strict=True,
        )
        return [*frames, *others]

    def action(self, i: int) -> np.ndarray:
        """Actions (T, A) float32."""
        return self._lists["action"][i].reshape(-1, self.action_size)

    def reward(self, i: int) -> np.ndarray:
        """Rewards (T,) float32."""
        return self._lists["reward"][i]

    def state(self, i: int) -> np.ndarray:
        """Physical state (T+1, S) float32."""
        flat, rows = self._lists["state"][i], int(self.lengths[i]) + 1
        return flat.reshape(rows, len(flat) // rows)

    def foreign_members(self, i: int) -> dict[str, bytes]:
        """What the tar of a foreign sample lacks: its `json`, which always comes from here, and the arrays that have no
        member. Empty for a sample of our own."""
        if not read_json(self.info(i))["info"].get("sample"):
            return {}
        arrays = {"reward.npy": self.reward(i), "state.npy": self.state(i)}
        there = self._batch.column("member_suffix")[i].as_py()
        made = {suffix: npy_bytes(array) for suffix, array in arrays.items() if suffix not in there}
        return {**made, "json": self.info(i).encode()}

    def pixel_sums(self, i: int) -> tuple[list[int], list[int]]:
        """Exact sum and sum of squares of each channel over the episode's T+1 frames, before encoding."""
        return self._batch.column("pixel_sum")[i].as_py(), self._batch.column("pixel_sum_squares")[i].as_py()

    def _check(self) -> int:
        """The action size; ValueError when lists disagree in length or an offset reaches outside the tar."""
        lengths, counts = self.lengths, {name: values.counts for name, values in self._lists.items()}
        actions = counts["action"] // np.maximum(lengths, 1)
        agree = (
            len(lengths) > 0
            and lengths.min() > 0
            and actions.min() == actions.max() > 0
            and (counts["action"] == lengths * actions).all()
            and (counts["reward"] == lengths).all()
            and (counts["state"] % (lengths + 1) == 0).all()
            and all((counts[name] == lengths + 1).all() for name in ("frame_offset", "frame_size"))
            and all((counts[name] == counts["member_suffix"]).all() for name in ("member_offset", "member_size"))
        )
        if not agree:
            raise ValueError(f"{self.path}: the index is damaged: its columns disagree about the lengths of episodes")
        for kind in ("frame", "member"):
            offset, size = self._lists[f"{kind}_offset"].values, self._lists[f"{kind}_size"].values
            # sizes are below 2^32 and tars below 2^63, so that nothing wraps once offset <= tar_bytes
            outside = (offset < BLOCK) | (offset > self.tar_bytes) | (offset + size > self.tar_bytes)
            if outside.any():
                at = int(offset[outside.argmax()])
                raise ValueError(f"{self.path}: a {kind} at byte {at} is outside the tar of {self.tar_bytes} bytes")
        self._check_spans()
        return int(actions[0])

    def _check_spans(self) -> None:
        """ValueError where an episode's members lie too far apart to be read at once, or among another's."""
        begin, end = np.full(len(self), _FAR), np.zeros(len(self), np.uint64)
        for kind in ("frame", "member"):
            offset, size = self._lists[f"{kind}_offset"], self._lists[f"{kind}_size"]
            begin = np.minimum(begin, offset.reduced(np.minimum, offset.values, _FAR))
            end = np.maximum(end, offset.reduced(np.maximum, offset.values + size.values, np.uint64(0)))
        for name, wrong in (
            ("spans too many bytes", end - begin > MAX_EPISODE_BYTES),
            ("begins before the one before it ends", np.append(False, begin[1:] < end[:-1])),
        ):
            if wrong.any():
                raise ValueError(f"{self.path}: episode {self.keys[int(wrong.argmax())]} {name}: the index is damaged")


class _List:
    """A list column as numpy: the flat values, and where each row's begin."""

    def __init__(self, column: pa.Array) -> None:
        self._begin = _numbers(column.offsets)
        values = column.values
        self.values = np.empty(0) if pa.types.is_string(values.type) else _numbers(values)
        self.counts = np.diff(self._begin).astype(np.int64)

    def reduced(self, ufunc: np.ufunc, values: np.ndarray, empty: np.uint64) -> np.ndarray:
        """A reduction (rows,) of a flat array that goes with the list's values; `empty` for a row without any."""
        result = np.full(len(self.counts), empty)
        rows = np.flatnonzero(self.counts)
        if len(rows):
            result[rows] = ufunc.reduceat(values, self._begin[rows])
        return result

    def __getitem__(self, i: int) -> np.ndarray:
        if i < 0:
            raise IndexError(f"row {i}: rows count from 0")
        return self.values[self._begin[i] : self._begin[i + 1]]


def _numbers(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=True)


def ipc_bytes(batch: pa.RecordBatch) -> bytes:
    """One record batch as an Arrow IPC file, uncompressed, so that it can be mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def open_ipc(path: Path, schema: pa.Schema) -> pa.RecordBatch:
    """Map the one record batch of an Arrow IPC file and validate it; ValueError when it is not of this schema, is
    compressed, has nulls, or is damaged. The mapping outlives the descriptor.

    The messages are read in the order of the file and its footer is not: the batch that is checked is the batch that is
    read. A compressed batch is refused before anything is expanded, so that opening takes no memory of its own.
    """
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(len(_MAGIC)) != _MAGIC:
                raise ValueError(f"{path}: the file is damaged: it is not an Arrow IPC file")
            found = pa.ipc.read_schema(pa.ipc.read_message(source))
            message = pa.ipc.read_message(source)
            if not found.equals(schema, check_metadata=False) or message.type != "record batch" or not _ends(source):
                raise ValueError(f"{path}: not written by this format: another schema, or not one record batch")
            if _is_compressed(memoryview(message.metadata)):
                raise ValueError(f"{path}: not written by this format: its record batch is compressed")
            batch = pa.ipc.read_record_batch(message, found)
        batch.validate(full=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: the file is missing") from error
    except (pa.ArrowException, OSError, EOFError, struct.error, MemoryError) as error:
        raise ValueError(f"{path}: the file is damaged: {error}") from error
    values = [column.values for column in batch.columns if isinstance(column, (pa.ListArray, pa.FixedSizeListArray))]
    if any(array.null_count for array in [*batch.columns, *values]):
        raise ValueError(f"{path}: the file is damaged: it has nulls")
    return batch


def _ends(source: pa.NativeFile) -> bool:
    """Whether the end-of-stream mark follows, which stands before the footer of a file."""
    return source.read(8) == b"\xff\xff\xff\xff\0\0\0\0"


def _is_compressed(message: memoryview) -> bool:
    """Whether a record batch's message names a compression; read from its flatbuffer, for pyarrow does not say it."""
    batch = _table_field(message, struct.unpack_from("<I", message, 0)[0], 2)  # Message.header
    if batch is None:
        raise ValueError("the message has no header")
    return _table_field(message, batch + struct.unpack_from("<I", message, batch)[0], 3) is not None  # .compression


def _table_field(data: memoryview, table: int, field: int) -> int | None:
    """Where a field of a flatbuffer table is, or None where the table has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0 or table < 0:
        raise struct.error("a flatbuffer table is outside its message")
    entry = 4 + 2 * field
    if entry + 2 > struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else None
