"""Import a LeWM dataset as stable-worldmodel writes it: one HDF5 file of flat columns with a row a step.

`ep_len` and `ep_offset` cut the rows into episodes. Row t of an episode holds what was seen at t and the action then
taken: an episode of n rows has n frames and n-1 steps. The last row's action leads nowhere (it is written as NaN)
and is dropped; a reward stands in the row that it was received in, so that reward[t] is row t+1, and the
first row's is dropped. Without a `reward` column rewards are zero. State columns are taken as they are, by name.

Episodes are read one at a time, and go into shards of a fixed number of episodes: a killed import goes on after the
last whole shard. The file is untrusted: columns in other files are refused, and sizes are checked before reading. Needs
h5py and hdf5plugin: `pip install lewm[hdf5]`. Most of the cost is JPEG encoding and, where the file is compressed,
decompressing.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import atomic
from shards.codec import MAX_SIZE, Encoding, canonical_json
from shards.episode import Episode, EpisodeInfo, Observability, StateColumn
from shards.foreign import ForeignConfig, state_columns
from shards.index import ShardIndex
from shards.manifest import Manifest, assemble, committed
from shards.members import MAX_EPISODE_BYTES, MAX_STEPS
from shards.writer import ShardWriter, shard_paths

MAX_EPISODES = 10**7
_MAX_CHUNK = 256 << 20
_DAMAGE = (OSError, KeyError, RuntimeError)
"""What h5py raises where a file's own tables are wrong."""


@dataclass(frozen=True, slots=True)
class ImportConfig:
    """What the file does not say. `states` names the columns to take as physical state; `observable` is said of all of
    them."""

    environment: str
    dt: float
    action_repeat: int = 1
    camera: str = "unknown"
    states: tuple[str, ...] = ("state", "proprio")
    observable: Observability = "hidden"
    encoding: Encoding = "jpeg"
    shard_episodes: int = 50

    def __post_init__(self) -> None:
        ForeignConfig(self.environment, self.dt, self.action_repeat)
        if self.shard_episodes < 1:
            raise ValueError(f"{self.shard_episodes} episodes a shard; at least 1 is needed")


def import_hdf5(
    source: Path, out: Path, config: ImportConfig, on_episode: Callable[[int, int], None] = lambda done, total: None
) -> Manifest:
    """Write the episodes of an HDF5 file as the dataset `out`; `on_episode` is told (done, total).

    ValueError when the file has another layout, an episode has a number that is not finite, or `out` holds other
    episodes. The same call goes on where a killed one stopped.
    """
    with _Source(source, config) as episodes:
        total = len(episodes)
        (out / "shards").mkdir(parents=True, exist_ok=True)
        names = [f"import-{begin:08d}" for begin in range(0, total, config.shard_episodes)]
        if odd := sorted(set(committed(out)) - set(names)):
            raise ValueError(f"{out} holds shard {odd[0]}, which this import does not write; choose another directory")
        atomic.remove_leftovers(out)
        for name, begin in zip(names, range(0, total, config.shard_episodes), strict=True):
            numbers = range(begin, min(begin + config.shard_episodes, total))
            path = shard_paths(out, name)[1]
            if path.exists():
                if ShardIndex.open(path).keys != [episodes.info(number).key for number in numbers]:
                    raise ValueError(f"{path} is of another import (file or options); choose another directory")
                on_episode(numbers.stop, total)
                continue
            with ShardWriter(out, name, config.encoding) as writer:
                for number in numbers:
                    writer.write(episodes.read(number))
                    on_episode(number + 1, total)
    return assemble(out)


