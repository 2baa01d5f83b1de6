"""Verify a dataset: every byte against a checksum, and every checksum against what it should describe.

Three questions. Is each file the one that its parent names (manifest -> tar, index, episodes.arrow)? Does each index
describe its tar: the same members at the same places, episodes with their sha256, inline arrays equal to the members?
Do manifest and episodes.arrow describe the committed shards: assembled anew from the indexes, are they the same? Every
failure is one line that names the file, and the episode where it can. It costs one read of the tars and sha256 of their
bytes twice (as tar and as episodes), over shards in parallel; frames are not decoded.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from io import RawIOBase
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from shards.atomic import TMP_SUFFIX, file_sha256
from shards.codec import Buffer, parse_metadata, read_npy
from shards.index import ShardIndex, open_ipc
from shards.manifest import EPISODES, EPISODES_SCHEMA, MANIFEST, Manifest, build, load
from shards.members import BLOCK, check_member, padded, scan
from shards.remote import Remote, is_remote
from shards.writer import ShardInfo, shard_paths

_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, a directory or a URI, and what was found. `leftovers` are temporary files of killed writers:
    harmless, and removed by the next collection."""

    directory: Path | str
    shards: int
    episodes: int
    bytes: int
    problems: tuple[str, ...]
    leftovers: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    directory: Path | str, threads: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check a dataset whole, in a directory or in a bucket; `on_progress(done, total)` counts bytes.

    Of a bucket every byte is fetched anew, whatever the cache holds, into temporary files: `threads` shards at a time,
    and all indexes. ValueError only when there is neither a manifest nor a shard; OSError when the bucket does not
    answer.
    """
    if not is_remote(directory):
        return _verify(Path(directory), threads, on_progress, None)
    with TemporaryDirectory(prefix="lewm-verify-") as place:
        bucket = _Bucket(Remote(str(directory)), Path(place))
        report = _verify(bucket.place, threads, on_progress, bucket)
        named = tuple(problem.replace(place, bucket.remote.uri) for problem in report.problems)
        return replace(report, directory=bucket.remote.uri, problems=named)


class _Bucket:
    """A bucket's dataset in a directory that never holds more of it than is looked at."""

    def __init__(self, remote: Remote, place: Path) -> None:
        self.remote, self.place = remote, place
        self.sizes = remote.names()
        (place / "shards").mkdir()
        for name in (MANIFEST, EPISODES):
            if name in self.sizes:
                (place / name).write_bytes(remote.read(name))

    def fetch(self, name: str, expected: ShardInfo | None) -> list[str]:
        """Bring a shard here; what is wrong with what comes."""
        problems = []
        wanted = zip(
            shard_paths(self.place, name),
            (expected.tar_bytes, expected.index_bytes) if expected else (None, None),
            (expected.tar_sha256, expected.index_sha256) if expected else (None, None),
            strict=True,
        )
        for path, size, sha256 in wanted:
            there = self.sizes.get(f"shards/{path.name}")
            if there is None:
                continue
            if size is not None and there > size:
                problems.append(f"{path} has {there} bytes instead of {size}: it is {_comparison(there, size)}")
                continue
            try:
                with path.open("xb") as file:
                    self.remote.download(f"shards/{path.name}", file, size or there, sha256)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                problems.append(str(error))
        return problems

    def forget(self, name: str) -> None:
        """Keep of a shard what the manifest is made from: its index, and the size of its tar."""
        tar = shard_paths(self.place, name)[0]
        if tar.exists():
            size = tar.stat().st_size
            os.truncate(tar, 0)
            os.truncate(tar, size)


def _verify(
    directory: Path, threads: int, on_progress: Callable[[int, int], None] | None, bucket: _Bucket | None
) -> VerifyReport:
    problems: list[str] = []
    manifest: Manifest | None = None
    if bucket:
        sizes = {name.removeprefix("shards/"): n for name, n in bucket.sizes.items() if name.startswith("shards/")}
    else:
        sizes = {path.name: path.stat().st_size for path in (directory / "shards").glob("*")}
    sizes = {name: size for name, size in sizes.items() if name.endswith((".tar", ".arrow"))}
    names = {name.rpartition(".")[0] for name in sizes}
    try:
        manifest = load(directory)
    except ValueError as error:
        if not names:
            raise
        problems.append(str(error))
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    names |= listed.keys()
    lock, done, total = threading.Lock(), 0, sum(sizes.values())

    def check(name: str) -> list[str]:
        nonlocal done
        expected = listed.get(name)
        if manifest and not expected:
            return [f"{directory}: shard {name} is extra: the manifest does not name it"]
        found = bucket.fetch(name, expected) if bucket else []
        found = found or list(_shard_problems(directory, name, expected))
        if bucket:
            bucket.forget(name)
        with lock:
            done += sum(sizes.get(path.name, 0) for path in shard_paths(directory, name))
            if on_progress:
                on_progress(done, total)
        return found

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for found in pool.map(check, sorted(names)):
            problems += found
    if manifest:
        problems += _episodes_problems(directory, manifest)
        if not problems:
            problems += _manifest_problems(directory, manifest)
    leftovers = sorted(path.name for path in directory.rglob(f"*{TMP_SUFFIX}"))
    return VerifyReport(
        directory=directory,
        shards=len(names),
        episodes=manifest.n_episodes if manifest else 0,
        bytes=total,
        problems=tuple(problems),
        leftovers=tuple(leftovers),
    )


