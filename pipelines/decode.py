"""From members to pixels: the frames of a window, decoded straight into their place in a batch.

libjpeg-turbo, through simplejpeg, releases the GIL and writes into the buffer it is given, so that threads decode side
by side and no frame is copied. All the rest that is done for a window, the read included, is kept small, because only
decoding runs side by side; docs/results/loader.csv has what is left of decoding's own rate. Whatever is
wrong with a frame's bytes becomes a `DamagedEpisodeError`, which names shard, episode and member. Damage that leaves a
JPEG decodable goes unnoticed here: the checksums that find it cover whole episodes (`lewm shards verify`).

`StreamedWindows` is the tier that reads from shards.
"""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import simplejpeg
import torch

from pipelines.batch import BatchShape
from pipelines.episodes import EpisodeArrays, EpisodeTable
from pipelines.reader import Members, ShardReader
from pipelines.source import Filled
from pipelines.staging import HostSlot, make_slots
from pipelines.windows import WindowSpec
from shards.codec import frame_suffix, read_npy
from shards.members import LIMITS
from shards.mirror import origin_of

_AHEAD_BYTES = 4 << 20
"""Most bytes of the members that are read at a time, of as many windows as they are; those of one window at least."""
_LIMIT = LIMITS["jpg"]
_NPY = 0x93
"""First byte of an npy file. A JPEG begins with another."""
UNREADABLE = {errno.ENOENT, errno.EIO}
"""What an OSError says of a file that is not there or cannot be read, for which waiting is no help."""


class DamagedEpisodeError(ValueError):
    """A frame that cannot be read or decoded: `shard` is the tar's path, `episode` the key, `member` its name in it."""

    def __init__(self, shard: Path, episode: str, member: str, reason: str) -> None:
        super().__init__(
            f"{origin_of(shard)}: episode {episode}: member {member} is damaged: {reason} (see `lewm shards verify`)"
        )
        self.shard, self.episode, self.member = shard, episode, member


class _Request:
    """Frames `steps` of an episode, asked for: where their `members` are, and, once fetched, `views` of their bytes."""

    __slots__ = ("episode", "members", "steps", "views")

    def __init__(self, episode: EpisodeArrays, steps: np.ndarray | slice) -> None:
        self.episode, self.steps = episode, steps
        self.members = Members(episode.path, episode.offset[steps].tolist(), episode.size[steps].tolist())
        self.views: list[memoryview] = []


class FrameReader:
    """Reads and decodes frames of a table's episodes, on every request anew. Thread-safe.

    DamagedEpisodeError from every step when a frame cannot be read or decoded.
    """

    def __init__(self, table: EpisodeTable) -> None:
        self._table = table
        self._reader = ShardReader()

    def request(self, episode: EpisodeArrays, steps: np.ndarray | slice) -> _Request:
        """Find frames `steps` of an episode, and have the disk fetch them."""
        request = _Request(episode, steps)
        sizes = request.members.sizes
        if max(sizes) > _LIMIT:
            at = sizes.index(max(sizes))
            raise self._damaged(request, at, f"{sizes[at]} bytes, over the limit of {_LIMIT} for a frame")
        try:
            self._reader.expect(request.members)
        except OSError as error:
            self._raise_damaged(request, error)
        return request

    def fetch(self, request: _Request) -> None:
        """Read the bytes."""
        try:
            request.views = self._reader.read(request.members)
        except OSError as error:
            self._raise_damaged(request, error)

    def decode(self, request: _Request, out: Sequence[np.ndarray] | np.ndarray) -> int:
        """Decode into the images `out`, each (h, w, 3) uint8; returns how many bytes they had."""
        sizes, at = request.members.sizes, 0
        try:
            for view in request.views:
                if len(view) < sizes[at]:
                    raise ValueError(f"the tar is cut off: {len(view)} of {sizes[at]} bytes are there")
                decode_into(view, out[at])
                at += 1
        except ValueError as error:
            raise self._damaged(request, at, str(error)) from error
        finally:
            request.views = []
        return sum(sizes)

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _raise_damaged(self, request: _Request, error: OSError) -> NoReturn:
        if error.errno not in UNREADABLE:
            raise error
        raise self._damaged(request, 0, str(error)) from error

    def _damaged(self, request: _Request, at: int, reason: str) -> DamagedEpisodeError:
        episode = request.episode
        dataset, i = self._table.locate(episode.number)
        step = int(np.arange(len(episode.size))[request.steps][at])
        key, suffix = dataset.keys[i], frame_suffix(step, dataset.manifest.common.encoding)
        return DamagedEpisodeError(episode.path, key, f"{key}.{suffix}", reason)


