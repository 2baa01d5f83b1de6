"""Index a foreign WebDataset tar, in place: the tar is only read.

A dataset needs an index beside each tar. This one is made by scanning: one sample is one episode, `<key>.00000.jpg`
(or `.npy`) to `<key>.<T>.jpg` its T+1 square RGB frames, `<key>.action.npy` its actions (T, A), and optionally
`<key>.reward.npy` (T,) and `<key>.state.npy` (T+1, S). What the tar does not say (environment, camera, seconds a
decision) is told by `ForeignConfig`. The sample's key, whatever it is, fixes the split. A json member that another
program wrote is kept and hashed but not read; a tar of our own that lost its index gets it back as it was, except for
the pixel sums, which are then those of the decoded frames. It costs one read and one decoding of every frame.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg

from shards.atomic import file_sha256, write_atomically
from shards.codec import (
    FOREIGN_JPEG,
    MAX_SIZE,
    Metadata,
    canonical_json,
    check_decoded_size,
    decode_frame,
    frame_suffix,
    info_record,
    parse_metadata,
    read_npy,
    sample_sha256,
)
from shards.episode import Episode, EpisodeInfo, Observability, StateColumn
from shards.index import Row, index_bytes
from shards.members import MAX_EPISODE_BYTES, MAX_KEY, MAX_STEPS, Member, scan
from shards.statistics import pixel_sums
from shards.writer import check_shard_name

_ARRAYS = ("action.npy", "reward.npy", "state.npy")


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """What a foreign tar does not say of itself. `dt` is seconds a decision, `action_repeat` the simulator's control
    steps in one; `observable` is said of every state column."""

    environment: str
    dt: float
    action_repeat: int = 1
    camera: str = "unknown"
    observable: Observability = "hidden"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.dt) and self.dt > 0 and self.action_repeat >= 1):
            raise ValueError(f"dt {self.dt} and action repeat {self.action_repeat}: both are positive")


def unindexed(directory: Path) -> list[Path]:
    """The tars of a dataset that have no index, by name."""
    return sorted(tar for tar in (directory / "shards").glob("*.tar") if not tar.with_suffix(".arrow").exists())


def index_tar(tar: Path, config: ForeignConfig, on_episode: Callable[[int], None] = lambda _: None) -> int:
    """Write the index of a tar beside it; returns the number of episodes. `on_episode` is told how many are read.

    ValueError names the sample and the member that is missing, unknown or malformed; nothing is written then.
    """
    check_shard_name(tar.stem)
    rows: list[Row] = []
    encodings: set[str] = set()
    seen: set[str] = set()
    with open(tar, "rb") as file:
        for number, (key, members) in enumerate(groupby(scan(tar), key=lambda member: member.key)):
            try:
                if key in seen:
                    raise ValueError("its members do not stand together")
                seen.add(key)
                row, encoding = _row(file, key, sorted(members, key=_order), number, config)
            except ValueError as error:
                raise ValueError(f"{tar}: sample {key}: {error}") from error
            rows.append(row)
            encodings.add(encoding)
            if len(encodings) > 1:
                raise ValueError(f"{tar}: sample {key}: frames of two encodings: {', '.join(sorted(encodings))}")
            on_episode(len(rows))
    if not rows:
        raise ValueError(f"{tar}: the tar has no sample")
    index = index_bytes(rows, encodings.pop(), tar.stat().st_size, file_sha256(tar))
    write_atomically(tar.with_suffix(".arrow"), index)
    return len(rows)


def _order(member: Member) -> tuple[bool, int]:
    return not _is_frame(member.suffix), member.offset


def _is_frame(suffix: str) -> bool:
    stem, _, kind = suffix.partition(".")
    return len(stem) == 5 and stem.isascii() and stem.isdigit() and kind in ("jpg", "npy")


def _row(file: BinaryIO, key: str, members: list[Member], number: int, config: ForeignConfig) -> tuple[Row, str]:
    """The index row of a sample, and how its frames are encoded."""
    frames = [member for member in members if _is_frame(member.suffix)]
    others = [member for member in members if not _is_frame(member.suffix)]
    located = [(m.suffix, m.offset, m.size) for m in frames], [(m.suffix, m.offset, m.size) for m in others]
    if len(key) > MAX_KEY:
        raise ValueError(f"the key has {len(key)} characters; at most {MAX_KEY} are possible")
    if not 2 <= len(frames) <= MAX_STEPS + 1:
        raise ValueError(f"{len(frames)} frames named 00000.jpg, 00001.jpg, ...; 2 to {MAX_STEPS + 1} are needed")
    suffixes = [m.suffix for m in others]
    if odd := [suffix for suffix in suffixes if suffix not in (*_ARRAYS, "json") or suffixes.count(suffix) > 1]:
        raise ValueError(f"member {odd[0]} is unknown or there twice; known are {', '.join(_ARRAYS)}, json")
    raw = frames[0].suffix.endswith("npy")
    for step, member in enumerate(frames):
        if member.suffix != (wanted := frame_suffix(step, "raw" if raw else FOREIGN_JPEG)):
            raise ValueError(f"member {member.suffix} stands where {wanted} should")
    data = {member.suffix: _read(file, member) for member in others}
    if "action.npy" not in data:
        raise ValueError("member action.npy is missing")
    arrays = {}
    for suffix in suffixes:
        if suffix in _ARRAYS:
            try:
                arrays[suffix] = read_npy(data[suffix])
            except ValueError as error:
                raise ValueError(f"member {suffix}: {error}") from error
    size = _size(_read(file, frames[0]))
    check_decoded_size(len(frames), size)
    if (total := sum(member.size for member in members)) > MAX_EPISODE_BYTES:
        raise ValueError(f"its members have {total} bytes, over the limit of {MAX_EPISODE_BYTES}")

    steps, action = len(frames) - 1, arrays["action.npy"]
    reward = arrays.get("reward.npy", np.zeros(steps, np.float32))
    state = arrays.get("state.npy", np.zeros((steps + 1, 0), np.float32))
    if action.ndim != 2 or len(action) != steps or not action.shape[1]:
        raise ValueError(f"action.npy is {list(action.shape)}; {len(frames)} frames need [{steps}, actions]")
    if state.ndim != 2:
        raise ValueError(f"state.npy is {list(state.shape)}; {len(frames)} frames need [{steps + 1}, columns]")
    ours = _own_metadata(key, data.get("json"))
    if ours:
        info, encoding, text = ours.info, ours.encoding, data["json"].decode()
    else:
        info, encoding = _info(key, number, size, state.shape[1], config), "raw" if raw else FOREIGN_JPEG
        record = {"encoding": encoding, "steps": steps, "action_size": action.shape[1], "info": info_record(info)}
        text = canonical_json({**record, "return": float(reward.sum(dtype=np.float64))}).decode()

    digest = [(member.suffix, data.get(member.suffix) or _read(file, member)) for member in [*frames, *others]]
    pixels = np.empty((len(frames), info.size, info.size, 3), np.uint8)
    for member, frame, (_, encoded) in zip(frames, pixels, digest, strict=False):
        try:
            decode_frame(encoded, info.size, frame)
        except ValueError as error:
            raise ValueError(f"member {member.suffix}: {error}") from error
    Episode(info, pixels, action, reward, state)  # checks shapes and types, and that all numbers are finite
    sums, squares = pixel_sums(pixels)
    row = Row(key, sample_sha256(digest), text, *located, action, reward, state, sums, squares)
    return row, encoding


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _size(data: bytes) -> int:
    """The side of a frame, from its header alone."""
    shape = read_npy(data).shape[:2] or (0,) if data[:1] == b"\x93" else simplejpeg.decode_jpeg_header(data)[:2]
    side = int(shape[0])
    if len(set(shape)) != 1 or not 1 <= side <= MAX_SIZE:
        raise ValueError(f"frame 00000 is {list(shape)}; frames are square, with sides of 1 to {MAX_SIZE} pixels")
    return side


def _own_metadata(key: str, data: bytes | None) -> Metadata | None:
    """The metadata of a sample that this program wrote, else None."""
    try:
        return parse_metadata(key, data) if data is not None else None
    except ValueError:
        return None


def _info(key: str, number: int, size: int, columns: int, config: ForeignConfig) -> EpisodeInfo:
    return EpisodeInfo(
        environment=config.environment,
        config8=hashlib.sha256(b"foreign").hexdigest()[:8],
        seed=0,
        number=number,
        episode_seed=0,
        policy={"kind": "unknown"},
        camera=config.camera,
        size=size,
        quality="unknown",
        action_repeat=config.action_repeat,
        dt=config.dt,
        columns=state_columns("state", columns, config.observable),
        sample=key,
    )


def state_columns(name: str, count: int, observable: Observability) -> tuple[StateColumn, ...]:
    """Columns `<name>_0`, ... of which nothing else is known."""
    return tuple(StateColumn(f"{name}_{i}", "", "other", observable) for i in range(count))
