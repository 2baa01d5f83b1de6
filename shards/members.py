"""Tar members: their names, their limits, and the one scanner of tar headers.

Shards are untrusted input. A member is a plain file named `<key>.<suffix>`, whose type is one of three that can be
read without running anything: `.jpg`, `.npy` (never pickled) and `.json`. Everything else is refused before its bytes
are read: pickles, links, devices, directories, GNU extension headers, pax headers that set more than times and
owners, absolute names, `..`, oversized members, members that reach outside the file. Memory stays at one header of
512 bytes, whatever a tar claims.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
_END = bytes(BLOCK)
LIMITS = {"jpg": 64 << 20, "npy": 256 << 20, "json": 1 << 20}
"""Known member types and the most bytes that a member may have."""
MAX_EPISODE_BYTES = 4 << 30
"""Most bytes that an episode may have: in its tar, and again as decoded frames."""
MAX_STEPS = 99_999
MAX_KEY = 88
"""A ustar name has 100 bytes; the longest suffix is `.action.npy`."""

_NAME = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9_/-]*)\.([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")

_PAX = re.compile(rb"([1-9][0-9]{0,4}) ([A-Za-z]+)=")
_PAX_KEYS = {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}
_MAX_PAX = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: sample key, suffix (without the dot), and where its bytes are."""

    key: str
    suffix: str
    offset: int
    size: int


def check_member(name: str, size: int) -> tuple[str, str]:
    """(key, suffix) of a member that may be read; ValueError for any other."""
    if name.startswith("/") or ".." in name or "\\" in name or ":" in name:
        raise ValueError(f"member {name!r}: the name is absolute or leaves the dataset")
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"member {name!r}: the name is not <key>.<suffix>")
    key, suffix = match.groups()
    kind = suffix.rpartition(".")[2]
    if kind not in LIMITS:
        raise ValueError(f"member {name!r}: type {kind!r} is not read; allowed are {', '.join(LIMITS)}")
    if not 0 <= size <= LIMITS[kind]:
        raise ValueError(f"member {name!r}: {size} bytes, over the limit of {LIMITS[kind]} for {kind}")
    return key, suffix


def padded(size: int) -> int:
    """Bytes that a member's data takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def scan(path: Path) -> Iterator[Member]:
    """Members of an uncompressed tar, in order; ValueError names the bad member."""
    end = path.stat().st_size
    with open(path, "rb", buffering=1 << 20) as file:
        position = 0
        while True:
            file.seek(position)
            header = file.read(BLOCK)
            if len(header) < BLOCK:
                raise ValueError(f"{path}: the tar is cut off at byte {position} of {end}")
            if header == _END:
                break
            try:
                name, size, kind = _parse_header(header)
                if kind == tarfile.XHDTYPE:
                    position += BLOCK + _harmless(file.read(min(size, _MAX_PAX + 1)), size)
                    continue
                if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise ValueError(f"member {name!r} has type {kind!r}; only plain files are read")
                key, suffix = check_member(name, size)
            except ValueError as error:
                raise ValueError(f"{path}: at byte {position}: {error}") from error
            offset = position + BLOCK
            position = offset + padded(size)
            if position > end:
                raise ValueError(f"{path}: member {name!r} of {size} bytes reaches past the end of the file")
            yield Member(key, suffix, offset, size)


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """Name, size and type of a member. (tarfile's parser obeys extension headers.)"""
    checksum = sum((header[:148] + header[156:]).translate(None, b"\0")) + 8 * ord(" ")  # most bytes are zeros
    if _octal(header[148:156]) != checksum:
        raise ValueError("this is no tar header: its checksum does not hold")
    name = _text(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        name = f"{_text(header[345:500])}/{name}"
    size = header[124:136]
    return name, int.from_bytes(size[1:], "big") if size[0] == 0x80 else _octal(size), header[156:157]


def _harmless(records: bytes, size: int) -> int:
    """Bytes that a pax header's records take in the tar; ValueError unless they say only times and owners. Stock
    WebDataset writes one before each member, for the fraction of a second in its time."""
    if size > _MAX_PAX or len(records) < size:
        raise ValueError(f"pax header of {size} bytes is cut off, or over the limit of {_MAX_PAX}")
    rest = records
    while rest:
        match = _PAX.match(rest)
        length = int(match[1]) if match else 0
        if not match or not match.end() < length <= len(rest):
            raise ValueError(f"malformed pax header {rest[:32]!r}")
        if match[2] not in _PAX_KEYS:
            raise ValueError(f"pax header sets {match[2].decode()!r}; only plain files are read")
        rest = rest[length:]
    return padded(size)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8")


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError(f"this is no tar header: {field!r} is no octal number")
    return int(digits, 8)