class StreamedWindows:
    """Windows whose frames are read and decoded when they are asked for: the tier that needs no memory.

    The disk is told of all rows before the first is read: with nothing in the page cache, frames of 64 px come at 1.3
    times the rate. The members of several windows are read before the first of them is decoded: a thread that gives up
    the GIL for each read, between decoding, more often finds the other waiting for it.
    """

    tier = "stream"

    def __init__(self, table: EpisodeTable, spec: WindowSpec) -> None:
        self._table, self._reader = table, FrameReader(table)
        self._steps, self._states, self._offsets = spec.steps, spec.state_offsets, spec.unique_offsets
        manifests = [dataset.manifest for dataset in table.datasets]
        stored = sum(shard.tar_bytes for manifest in manifests for shard in manifest.shards)
        window = len(self._offsets) * stored / sum(manifest.n_frames for manifest in manifests)
        self._ahead = max(1, int(_AHEAD_BYTES / window))
        low, high = int(self._offsets[0]), int(self._offsets[-1]) + 1
        self._span = (low, high) if high - low == len(self._offsets) else None

    def slots(self, shape: BatchShape, device: torch.device, count: int) -> list[HostSlot]:
        """Memory for `count` batches."""
        return make_slots(shape, device, count)

    def fill(self, slot: HostSlot, first: int, numbers: np.ndarray, starts: np.ndarray) -> Filled:
        """See `WindowSource`."""
        read, damaged = 0, []
        requests: list[tuple[int, _Request]] = []
        for row, (number, start) in enumerate(zip(numbers.tolist(), starts.tolist(), strict=True), first):
            episode = self._table.arrays(number)
            slot.action[row] = episode.action[start : start + self._steps].reshape(slot.action.shape[1:])
            if slot.state is not None:
                slot.state[row] = episode.state[start + self._states]
            # A slice is cheaper than an index array, and most windows' frames are neighbours.
            steps = slice(start + self._span[0], start + self._span[1]) if self._span else start + self._offsets
            try:
                requests.append((row, self._reader.request(episode, steps)))
            except DamagedEpisodeError as error:
                damaged.append((row, error))
        for begin in range(0, len(requests), self._ahead):
            fetched = []
            for row, request in requests[begin : begin + self._ahead]:
                try:
                    self._reader.fetch(request)
                    fetched.append((row, request))
                except DamagedEpisodeError as error:
                    damaged.append((row, error))
            for row, request in fetched:
                try:
                    read += self._reader.decode(request, slot.images[row])
                except DamagedEpisodeError as error:
                    damaged.append((row, error))
        return Filled(read, 0, tuple(sorted(damaged, key=lambda each: each[0])))

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()


def decode_into(data: memoryview, out: np.ndarray) -> None:
    """Decode a frame's member, JPEG or npy, into `out` (h, w, 3) uint8, contiguous; ValueError when it is not such a
    frame. A JPEG larger than `out` is refused before a pixel is decoded."""
    if data and data[0] == _NPY:
        image = read_npy(data)
        if image.dtype == np.uint8 and image.shape == out.shape:
            out[:] = image
            return
    else:
        # by position, which is faster than by name: no fast DCT, no fast upsampling, no scaling
        image = simplejpeg.decode_jpeg(data, "RGB", False, False, 0, 0, 1, out)
        if image.shape == out.shape:
            return
    raise ValueError(f"the frame is {image.dtype}{list(image.shape)}, expected uint8{list(out.shape)}")
