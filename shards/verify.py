"""Verify a dataset: every byte against a checksum, and every checksum against what it should describe.

Three questions. Is each file the one that its parent names (manifest -> tar, index, episodes.arrow)? Does each index
describe its tar: the same members at the same places, episodes with their sha256, inline arrays equal to the members?
Does the manifest describe the committed shards: assembled anew from the indexes, is it the same? Every failure is one
line that names the file, and the episode where it can. It costs two passes of sha256 over the tars and about
5 us a member, over shards in parallel; frames are not decoded.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path

import numpy as np

from shards.atomic import TMP_SUFFIX, file_sha256
from shards.codec import parse_metadata, read_npy, sample_sha256
from shards.dataset import read_members
from shards.index import ShardIndex
from shards.manifest import EPISODES, Manifest, build, load
from shards.members import scan
from shards.writer import ShardInfo, shard_paths


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked and what was found. `leftovers` are temporary files of killed writers: harmless, and removed by
    the next collection."""

    directory: Path
    shards: int
    episodes: int
    bytes: int
    problems: tuple[str, ...]
    leftovers: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(directory: Path | str, threads: int = 2) -> VerifyReport:
    """Check a dataset whole. ValueError only when the directory holds neither a manifest nor a shard."""
    directory = Path(directory)
    problems: list[str] = []
    manifest: Manifest | None = None
    names = {path.stem for path in (directory / "shards").glob("*") if path.suffix in (".tar", ".arrow")}
    try:
        manifest = load(directory)
    except ValueError as error:
        if not names:
            raise
        problems.append(str(error))
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    names |= listed.keys()

    def check(name: str) -> list[str]:
        expected = listed.get(name)
        if manifest and not expected:
            return [f"shard {name} is extra: the manifest does not name it"]
        return list(_shard_problems(directory, name, expected))

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for found in pool.map(check, sorted(names)):
            problems += found
    if manifest:
        problems += _episodes_problems(directory, manifest)
        if not problems:
            problems += _manifest_problems(directory, manifest)
    present = [path for name in names for path in shard_paths(directory, name) if path.exists()]
    leftovers = sorted(path.name for path in directory.rglob(f"*{TMP_SUFFIX}"))
    return VerifyReport(
        directory=directory,
        shards=len(names),
        episodes=manifest.n_episodes if manifest else 0,
        bytes=sum(path.stat().st_size for path in present),
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
    size = tar.stat().st_size
    if size != source.tar_bytes:
        yield f"{tar} has {size} bytes instead of {source.tar_bytes}: it is {_comparison(size, source.tar_bytes)}"
    elif file_sha256(tar) != source.tar_sha256:
        yield f"{tar} is damaged: its sha256 is not the recorded one"
    if index:
        if index.tar_sha256 != source.tar_sha256:
            yield f"{path} is stale: it describes another tar than the manifest names"
        yield from _content_problems(index)


def _comparison(size: int, expected: int) -> str:
    return "cut off" if size < expected else "longer than it was"


def _content_problems(index: ShardIndex) -> Iterator[str]:
    """Where a tar is not what its index says; names the first odd member, and every damaged episode."""
    try:
        described = ((key, *member) for row, key in enumerate(index.keys) for member in index.members(row))
        for found, told in zip_longest(scan(index.tar), described):
            if found is None or (found.key, found.suffix, found.offset, found.size) != told:
                yield f"{index.path} does not describe its tar: it has {told}, the tar has {found}"
                break
    except ValueError as error:
        yield str(error)
    for row, key in enumerate(index.keys):
        try:
            members = read_members(index, row)
            if sample_sha256(members) != index.sha256(row):
                raise ValueError("its bytes do not have its sha256")
            by_suffix = dict(members)
            parse_metadata(key, by_suffix["json"])
            if bytes(by_suffix["json"]).decode() != index.info(row):
                raise ValueError("its json is not that of the index")
            for suffix, inline in (
                ("action.npy", index.action(row)),
                ("reward.npy", index.reward(row)),
                ("state.npy", index.state(row)),
            ):
                if not np.array_equal(read_npy(by_suffix[suffix]), inline):
                    raise ValueError(f"its {suffix} is not that of the index")
        except KeyError as error:
            yield f"{index.tar}: episode {key} is damaged: it has no member {error}"
        except (ValueError, OSError) as error:
            yield f"{index.tar}: episode {key} is damaged: {error}"


def _episodes_problems(directory: Path, manifest: Manifest) -> Iterator[str]:
    path = directory / EPISODES
    if not path.exists():
        yield f"{path} is missing"
    elif file_sha256(path) != manifest.episodes_sha256:
        yield f"{path} is damaged or stale: its sha256 is not the one in the manifest"


def _manifest_problems(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Fields in which the manifest differs from one assembled anew from the shards, which are known to be sound."""
    try:
        anew, _ = build(directory)
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
