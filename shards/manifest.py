"""The manifest: what a dataset is, in one checked JSON file, and `episodes.arrow`, all that ordering needs.

Both are assembled from the committed shards' indexes alone, so that any number of writers on any number of nodes need
no coordination, and assembling again changes nothing. The digest names the episodes, not the files: it is the same
however they were collected and sharded. Assembling reads every index once (a few percent of the data) and no tar.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from shards.atomic import file_sha256, write_atomically
from shards.codec import MAX_SIZE, parse_metadata
from shards.episode import StateColumn
from shards.index import FORMAT_VERSION, ShardIndex, ipc_bytes
from shards.split import SPLITS, split_of
from shards.statistics import Statistics, statistics_of
from shards.untrusted import read_json, record
from shards.writer import ShardInfo, check_shard_name, shard_paths

MANIFEST, EPISODES = "manifest.json", "episodes.arrow"
EPISODES_SCHEMA = pa.schema(
    [
        ("key", pa.utf8()),
        ("shard", pa.uint32()),
        ("row", pa.uint32()),
        ("length", pa.uint32()),
        ("split", pa.uint8()),
    ]
)
"""Rows by key; `shard` counts in the manifest's list, `row` in that shard's index, `split` in `split.SPLITS`."""

_CHECKSUM = re.compile(rb'\A\{\n  "checksum": "([0-9a-f]{64})",\n')
_NO_CHECKSUM = "0" * 64
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Common:
    """What all episodes of a dataset share. `size` is in pixels, `dt` in seconds a decision, `encoding` as
    `codec.encoding_name` says."""

    environment: str
    camera: str
    size: int
    quality: str
    action_repeat: int
    dt: float
    action_size: int
    encoding: str
    columns: tuple[StateColumn, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """A dataset's manifest. Shards are in order of their names; `splits` counts episodes."""

    format_version: int
    digest: str
    common: Common
    n_episodes: int
    n_steps: int
    n_frames: int
    splits: Mapping[str, int]
    statistics_from: Literal["train", "all"]
    statistics: Statistics
    episodes_bytes: int
    episodes_sha256: str
    shards: tuple[ShardInfo, ...]


def assemble(directory: Path | str) -> Manifest:
    """Write `episodes.arrow` and `manifest.json` from the committed shards of a dataset.

    ValueError when there is none, a shard's tar is missing or has another size, two shards hold one episode, or
    episodes differ in what a dataset's episodes share.
    """
    directory = Path(directory)
    manifest, episodes = build(directory)
    write_atomically(directory / EPISODES, episodes)
    write_atomically(directory / MANIFEST, to_bytes(manifest))
    return manifest


def committed(directory: Path | str) -> list[str]:
    """Names of the committed shards: those whose index is in place."""
    return sorted(path.stem for path in (Path(directory) / "shards").glob("*.arrow"))


def committed_keys(directory: Path | str) -> set[str]:
    """Keys of all committed episodes, whether or not a manifest names them yet."""
    directory = Path(directory)
    return {key for name in committed(directory) for key in ShardIndex.open(shard_paths(directory, name)[1]).keys}


def build(directory: Path) -> tuple[Manifest, bytes]:
    """The manifest and the bytes of `episodes.arrow`, without writing them; errors as `assemble`."""
    names = committed(directory)
    if not names:
        raise ValueError(f"{directory} has no committed shard; `lewm collect` writes some")
    indexes = [ShardIndex.open(shard_paths(directory, check_shard_name(name))[1]) for name in names]
    shards = tuple(_shard_info(directory, name, index) for name, index in zip(names, indexes, strict=True))

    order = sorted((key, shard, row) for shard, index in enumerate(indexes) for row, key in enumerate(index.keys))
    for (key, shard, _), (following, other, _) in pairwise(order):
        if key == following:
            raise ValueError(
                f"{directory}: episode {key} is in shard {names[shard]} and in shard {names[other]}; "
                f"remove one of the two shards (.tar and .arrow)"
            )
    common = _common(directory, names, indexes)

    splits = [split_of(key) for key, _, _ in order]
    chosen = [i for i, split in enumerate(splits) if split == "train"]
    statistics_from: Literal["train", "all"] = "train" if chosen else "all"
    statistics = statistics_of(((indexes[order[i][1]], order[i][2]) for i in chosen or range(len(order))), common.size)

    lengths = [int(indexes[shard].lengths[row]) for _, shard, row in order]
    columns = {
        "key": [key for key, _, _ in order],
        "shard": [shard for _, shard, _ in order],
        "row": [row for _, _, row in order],
        "length": lengths,
        "split": [SPLITS.index(split) for split in splits],
    }
    batch = pa.record_batch([pa.array(columns[f.name], f.type) for f in EPISODES_SCHEMA], schema=EPISODES_SCHEMA)
    episodes = ipc_bytes(batch)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest=digest_of((key, indexes[shard].sha256(row)) for key, shard, row in order),
        common=common,
        n_episodes=len(order),
        n_steps=sum(lengths),
        n_frames=sum(lengths) + len(order),
        splits={split: splits.count(split) for split in SPLITS},
        statistics_from=statistics_from,
        statistics=statistics,
        episodes_bytes=len(episodes),
        episodes_sha256=hashlib.sha256(episodes).hexdigest(),
        shards=shards,
    )
    return manifest, episodes


