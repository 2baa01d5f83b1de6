"""A dataset into a bucket: shards first and the manifest last, so that nobody ever sees a part of it.

Files are read from a directory that may still grow: what is sent is the dataset of the manifest that was there at the
beginning. Each file is hashed before it is sent.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from shards.atomic import file_sha256
from shards.manifest import EPISODES, MANIFEST, Manifest, load, to_bytes
from shards.remote import Remote

_ATTEMPTS = 20
_PAUSE = 0.1
"""Seconds, and how often they pass, between the writing of `episodes.arrow` and of the manifest."""


def push(directory: Path, uri: str, on_file: Callable[[int, int], None] | None = None) -> int:
    """Copy a dataset to a bucket: its shards, each tar before its index, then episodes.arrow, and the manifest last.

    An index tells of its tar's bytes, so a shard whose index is there is there, and a push that was interrupted goes on
    after it. Where the bucket holds a part of this dataset, its readers refuse it between the last two files.

    Returns the bytes sent; `on_file(done, total)` counts files. ValueError when the directory is no dataset, or the
    bucket holds a shard that is not one of its; nothing is then sent.
    """
    manifest, episodes, text = _snapshot(directory)
    remote = Remote(uri)
    there = remote.names()
    names = [f"shards/{shard.name}{suffix}" for shard in manifest.shards for suffix in (".tar", ".arrow")]
    foreign = sorted(name for name in there if name.startswith("shards/") and name not in names)
    kept: set[str] = set()
    for shard in manifest.shards:
        tar, index = f"shards/{shard.name}.tar", f"shards/{shard.name}.arrow"
        if index in there:
            if hashlib.sha256(remote.read(index)).hexdigest() != shard.index_sha256:
                foreign.append(index)
            elif there.get(tar) == shard.tar_bytes:
                kept |= {tar, index}
    if foreign:
        raise ValueError(f"{uri} holds shards of another dataset ({foreign[0]}): choose another place")
    sent = 0
    total, done = len(names) + 2, 0

    def count(size: int) -> None:
        nonlocal sent, done
        sent, done = sent + size, done + 1
        if on_file is not None:
            on_file(done, total)

    for shard in manifest.shards:
        for name, size, sha256 in (
            (f"shards/{shard.name}.tar", shard.tar_bytes, shard.tar_sha256),
            (f"shards/{shard.name}.arrow", shard.index_bytes, shard.index_sha256),
        ):
            if name in kept:
                count(0)
                continue
            path = directory / name
            if path.stat().st_size != size or file_sha256(path) != sha256:
                raise ValueError(f"{path} is not the file that {MANIFEST} names; see `lewm shards verify {directory}`")
            remote.upload(path, name)
            count(size)
    for name, data in ((EPISODES, episodes), (MANIFEST, text)):
        remote.write(name, data)
        count(len(data))
    return sent


def _snapshot(directory: Path) -> tuple[Manifest, bytes, bytes]:
    """A dataset's manifest, and the bytes of `episodes.arrow` and of the manifest, that belong together, also while
    more is collected; ValueError when the directory is no dataset."""
    for _ in range(_ATTEMPTS):
        manifest, text = load(directory), (directory / MANIFEST).read_bytes()
        episodes = (directory / EPISODES).read_bytes()
        if to_bytes(manifest) == text and hashlib.sha256(episodes).hexdigest() == manifest.episodes_sha256:
            return manifest, episodes, text
        time.sleep(_PAUSE)
    raise ValueError(f"{directory}/{EPISODES} does not belong to its {MANIFEST}; run `lewm collect` again")