class _Source:
    """The episodes of an HDF5 file, checked when it is opened and read one by one."""

    def __init__(self, path: Path, config: ImportConfig) -> None:
        try:
            import h5py
            import hdf5plugin  # noqa: F401 (registers Blosc and the other filters)
        except ImportError as error:
            raise ValueError(f"importing HDF5 needs {error.name}: pip install 'lewm[hdf5]'") from error
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        self._h5py, self._path, self._config = h5py, path, config
        try:
            self._file: Any = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path}: not an HDF5 file, or cut off: {error}") from error
        try:
            self._check()
        except _DAMAGE as error:
            self._file.close()
            raise self._error(f"the file is damaged: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._lengths)

    def info(self, number: int) -> EpisodeInfo:
        """What is known of an episode."""
        config = self._config
        return EpisodeInfo(
            environment=config.environment,
            config8=self._config8,
            seed=0,
            number=number,
            episode_seed=0,
            policy={"kind": "imported"},
            camera=config.camera,
            size=self._size,
            quality="unknown",
            action_repeat=config.action_repeat,
            dt=config.dt,
            columns=self._columns,
        )

    def read(self, number: int) -> Episode:
        """Episode `number`, with its rows as the module says."""
        begin, rows = int(self._offsets[number]), int(self._lengths[number])
        try:
            state = [self._rows(name, begin, rows).reshape(rows, -1) for name in self._states]
            reward = self._rows("reward", begin, rows).reshape(rows) if self._has_reward else np.zeros(rows)
            action = self._rows("action", begin, rows).reshape(rows, -1)
            frames = self._file["pixels"][begin : begin + rows]
        except _DAMAGE as error:
            raise self._error(f"episode {number} cannot be read: {error}") from error
        try:
            return Episode(
                info=self.info(number),
                frames=frames,
                action=_float32(action[:-1]),
                reward=_float32(reward[1:]),
                state=_float32(np.concatenate(state, axis=1) if state else np.zeros((rows, 0))),
            )
        except ValueError as error:
            raise ValueError(f"{self._path}: episode {number} (rows {begin} to {begin + rows - 1}): {error}") from error

    def _rows(self, name: str, begin: int, rows: int) -> np.ndarray:
        return self._file[name][begin : begin + rows]

    def _check(self) -> None:
        """Columns, shapes, types and the cut into episodes; ValueError for anything that read() does not expect."""
        pixels, action = self._column("pixels"), self._column("action")
        total = pixels.shape[0] if pixels.shape else 0
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
            raise self._error(f"pixels is {_shape(pixels)}; uint8[steps, height, width, 3] is needed")
        self._size = int(pixels.shape[1])
        if pixels.shape[2] != self._size or not 1 <= self._size <= MAX_SIZE:
            raise self._error(
                f"frames are {pixels.shape[1]}x{pixels.shape[2]}; they must be square, at most {MAX_SIZE}"
            )
        if action.ndim not in (1, 2):
            raise self._error(f"action is {_shape(action)}; [steps, actions] is needed")
        self._has_reward = "reward" in self._file
        self._states = tuple(name for name in self._config.states if name in self._file)
        if missing := sorted(set(self._config.states) - set(self._states) - set(ImportConfig("x", 1).states)):
            raise self._error(f"there is no column {missing[0]!r}; there are {', '.join(sorted(self._file))}")
        columns: list[StateColumn] = []
        self._row_bytes = 3 * self._size**2
        for name in (*self._states, "action", *(["reward"] if self._has_reward else [])):
            column = self._column(name)
            if not column.shape or column.shape[0] != total or column.dtype.kind not in "fiub":
                raise self._error(f"{name} is {_shape(column)}; {total} rows of numbers are needed, as pixels has")
            width = int(np.prod(column.shape[1:], dtype=np.int64))
            if not 0 < width <= 65_536 or (name == "reward" and width != 1):
                raise self._error(f"{name} has {width} numbers a step")
            self._row_bytes += width * column.dtype.itemsize
            if name in self._states:
                columns += state_columns(name, width, self._config.observable)
        self._columns = tuple(columns)
        self._lengths, self._offsets = self._cuts("ep_len"), self._cuts("ep_offset")
        self._check_cuts(total)
        self._config8 = self._fingerprint()

    def _column(self, name: str) -> Any:
        """A column that lies in this file; ValueError for any other."""
        link = self._file.get(name, getlink=True)
        if link is None:
            raise self._error(f"there is no column {name!r}; there are {', '.join(sorted(self._file)) or 'none'}")
        column: Any = self._file[name] if isinstance(link, self._h5py.HardLink) else None
        if not isinstance(column, self._h5py.Dataset) or column.is_virtual or column.external:
            raise self._error(f"{name} is no column of this file: links and parts in other files are not followed")
        chunk = int(np.prod(column.chunks or (1,), dtype=np.float64)) * column.dtype.itemsize
        if chunk > _MAX_CHUNK:
            raise self._error(f"{name} has chunks of {chunk} bytes, over the limit of {_MAX_CHUNK}")
        return column

    def _cuts(self, name: str) -> np.ndarray:
        column = self._column(name)
        if column.ndim != 1 or column.dtype.kind not in "iu" or not 1 <= column.shape[0] <= MAX_EPISODES:
            raise self._error(f"{name} is {_shape(column)}; at least one episode, as integers, is needed")
        return column[:].astype(np.int64)

    def _check_cuts(self, total: int) -> None:
        lengths, offsets = self._lengths, self._offsets
        if len(lengths) != len(offsets):
            raise self._error(f"ep_len has {len(lengths)} episodes, ep_offset {len(offsets)}")
        most = min(MAX_STEPS + 1, MAX_EPISODE_BYTES // self._row_bytes)
        bad = (lengths < 2) | (lengths > most) | (offsets < 0) | (offsets > total - lengths)
        if bad.any():
            at = int(bad.argmax())
            raise self._error(
                f"episode {at} has {lengths[at]} rows from row {offsets[at]}; possible are 2 to {most} of {total} rows"
            )

    def _fingerprint(self) -> str:
        """The `config8` of the keys: the options, the cuts, and the first and last actions tell imports apart."""
        record = {key: value for key, value in asdict(self._config).items() if key != "shard_episodes"}
        digest = hashlib.sha256(canonical_json(record))
        digest.update(self._lengths.tobytes() + self._offsets.tobytes())
        for number in (0, len(self) - 1):
            digest.update(self._rows("action", int(self._offsets[number]), int(self._lengths[number])).tobytes())
        return digest.hexdigest()[:8]

    def _error(self, text: str) -> ValueError:
        return ValueError(f"{self._path}: {text}")


def _shape(column: Any) -> str:
    return f"{column.dtype}{list(column.shape or ())}"


def _float32(values: np.ndarray) -> np.ndarray:
    """As float32; a value that float32 does not hold becomes infinite, which an episode refuses."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)
