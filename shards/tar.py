"""Write the tar of a shard: uncompressed ustar, the same bytes for the same members on every machine.

These are the bytes that `webdataset.TarWriter(user="lewm", group="lewm", mode=0o444, mtime=0)` writes, which a test
compares. webdataset itself is not used: importing it imports torch, in every collecting actor,
and the tarfile module behind it builds each header field by field, most of which never change here.
"""

from typing import Protocol

from shards.members import BLOCK, padded

_RECORD = 20 * BLOCK
_OWNER = b"lewm"
_MODE_TO_GID = b"0000444\0" + 2 * b"0000000\0"
_MTIME = b"%011o\0" % 0
_TYPE_TO_DEVICES = b"0" + bytes(100) + b"ustar\x0000" + 2 * _OWNER.ljust(32, b"\0") + bytes(16)
_FIXED_SUM = sum(_MODE_TO_GID + _MTIME + 8 * b" " + _TYPE_TO_DEVICES)
_TAIL = bytes(BLOCK - 345)


class Sink(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes, /) -> int: ...


class TarWriter:
    """Appends members to a new tar. `offset` is the number of bytes written so far."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.offset = 0

    def write(self, name: str, data: bytes) -> int:
        """Append a member; returns where in the tar its bytes begin. The name has at most 100 bytes."""
        begin = self.offset + BLOCK
        self._sink.write(header(name, len(data)))
        self._sink.write(data)
        self.offset = begin + padded(len(data))
        if gap := self.offset - begin - len(data):
            self._sink.write(bytes(gap))
        return begin

    def close(self) -> None:
        """Write the end of the tar: two blocks of zeros, and more up to a whole record of 20."""
        end = -(-(self.offset + 2 * BLOCK) // _RECORD) * _RECORD
        self._sink.write(bytes(end - self.offset))
        self.offset = end


def header(name: str, size: int) -> bytes:
    """The ustar header of a plain file, without time or owner."""
    encoded = name.encode()
    assert len(encoded) <= 100, f"member name {name!r} is longer than a ustar header holds"
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _MODE_TO_GID, digits, _MTIME, checksum, _TYPE_TO_DEVICES, _TAIL))
