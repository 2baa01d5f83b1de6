"""Episode <-> the members of one WebDataset sample.

A sample has one member a frame (`00000.jpg`, or `00000.npy` when raw), `action.npy`, `json`, `reward.npy` and
`state.npy`: the order in which webdataset.TarWriter writes them. JPEG has quality 95, with full chroma up to 128 px,
where halved chroma would blur objects of one or two pixels, and 4:2:0 above. Decoding trusts nothing: an array's
length must be what its header says, a JPEG's dimensions are checked before a pixel is allocated.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg

from shards.episode import Episode, EpisodeInfo, Kind, Observability, StateColumn
from shards.members import LIMITS, MAX_EPISODE_BYTES, MAX_KEY, MAX_STEPS, check_member
from shards.untrusted import read_json

Encoding = Literal["jpeg", "raw"]
Buffer = bytes | memoryview

QUALITY = 95
FOREIGN_JPEG = "jpeg"
"""Encoding of foreign JPEGs, of which neither quality nor chroma is known."""
FULL_CHROMA_UP_TO = 128
MAX_SIZE = 2048
"""Largest side of a frame, in pixels."""
ARRAYS = ("action.npy", "reward.npy", "state.npy")

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f4|\|u1)', 'fortran_order': False, 'shape': \(([0-9, ]{0,60})\), \} *\n",
    re.DOTALL,
)
_INFO_TYPES: dict[str, type | tuple[type, ...]] = {
    "environment": str, "config8": str, "seed": int, "number": int, "episode_seed": int, "policy": dict, "camera": str,
    "size": int, "quality": str, "action_repeat": int, "dt": (int, float), "columns": list, "versions": dict,
    "success": (bool, type(None)),
}  # fmt: skip


def encoding_name(encoding: Encoding, size: int) -> str:
    """What the metadata records: `raw`, `jpeg-q95-444` or `jpeg-q95-420`."""
    return "raw" if encoding == "raw" else f"jpeg-q{QUALITY}-{_subsampling(size)}"


def _subsampling(size: int) -> str:
    return "444" if size <= FULL_CHROMA_UP_TO else "420"


def frame_suffix(step: int, encoding: str) -> str:
    """Member suffix of frame `step`; `encoding` as in the metadata."""
    return f"{step:05d}.{'npy' if encoding == 'raw' else 'jpg'}"


def encode(episode: Episode, encoding: Encoding) -> list[tuple[str, bytes]]:
    """The members (suffix, bytes) of an episode in tar order; ValueError for one that readers would refuse."""
    key, steps, size = episode.info.key, len(episode), episode.info.size
    action_size = episode.action.shape[-1]
    if len(key) > MAX_KEY:
        raise ValueError(f"episode key {key!r} has {len(key)} characters; a tar holds at most {MAX_KEY}")
    if not (1 <= steps <= MAX_STEPS and action_size >= 1 and 1 <= size <= MAX_SIZE):
        raise ValueError(
            f"episode {key}: {steps} steps, action size {action_size}, {size} px; "
            f"possible are 1..{MAX_STEPS} steps, at least one action, 1..{MAX_SIZE} px"
        )
    check_decoded_size(steps + 1, size)
    metadata = {
        "encoding": encoding_name(encoding, size),
        "steps": steps,
        "action_size": action_size,
        "return": episode.episode_return,
        "info": info_record(episode.info),
    }
    members = [(frame_suffix(t, encoding), encode_frame(frame, encoding)) for t, frame in enumerate(episode.frames)]
    members.append(("action.npy", npy_bytes(episode.action)))
    members.append(("json", canonical_json(metadata)))
    members.append(("reward.npy", npy_bytes(episode.reward)))
    members.append(("state.npy", npy_bytes(episode.state)))
    for suffix, data in members:
        check_member(f"{key}.{suffix}", len(data))
    return members


def decode(key: str, members: Mapping[str, Buffer]) -> Episode:
    """The episode of a sample; ValueError names the member that is missing, unknown or malformed."""
    if "json" not in members:
        raise ValueError(f"episode {key}: no member {key}.json")
    metadata = parse_metadata(key, members["json"])
    info, steps = metadata.info, metadata.steps
    suffixes = [frame_suffix(t, metadata.encoding) for t in range(steps + 1)]
    if odd := sorted(members.keys() ^ {*suffixes, *ARRAYS, "json"}):
        raise ValueError(f"episode {key}: member {key}.{odd[0]} is {'unknown' if odd[0] in members else 'missing'}")
    frames = np.empty((steps + 1, info.size, info.size, 3), np.uint8)
    suffix = ""
    try:
        for frame, suffix in zip(frames, suffixes, strict=True):
            decode_frame(members[suffix], info.size, frame)
        arrays = {}
        for suffix in ARRAYS:
            arrays[suffix] = read_npy(members[suffix])
    except ValueError as error:
        raise ValueError(f"episode {key}: member {key}.{suffix}: {error}") from error
    return Episode(info, frames, *(arrays[suffix] for suffix in ARRAYS))


def sample_sha256(members: Sequence[tuple[str, Buffer]]) -> bytes:
    """An episode's sha256: over the table (suffix, zero byte, size as 8 bytes big endian) of its members, then their
    bytes, in tar order. Tar headers, times and owners are no part of it."""
    digest = hashlib.sha256(b"".join(b"%s\0%s" % (s.encode(), len(data).to_bytes(8, "big")) for s, data in members))
    for _, data in members:
        digest.update(data)
    return digest.digest()


def encode_frame(frame: np.ndarray, encoding: Encoding) -> bytes:
    """A frame (size, size, 3) uint8 as a member's bytes."""
    if encoding == "raw":
        return npy_bytes(frame)
    image = np.ascontiguousarray(frame)
    return simplejpeg.encode_jpeg(image, quality=QUALITY, colorspace="RGB", colorsubsampling=_subsampling(len(image)))


