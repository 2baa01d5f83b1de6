"""The memory that batches live in, and their way to the device.

A slot is one batch's memory, filled by the decode threads and used again for a later batch. Its life: rows are filled;
`send` (by the thread that fills the last row); `receive` (by the consumer, when the batch is delivered); `release` (by
the consumer, when it may be overwritten). On the CPU the consumer gets the memory itself and all three do nothing.

For CUDA the filled memory is pinned, and every slot has its twin on the device. `send` starts the copy on a side stream
at once, so that it overlaps whatever step the consumer's stream is at. Two events order the streams, and the host never
waits for a step: `copied` holds back the consumer's stream until the pixels are there, `released` the side stream until
the kernels that read the slot's earlier batch are done. Frames cross as uint8, a quarter of their float32 bytes.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipelines.batch import BatchShape

_SHIFT = 16
"""Bytes by which frames are off a multiple of twice as many. Rows that begin at a multiple of 32 are written by
libjpeg-turbo past the cache, which is slower at 64 px than writing all others through it."""


class Slot:
    """What all slots have: `episode` and `start`, int64 (B,), on the host."""

    def __init__(self, shape: BatchShape) -> None:
        self.episode, self.start = np.empty(shape.rows, np.int64), np.empty(shape.rows, np.int64)

    def send(self) -> None:
        """Start to move the filled batch to the device."""

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frames, action and state on the device, ready for the consumer's current stream."""
        raise NotImplementedError

    def release(self) -> None:
        """Allow the next `send`, after what the consumer's current stream has been asked to do so far."""


class HostSlot(Slot):
    """Memory of one batch on the host: `frames`, `action`, `state` (None without state columns) to be filled, and
    `images`, the B x U single frames."""

    def __init__(self, shape: BatchShape, pin: bool = False) -> None:
        super().__init__(shape)
        size = math.prod(shape.frames)
        room = size + 2 * _SHIFT
        # numpy asks for huge pages, which torch does not: without them each window takes some page faults.
        memory = (
            torch.empty(room, dtype=torch.uint8, pin_memory=True) if pin else torch.from_numpy(np.empty(room, np.uint8))
        )
        begin = (_SHIFT - memory.data_ptr()) % (2 * _SHIFT)
        self._frames = memory[begin : begin + size].view(shape.frames)
        self._action = torch.empty(shape.action, dtype=torch.float32, pin_memory=pin)
        self._state = torch.empty(shape.state, dtype=torch.float32, pin_memory=pin) if shape.state_size else None
        self.frames, self.action = self._frames.numpy(), self._action.numpy()
        self.state = None if self._state is None else self._state.numpy()
        self.images = [list(row) for row in self.frames]

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._frames, self._action, self._state


class Handover:
    """The two events that order the side stream and the consumer's, for one slot on `device`."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device, self._stream = device, stream
        self._copied, self._released = torch.cuda.Event(), torch.cuda.Event()
        # The allocator may have handed out memory that kernels on this stream still read.
        self._released.record(torch.cuda.current_stream(device))

    def keep(self, *tensors: Tensor | None) -> None:
        """Memory that is freed while the side stream uses it is not handed out before it is done."""
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(self._stream)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Do what is in the block on the side stream, after the slot's earlier batch was released."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._released)
            yield
            self._copied.record(self._stream)

    def receive(self) -> None:
        """Hold back the consumer's stream until the batch is there."""
        torch.cuda.current_stream(self._device).wait_event(self._copied)

    def release(self) -> None:
        """Hold back the side stream until the consumer's stream is done with the batch."""
        self._copied.synchronize()  # the pinned memory is about to be overwritten; the copy was over long ago
        self._released.record(torch.cuda.current_stream(self._device))


class CudaSlot(HostSlot):
    """A pinned slot with its twin on a CUDA device, copied on `stream`."""

    def __init__(self, shape: BatchShape, device: torch.device, stream: torch.cuda.Stream) -> None:
        super().__init__(shape, pin=True)
        self._frames_there = torch.empty_like(self._frames, device=device, pin_memory=False)
        self._action_there = torch.empty_like(self._action, device=device, pin_memory=False)
        self._state_there = None
        if self._state is not None:
            self._state_there = torch.empty_like(self._state, device=device, pin_memory=False)
        self._handover = Handover(device, stream)
        self._handover.keep(self._frames_there, self._action_there, self._state_there)

    def send(self) -> None:
        with self._handover.sending():
            self._frames_there.copy_(self._frames, non_blocking=True)
            self._action_there.copy_(self._action, non_blocking=True)
            if self._state is not None and self._state_there is not None:
                self._state_there.copy_(self._state, non_blocking=True)

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        self._handover.receive()
        return self._frames_there, self._action_there, self._state_there

    def release(self) -> None:
        self._handover.release()


def make_slots(shape: BatchShape, device: torch.device, count: int) -> list[HostSlot]:
    """`count` slots for batches on `device`; ValueError for a device that is neither CPU nor CUDA."""
    if device.type == "cpu":
        return [HostSlot(shape) for _ in range(count)]
    if device.type != "cuda":
        raise ValueError(f"device {str(device)!r} is not supported; use 'cpu' or 'cuda'")
    stream = torch.cuda.Stream(device)
    return [CudaSlot(shape, device, stream) for _ in range(count)]