def _shard_problems(directory: Path, name: str, expected: ShardInfo | None) -> Iterator[str]:
    tar, path = shard_paths(directory, name)
    missing = [file for file in (tar, path) if not file.exists()]
    for file in missing:
        yield f"{file} is missing"
    if missing:
        return
    if expected and file_sha256(path) != expected.index_sha256:
        yield f"{path} is damaged or stale: it is not the index that the manifest names"
        index = None
    else:
        try:
            index = ShardIndex.open(path)
        except ValueError as error:
            yield str(error)
            index = None
    source = expected or index
    if source is None:
        return
    if index and index.tar_sha256 != source.tar_sha256:
        yield f"{path} is stale: it describes another tar than the manifest names"
    size = tar.stat().st_size
    found, damaged = _read_tar(tar, index)
    if size != source.tar_bytes:
        yield f"{tar} has {size} bytes instead of {source.tar_bytes}: it is {_comparison(size, source.tar_bytes)}"
    elif found != source.tar_sha256:
        yield f"{tar} is damaged: its sha256 is not the recorded one"
    yield from damaged


def _comparison(size: int, expected: int) -> str:
    return "cut off" if size < expected else "longer than it was"


def _read_tar(tar: Path, index: ShardIndex | None) -> tuple[str, list[str]]:
    """The sha256 of a tar, and where it is not what its index says, all from one read of its bytes.

    The read goes from episode to episode. Each is hashed as part of the tar and, without its headers, on its own; its
    headers are compared as arrays. Only where they differ is the tar scanned, to name the first odd member.
    """
    digest, problems, described = hashlib.sha256(), [], True
    size = tar.stat().st_size
    with open(tar, "rb", buffering=0) as file:
        buffer = bytearray()
        position = 0
        for row in range(len(index) if index else 0):
            assert index is not None
            try:
                members = index.members(row)
                begin, end = _span(members)
                if begin != position:
                    described = False
                if end > size:
                    raise ValueError(f"the tar is cut off before byte {end}")
                if len(buffer) < end - begin:
                    buffer = bytearray(end - begin)
                data = memoryview(buffer)[: end - begin]
                file.seek(begin)
                if _read_into(file, data) < len(data):
                    raise ValueError(f"the tar is cut off before byte {end}")
                if begin == position:
                    digest.update(data)
                    position = end
                frames = int(index.lengths[row]) + 1
                described = described and _headers_agree(index.keys[row], members, frames, data, begin)
                _check_episode(index, row, [(s, data[at - begin : at - begin + n]) for s, at, n in members])
            except KeyError as error:
                problems.append(f"{tar}: episode {index.keys[row]} is damaged: it has no member {error}")
            except (ValueError, OSError) as error:
                problems.append(f"{tar}: episode {index.keys[row]} is damaged: {error}")
        rest = _rest(file, position, digest)
    if index and (not described or any(rest)):
        problems = [*_scan_problems(index), *problems]
    return digest.hexdigest(), problems


def _span(members: list[tuple[str, int, int]]) -> tuple[int, int]:
    """From where to where an episode's members, headers and padding included, lie in the tar."""
    last = max(members, key=lambda member: member[1])
    return min(offset for _, offset, _ in members) - BLOCK, last[1] + padded(last[2])


def _read_into(file: RawIOBase, data: memoryview) -> int:
    """Fill `data`; returns the number of bytes there were, which is less at the end of the file."""
    done = 0
    while done < len(data) and (count := file.readinto(data[done : done + _CHUNK])):
        done += count
    return done


def _rest(file: RawIOBase, position: int, digest: "hashlib._Hash") -> bytes:
    """Hash what follows the last episode; returns the next two blocks, which are zeros at the end of a tar."""
    file.seek(position)
    first = file.read(2 * BLOCK) or b""
    digest.update(first)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return first


