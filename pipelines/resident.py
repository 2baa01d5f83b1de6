"""The tier whose frames are all in the memory of the loader's device: a batch is a gather.

What crosses to the device is two numbers a window. The gather runs on a side stream, so that it overlaps the step, into
memory that is used again like any other slot's. On a CPU the same code gathers from memory.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.batch import BatchShape
from pipelines.columns import FlatColumns, first_frames
from pipelines.episodes import EpisodeTable
from pipelines.framecache import decode_all, is_cached, map_frames
from pipelines.source import Filled
from pipelines.staging import Handover, Slot
from pipelines.windows import WindowSpec


class TierError(ValueError):
    """The device has too little memory for a split's frames."""


class ResidentWindows:
    """Windows of a split whose frames, actions and states are in the memory of `device`.

    Frames come from the cache of decoded frames where they are there, else they are decoded. DamagedEpisodeError when a
    frame cannot be decoded; TierError when the device has too little memory.
    """

    tier = "gpu"

    def __init__(
        self, table: EpisodeTable, spec: WindowSpec, device: torch.device, *, with_state: bool, threads: int
    ) -> None:
        self._columns = columns = FlatColumns(table, with_state)
        shape = (columns.frames, table.size, table.size, 3)
        try:
            frames = torch.empty(shape, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            gigabytes = columns.frames * table.size**2 * 3 / 1e9
            raise TierError(f"{gigabytes:.1f} GB of frames do not fit on {device}: use another tier") from error
        _load(table, frames, threads)
        self._data = _Data(
            frames=_widest(frames.view(columns.frames, -1)),
            action=torch.from_numpy(columns.action).to(device),
            state=None if columns.state is None else torch.from_numpy(columns.state).to(device),
            frame_offsets=torch.from_numpy(spec.unique_offsets).to(device),
            step_offsets=torch.arange(spec.steps, device=device),
            state_offsets=torch.from_numpy(spec.state_offsets).to(device),
        )
        # A copy: an empty view would keep the whole array.
        columns.action, columns.state = columns.action[:0].copy(), None
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the frames are there before a side stream gathers them

    def slots(self, shape: BatchShape, device: torch.device, count: int) -> "list[ResidentSlot]":
        """Memory for `count` batches, on the device."""
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        return [ResidentSlot(shape, device, self._data, stream) for _ in range(count)]

    def fill(self, slot: "ResidentSlot", first: int, numbers: np.ndarray, starts: np.ndarray) -> Filled:
        """See `WindowSource`."""
        rows = slice(first, first + len(numbers))
        slot.places[0, rows] = self._columns.first_frame[numbers] + starts
        slot.places[1, rows] = self._columns.first_step[numbers] + starts
        return Filled(0, len(numbers) * len(self._data.frame_offsets))

    def close(self) -> None:
        """Nothing is open; the memory goes with the last reference."""


@dataclass(frozen=True, slots=True)
class _Data:
    """What is resident: flat arrays, and the offsets of a window's frames, steps and observations."""

    frames: Tensor
    action: Tensor
    state: Tensor | None
    frame_offsets: Tensor
    step_offsets: Tensor
    state_offsets: Tensor


class ResidentSlot(Slot):
    """Memory of one batch on the device. `places` (2, B) int64, on the host, is to be filled: where each window's t0 is
    among the frames, and among the steps."""

    def __init__(self, shape: BatchShape, device: torch.device, data: _Data, stream: torch.cuda.Stream | None) -> None:
        super().__init__(shape)
        self._device, self._data = device, data
        self._places = torch.zeros(2, shape.rows, dtype=torch.int64, pin_memory=stream is not None)
        self.places = self._places.numpy()
        self._frames = torch.empty(shape.frames, dtype=torch.uint8, device=device)
        self._action = torch.empty(shape.action, dtype=torch.float32, device=device)
        self._state = torch.empty(shape.state, dtype=torch.float32, device=device) if shape.state_size else None
        self._handover = None
        if stream is not None:
            self._handover = Handover(device, stream)
            self._handover.keep(self._frames, self._action, self._state)

    def send(self) -> None:
        with self._handover.sending() if self._handover else contextlib.nullcontext():
            frame, step = self._places.to(self._device, non_blocking=True)
            _gather(self._data.frames, frame, self._data.frame_offsets, self._frames)
            _gather(self._data.action, step, self._data.step_offsets, self._action)
            if self._state is not None and self._data.state is not None:
                _gather(self._data.state, frame, self._data.state_offsets, self._state)

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        if self._handover:
            self._handover.receive()
        return self._frames, self._action, self._state

    def release(self) -> None:
        if self._handover:
            self._handover.release()


def _gather(rows: Tensor, places: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Rows places[b] + offsets[u] of `rows` (N, R), one after the other, into the memory of `out`."""
    index = (places[:, None] + offsets).view(-1)
    width = rows.shape[1] * rows.element_size() // out.element_size()
    torch.index_select(rows, 0, index, out=out.view(len(index), width).view(rows.dtype))


def _widest(rows: Tensor) -> Tensor:
    """The same bytes as wider integers where they divide: a gather costs by the element."""
    return rows.view(torch.int64) if rows.shape[1] % 8 == 0 else rows


def _load(table: EpisodeTable, frames: Tensor, threads: int) -> None:
    """Put all frames of the split into `frames`."""

    def put(first: int, images: np.ndarray) -> None:
        frames[first : first + len(images)].copy_(torch.from_numpy(images))

    if not all(is_cached(dataset) for dataset in table.datasets):
        decode_all(table, put, threads=threads, name=f"decoding frames into the memory of {frames.device}")
        return
    files = [map_frames(dataset, threads=threads) for dataset in table.datasets]
    begins = [first_frames(dataset.lengths) for dataset in table.datasets]
    places = zip(*table.datasets_of(table.numbers), first_frames(table.lengths), table.lengths, strict=True)
    for dataset, i, first, steps in places:
        begin = begins[dataset][i]
        put(int(first), files[dataset][begin : begin + steps + 1].copy())