def digest_of(episodes: Any) -> str:
    """A dataset's digest from its (key, episode sha256) pairs, in any order."""
    digest = hashlib.sha256(b"lewm dataset %d\n" % FORMAT_VERSION)
    for key, sha256 in sorted(episodes):
        digest.update(f"{key} {sha256.hex()}\n".encode())
    return digest.hexdigest()


def _shard_info(directory: Path, name: str, index: ShardIndex) -> ShardInfo:
    tar, path = shard_paths(directory, name)
    size = tar.stat().st_size if tar.exists() else None
    if size != index.tar_bytes:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(f"{tar} {found}, but its index says {index.tar_bytes} bytes; restore it or remove {path}")
    return ShardInfo(
        name=name,
        tar_bytes=index.tar_bytes,
        tar_sha256=index.tar_sha256,
        index_bytes=path.stat().st_size,
        index_sha256=file_sha256(path),
        episodes=len(index),
        steps=int(index.lengths.sum()),
    )


def _common(directory: Path, names: list[str], indexes: list[ShardIndex]) -> Common:
    """What all episodes share; ValueError that shows the first difference."""
    first: Common | None = None
    for name, index in zip(names, indexes, strict=True):
        for row, key in enumerate(index.keys):
            metadata = parse_metadata(key, index.info(row))
            info = metadata.info
            here = Common(
                environment=info.environment,
                camera=info.camera,
                size=info.size,
                quality=info.quality,
                action_repeat=info.action_repeat,
                dt=info.dt,
                action_size=index.action_size,
                encoding=index.encoding,
                columns=info.columns,
                versions=info.versions,
            )
            steps, state = int(index.lengths[row]), index.state(row)
            if (metadata.steps, metadata.action_size, metadata.encoding, len(info.columns)) != (
                steps, index.action_size, index.encoding, state.shape[1],
            ):  # fmt: skip
                raise ValueError(f"{index.path}: episode {key}: the index and the episode's json disagree")
            first = first or here
            for field in fields(Common):
                ours, theirs = getattr(first, field.name), getattr(here, field.name)
                if ours != theirs:
                    raise ValueError(
                        f"{directory}: episodes differ in {field.name}: {ours!r} in shard {names[0]}, {theirs!r} in "
                        f"{key} of shard {name}; keep them in separate datasets"
                    )
    assert first is not None
    return first


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest file. Its checksum is the sha256 of the file with 64 zeros in the checksum's place."""
    values = asdict(manifest)
    values["statistics"] = {name: array.tolist() for name, array in values["statistics"].items()}
    text = json.dumps({"checksum": _NO_CHECKSUM, **values}, indent=2, allow_nan=False) + "\n"
    return text.replace(_NO_CHECKSUM, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def load(directory: Path | str) -> Manifest:
    """Read and check `manifest.json`; ValueError when the path is no dataset, the file is damaged or of another
    format version."""
    path = Path(directory) / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        have = "has shards but no manifest (an unfinished collection)" if committed(directory) else "is not a dataset"
        raise ValueError(f"{directory} {have}: there is no {MANIFEST}; `lewm collect` writes one") from None
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Manifest:
    """The manifest of a file's bytes; ValueError, which names the file, as `load`."""
    match = _CHECKSUM.match(data)
    if not match or hashlib.sha256(data.replace(match[1], _NO_CHECKSUM.encode(), 1)).hexdigest() != match[1].decode():
        raise ValueError(f"{name} is damaged: its checksum does not hold; assemble it again with `lewm collect`")
    try:
        found = read_json(data)
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"it has format {found['format_version']}; this program reads format {FORMAT_VERSION}")
        del found["checksum"]
        return _checked(record(Manifest, found))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be used: {error}") from error


def _checked(manifest: Manifest) -> Manifest:
    """The manifest, if its fields agree with each other; ValueError for one that no writer makes."""
    common, shards, statistics = manifest.common, manifest.shards, manifest.statistics
    names = [check_shard_name(shard.name) for shard in shards]
    digests = [manifest.digest, manifest.episodes_sha256]
    digests += [digest for shard in shards for digest in (shard.tar_sha256, shard.index_sha256)]
    for digest in digests:
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is no sha256")
    if not (1 <= common.size <= MAX_SIZE and common.action_repeat >= 1 and common.dt > 0 and common.action_size >= 1):
        raise ValueError(f"size, action_repeat, dt or action_size is impossible: {common}")
    sizes = {"pixel": 3, "action": common.action_size, "state": len(common.columns)}
    for name, values in asdict(statistics).items():
        if len(values) != sizes[name.split("_")[0]] or (name.endswith("std") and (values <= 0).any()):
            raise ValueError(f"statistics.{name} has another length than the episodes, or a deviation that is not > 0")
    counts = {
        "shards": names == sorted(set(names)) and len(names) > 0,
        "n_episodes": manifest.n_episodes == sum(shard.episodes for shard in shards) > 0,
        "n_steps": manifest.n_steps == sum(shard.steps for shard in shards),
        "n_frames": manifest.n_frames == manifest.n_steps + manifest.n_episodes,
        "splits": tuple(manifest.splits) == SPLITS and sum(manifest.splits.values()) == manifest.n_episodes,
    }
    for name, agrees in counts.items():
        if not agrees:
            raise ValueError(f"{name} disagrees with the shards that are listed")
    return manifest