def _headers_agree(key: str, members: list[tuple[str, int, int]], frames: int, data: memoryview, begin: int) -> bool:
    """Whether plain ustar headers with these names and sizes stand before the members, and nothing between them;
    ValueError for a member that may not be read. The first `frames` members are named by number, all of one type."""
    offset = np.array([at for _, at, _ in members])
    size = np.array([n for _, _, n in members])
    if (offset[:-1] + -(-size[:-1] // BLOCK) * BLOCK + BLOCK != offset[1:]).any():
        return False
    bytes_of = np.frombuffer(data, np.uint8)
    headers = bytes_of.reshape(-1, BLOCK)[(offset - begin) // BLOCK - 1]
    for suffix, _, n in [members[int(size[:frames].argmax())], *members[frames:]]:
        check_member(f"{key}.{suffix}", n)  # of the frames, the largest
    names = np.array([f"{key}.{suffix}" for suffix, _, _ in members], "S")  # whole: a header's are cut at 100 bytes
    digits = headers[:, 124:135]
    kind = headers[:, 156]
    told = headers[:, :100].copy().view("S100")[:, 0]
    return bool(
        ((offset - begin) % BLOCK == 0).all()
        and (told == names).all()
        and (headers[:, 345] == 0).all()
        and ((kind == ord("0")) | (kind == 0)).all()
        and ((digits >= ord("0")) & (digits < ord("8"))).all()
        and ((digits.astype(np.int64) - ord("0")) @ 8 ** np.arange(10, -1, -1) == size).all()
    )


def _check_episode(index: ShardIndex, row: int, members: list[tuple[str, memoryview]]) -> None:
    """ValueError or KeyError where an episode's bytes are not what the index says."""
    table = b"".join(b"%s\0%s" % (suffix.encode(), len(data).to_bytes(8, "big")) for suffix, data in members)
    # one long update, which releases the GIL, instead of a short one for each frame, which does not
    if hashlib.sha256(table + b"".join([data for _, data in members])).digest() != index.sha256(row):
        raise ValueError("its bytes do not have its sha256")
    by_suffix: dict[str, Buffer] = {**dict(members), **index.foreign_members(row)}
    parse_metadata(index.keys[row], by_suffix["json"])
    if bytes(by_suffix["json"]).decode() != index.info(row):
        raise ValueError("its json is not that of the index")
    for suffix, inline in (
        ("action.npy", index.action(row)),
        ("reward.npy", index.reward(row)),
        ("state.npy", index.state(row)),
    ):
        if not np.array_equal(read_npy(by_suffix[suffix]), inline):
            raise ValueError(f"its {suffix} is not that of the index")


def _scan_problems(index: ShardIndex) -> Iterator[str]:
    """The first member in which a tar differs from its index."""
    try:
        described = ((key, *member) for row, key in enumerate(index.keys) for member in index.members(row))
        for found, told in zip_longest(scan(index.tar), described):
            if found is None or (found.key, found.suffix, found.offset, found.size) != told:
                yield f"{index.path} does not describe its tar: it has {told}, the tar has {found}"
                return
    except ValueError as error:
        yield str(error)


def _episodes_problems(directory: Path, manifest: Manifest) -> Iterator[str]:
    path = directory / EPISODES
    if not path.exists():
        yield f"{path} is missing"
    elif file_sha256(path) != manifest.episodes_sha256:
        yield f"{path} is damaged or stale: its sha256 is not the one in the manifest"


def _manifest_problems(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Fields in which the manifest differs from one assembled anew from the shards, which are known to be sound."""
    try:
        anew, episodes = build(directory)
        yield from _rows_problems(directory / EPISODES, episodes)
    except ValueError as error:
        yield str(error)
        return
    for name in ("digest", "common", "n_episodes", "n_steps", "n_frames", "splits", "statistics_from", "shards"):
        if getattr(manifest, name) != getattr(anew, name):
            yield f"{directory}: the manifest's {name} is not that of the shards"
    for field in fields(manifest.statistics):
        ours, theirs = getattr(manifest.statistics, field.name), getattr(anew.statistics, field.name)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-9):  # sums may round elsewhere
            yield f"{directory}: the manifest's {field.name} is not that of the shards"


def _rows_problems(path: Path, anew: bytes) -> Iterator[str]:
    """The first row in which `episodes.arrow` is not what the indexes say."""
    with TemporaryDirectory(prefix="lewm-verify-") as place:
        made = Path(place) / EPISODES
        made.write_bytes(anew)
        ours, theirs = open_ipc(path, EPISODES_SCHEMA), open_ipc(made, EPISODES_SCHEMA)
        if ours.equals(theirs):
            return
        for row, (told, true) in enumerate(zip_longest(_rows(ours), _rows(theirs))):
            if told != true:
                yield f"{path} is not what the shards say: row {row} is {told}, which should be {true}"
                return


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for row in range(len(batch)):
        yield {name: batch.column(name)[row].as_py() for name in batch.schema.names}