def decode_frame(data: Buffer, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """A member's bytes as (size, size, 3) uint8 RGB, into `out` (contiguous) when given. The GIL is released.

    ValueError when the bytes are damaged or the picture has another size, which is read before anything is decoded.
    """
    shape = (size, size, 3)
    if out is not None and (out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous):
        raise ValueError(f"out is {out.dtype}{list(out.shape)}; a contiguous uint8{list(shape)} is needed")
    if bytes(data[:1]) == b"\x93":
        frame = read_npy(data)
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype}{list(frame.shape)}, expected uint8{list(shape)}")
        if out is None:
            return frame
        out[:] = frame
        return out
    if len(data) > LIMITS["jpg"]:
        raise ValueError(f"JPEG of {len(data)} bytes, over the limit of {LIMITS['jpg']}")
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != (size, size) or colorspace != "YCbCr":
        raise ValueError(f"JPEG is {height}x{width} {colorspace}, expected {size}x{size} YCbCr")
    return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)


def npy_bytes(array: np.ndarray) -> bytes:
    """A float32 or uint8 array as an `.npy` file, version 1.0, C order."""
    shape = ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "")
    descr = {np.dtype(np.float32): "<f4", np.dtype(np.uint8): "|u1"}[array.dtype]
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array.astype(descr).tobytes()


def read_npy(data: Buffer) -> np.ndarray:
    """A float32 or uint8 array, without a copy, from an `.npy` file. ValueError for objects, Fortran order, and a
    header that does not agree with the number of bytes. (numpy's reader evaluates the header as a Python literal.)"""
    head = bytes(data[:256])
    match = _NPY.match(head)
    if not match:
        raise ValueError(f"not a plain float32 or uint8 npy file: it begins with {head[:96]!r}")
    start = 10 + int.from_bytes(head[8:10], "little")
    shape = tuple(int(n) for n in match[2].decode().split(",") if n.strip())
    dtype = np.dtype(match[1].decode())
    count = 1
    for n in shape:
        count *= n
    if start != match.end() or count * dtype.itemsize != len(data) - start:
        raise ValueError(f"npy header says {dtype}{list(shape)}, but {len(data) - start} bytes follow it")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The `json` member: how the sample is encoded, its sizes, and the episode's info."""

    encoding: str
    steps: int
    action_size: int
    info: EpisodeInfo


def parse_metadata(key: str, data: Buffer | str) -> Metadata:
    """The `json` member of sample `key`; ValueError when it is malformed or belongs to another episode."""
    try:
        record = read_json(data if isinstance(data, str) else bytes(data))
    except ValueError as error:
        raise ValueError(f"episode {key}: member {key}.json is not JSON: {error}") from error
    try:
        info = _parse_info(record["info"])
        metadata = Metadata(record["encoding"], record["steps"], record["action_size"], info)
        sizes = (metadata.steps, metadata.action_size, info.size, info.action_repeat)
        if any(type(n) is not int or n < 1 for n in sizes) or metadata.steps > MAX_STEPS or info.size > MAX_SIZE:
            raise ValueError(f"steps, action size, pixels, action repeat are {sizes}")
        check_decoded_size(metadata.steps + 1, info.size)
        known = {FOREIGN_JPEG} if info.sample is not None else {encoding_name("jpeg", info.size)}
        if metadata.encoding not in known | {"raw"}:
            raise ValueError(f"unknown encoding {metadata.encoding!r}")
        if info.key != key:
            raise ValueError(f"it describes {info.key}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"episode {key}: member {key}.json is malformed: {error}") from error
    return metadata


def check_decoded_size(frames: int, size: int) -> None:
    """ValueError for an episode whose frames, decoded, would take more memory than an episode may."""
    if frames * size**2 * 3 > MAX_EPISODE_BYTES:
        raise ValueError(
            f"{frames} frames of {size} px take {frames * size**2 * 3} bytes, over the limit of {MAX_EPISODE_BYTES}"
        )


def info_record(info: EpisodeInfo) -> dict[str, Any]:
    """An episode's info as it stands in the `json` member: `sample` only where there is one."""
    record = asdict(info)
    if info.sample is None:
        del record["sample"]
    return record


def _parse_info(record: Mapping[str, Any]) -> EpisodeInfo:
    for name, kind in _INFO_TYPES.items():
        if not isinstance(record[name], kind) or (kind is int and isinstance(record[name], bool)):
            raise ValueError(f"{name} is {record[name]!r}")
    sample = record.get("sample")
    if sample is not None and (not isinstance(sample, str) or check_member(f"{sample}.json", 0)[0] != sample):
        raise ValueError(f"sample is {sample!r}")
    fields: dict[str, Any] = {**record, "columns": parse_columns(record["columns"])}
    return EpisodeInfo(**fields)


def parse_columns(records: Sequence[Mapping[str, Any]]) -> tuple[StateColumn, ...]:
    """State columns from JSON; ValueError for an unknown kind or observability."""
    columns = tuple(StateColumn(**record) for record in records)
    for column in columns:
        if column.kind not in get_args(Kind) or column.observable not in get_args(Observability):
            raise ValueError(f"unknown state column {column}")
    return columns


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
