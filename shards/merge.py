"""Join datasets into a new directory without rewriting a tar: shards are hard links, or copies on another file system.

The digest is that of the union of the episodes. Everything is checked before the first link: that episodes share what
a dataset's episodes share, and that none occurs twice. Shards are committed one by one, as a writer commits them, and
the manifest is assembled last, so that an interrupted merge leaves no dataset, and the same command goes on from there.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from shards import atomic
from shards.dataset import Dataset
from shards.manifest import Common, Manifest, assemble, committed
from shards.writer import ShardInfo, shard_paths


@dataclass(frozen=True, slots=True)
class _Source:
    directory: Path
    shard: ShardInfo
    name: str
    """The shard's name in the merged dataset."""


def merge(
    sources: Sequence[Path], out: Path, on_shard: Callable[[int, int], None] = lambda done, total: None
) -> Manifest:
    """Join the datasets in `sources` into the directory `out`; `on_shard` is told (done, total).

    ValueError when there are fewer than two, they differ in what a dataset's episodes share, an episode is in two, or
    `out` holds a shard that is in none of them.
    """
    if len(sources) < 2:
        raise ValueError(f"{len(sources)} dataset(s) to merge; give two or more")
    datasets = [Dataset.open(source) for source in sources]
    _check_common(datasets)
    _check_episodes(datasets)
    shards = _named(datasets)
    expected = {source.name: source.shard.index_sha256 for source in shards}
    for name in committed(out):
        index = shard_paths(out, name)[1]
        if expected.get(name) != atomic.file_sha256(index):
            raise ValueError(f"{index} is in none of the datasets to merge; choose another directory")
    (out / "shards").mkdir(parents=True, exist_ok=True)
    atomic.remove_leftovers(out)
    for done, source in enumerate(shards, 1):
        _commit(source, out)
        on_shard(done, len(shards))
    return assemble(out)


def _check_common(datasets: list[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        for field in fields(Common):
            ours, theirs = (getattr(dataset.manifest.common, field.name) for dataset in (first, other))
            if ours != theirs:
                raise ValueError(
                    f"the datasets differ in {field.name}: {ours!r} in {first.path}, {theirs!r} in {other.path}; "
                    f"train on both with the loader, which joins datasets"
                )


def _check_episodes(datasets: list[Dataset]) -> None:
    seen: dict[str, Path] = {}
    for dataset in datasets:
        for key in dataset.keys[:]:
            if key in seen:
                raise ValueError(
                    f"episode {key} is in {seen[key]} and in {dataset.path}; merge datasets without overlap"
                )
            seen[key] = dataset.path


def _named(datasets: list[Dataset]) -> list[_Source]:
    """Every shard with its name in the merged dataset: its own, with its checksum behind it where two have the same."""
    shards = [(dataset.path, shard) for dataset in datasets for shard in dataset.manifest.shards]
    count = Counter(shard.name for _, shard in shards)
    return [
        _Source(path, shard, shard.name if count[shard.name] == 1 else f"{shard.name}-{shard.tar_sha256[:16]}")
        for path, shard in shards
    ]


def _commit(source: _Source, out: Path) -> None:
    """Put a shard in place as a writer does: the temporary index first, which tells that the tar is ours, then the tar,
    then its index. What is there already is left."""
    here = shard_paths(out, source.name)
    if here[1].exists():
        return
    there = shard_paths(source.directory, source.shard.name)
    tmps = [atomic.temporary(path) for path in here]
    try:
        index = (source.shard.index_bytes, source.shard.index_sha256)
        _copy(there[1], tmps[1], *index, hashed=True)
        _copy(there[0], tmps[0], source.shard.tar_bytes, source.shard.tar_sha256, hashed=False)
        for tmp, path in zip(tmps, here, strict=True):
            atomic.publish(tmp, path)
    finally:
        for tmp in tmps:
            tmp.unlink(missing_ok=True)


def _copy(there: Path, here: Path, size: int, sha256: str, *, hashed: bool) -> None:
    """A file under another name; ValueError when it is not what its manifest says. A link's bytes are looked at only
    when `hashed`, a copy's always."""
    if not there.exists() or there.stat().st_size != size:
        raise ValueError(f"{there} is missing or has another size than its manifest says; see `lewm shards verify`")
    if not _link(there, here):
        shutil.copyfile(there, here)
        atomic.sync(here)
        hashed = True
    if hashed and atomic.file_sha256(here) != sha256:
        raise ValueError(f"{there} is damaged: its sha256 is not that of its manifest")


def _link(there: Path, here: Path) -> bool:
    """Make a hard link; False where the file system has none or is another."""
    try:
        os.link(there.resolve(), here)
    except OSError:
        return False
    return True
