"""From members to pixels: the frames of a window, decoded straight into their place in a batch.

libjpeg-turbo, through simplejpeg, releases the GIL and writes into the buffer it is given, so that threads decode side
by side and no frame is copied. 64 px frames of quality 95 take about 25 microseconds each on one core. Whatever is
wrong with a frame's bytes becomes a `DamagedEpisodeError`, which names shard, episode and member. Damage that leaves a
JPEG decodable goes unnoticed here: the checksums that find it cover whole episodes (`lewm shards verify`).

`StreamedFrames` is the tier that reads from shards. A tier is anything with its `fill` and `close`.
"""

import errno
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg

from pipelines.episodes import EpisodeTable
from pipelines.reader import ShardReader
from shards.codec import frame_suffix, read_npy
from shards.members import LIMITS

_UNREADABLE = {errno.ENOENT, errno.EIO}


class DamagedEpisodeError(ValueError):
    """A frame that cannot be read or decoded: `shard` is the tar's path, `episode` the key, `member` its name in it."""

    def __init__(self, shard: Path, episode: str, member: str, reason: str) -> None:
        super().__init__(f"{shard}: episode {episode}: member {member} is damaged: {reason} (see `lewm shards verify`)")
        self.shard, self.episode, self.member = shard, episode, member


class FrameSource(Protocol):
    """Where decoded frames come from."""

    def fill(self, episode: int, frames: np.ndarray, out: np.ndarray) -> int:
        """Write frames number `frames` (U,) of an episode into `out` (U, h, w, 3) uint8; returns the bytes read."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class StreamedFrames:
    """Frames decoded from the shards of a table's datasets, on every request anew. Thread-safe."""

    def __init__(self, table: EpisodeTable) -> None:
        self._table = table
        self._reader = ShardReader()

    def fill(self, episode: int, frames: np.ndarray, out: np.ndarray) -> int:
        """See `FrameSource`; DamagedEpisodeError when a frame cannot be read or decoded."""
        dataset, number = self._table.locate(episode)
        members = dataset.frame_members(number)
        sizes = members.size[frames].tolist()
        at = 0
        try:
            if max(sizes) > LIMITS["jpg"]:
                at = sizes.index(max(sizes))
                raise ValueError(f"{sizes[at]} bytes, over the limit of {LIMITS['jpg']} for a frame")
            views = self._reader.read(members.path, members.offset[frames].tolist(), sizes)
            for at, (view, size) in enumerate(zip(views, sizes, strict=True)):
                if len(view) < size:
                    raise ValueError(f"the tar is cut off: {len(view)} of {size} bytes are there")
                decode_into(view, out[at])
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _UNREADABLE:
                raise
            key, suffix = dataset.keys[number], frame_suffix(int(frames[at]), dataset.manifest.common.encoding)
            raise DamagedEpisodeError(members.path, key, f"{key}.{suffix}", str(error)) from error
        return sum(sizes)

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()


def decode_into(data: memoryview, out: np.ndarray) -> None:
    """Decode a frame's member, JPEG or npy, into `out` (h, w, 3) uint8, contiguous; ValueError when it is not such a
    frame. A JPEG larger than `out` is refused before a pixel is decoded."""
    if data[:1] == b"\x93":
        image = read_npy(data)
        if image.dtype == np.uint8 and image.shape == out.shape:
            out[:] = image
    else:
        image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    if image.shape != out.shape or image.dtype != np.uint8:
        raise ValueError(f"the frame is {image.dtype}{list(image.shape)}, expected uint8{list(out.shape)}")
