"""Files that are either absent or whole: temporary name, fsync, rename, fsync of the directory.

A temporary file carries a random token, so that two processes that were given the same name (a worker that was
believed dead, and its successor) never write the same file. A process killed at any instant leaves only files that
`remove_leftovers` recognises. It costs two fsyncs a file.
"""

import hashlib
import os
import re
import secrets
from pathlib import Path

TMP_SUFFIX = ".tmp"
_OURS = re.compile(r"(.+\.(?:tar|arrow|json))\.[0-9a-f]{8}\.tmp")
"""What `temporary` makes of the names of a dataset's files. Other temporary files are somebody else's."""


def temporary(path: Path) -> Path:
    """A fresh temporary name beside `path`: `<name>.<token>.tmp`."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{TMP_SUFFIX}")


def publish(tmp: Path, path: Path) -> None:
    """Rename a file that is already fsynced to its final name, durably."""
    os.replace(tmp, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and fsync its bytes (not its name)."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: at every instant a reader sees the old file or the new one, whole."""
    tmp = temporary(path)
    try:
        write_durably(tmp, data)
        publish(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hex, at hash speed (about 1.5 GB/s a core; the GIL is released)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(directory: Path) -> list[Path]:
    """Remove what killed writers left in a dataset; returns what was removed. Call it while no writer is running.

    Leftovers are temporary files, and tars that were renamed into place but whose index was not: the temporary index,
    written before the tar is renamed, tells such a tar from one that somebody else put there, which is left alone.
    """
    removed: list[Path] = []
    for tmp in sorted([*directory.glob(f"*{TMP_SUFFIX}"), *(directory / "shards").glob(f"*{TMP_SUFFIX}")]):
        ours = _OURS.fullmatch(tmp.name)
        if ours is None:
            continue
        final = tmp.with_name(ours[1])
        tar = final.with_suffix(".tar")
        doomed = [tmp]
        if final.suffix == ".arrow" and tmp.parent.name == "shards" and tar.exists() and not final.exists():
            doomed.insert(0, tar)  # the marker goes last, so that a kill in between changes nothing
        for path in doomed:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed
