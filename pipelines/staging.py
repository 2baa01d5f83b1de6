"""The memory that batches live in, and their way to the device.

A slot is one batch's memory, filled by the decode threads and used again for a later batch. Its life: rows are filled;
`send` (by the thread that fills the last row); `receive` (by the consumer, when the batch is delivered); `release` (by
the consumer, when it may be overwritten). On the CPU the consumer gets the memory itself and all three do nothing.

For CUDA the filled memory is pinned, and every slot has its twin on the device. `send` starts the copy on a side stream
at once, so that it overlaps whatever step the consumer's stream is at. Two events order the streams, and the host never
waits for a step: `copied` holds back the consumer's stream until the pixels are there, `released` the side stream until
the kernels that read the slot's earlier batch are done. Frames cross as uint8, a quarter of their float32 bytes.
"""

import numpy as np
import torch
from torch import Tensor

from pipelines.batch import BatchShape


class Slot:
    """Memory of one batch on the host: `frames`, `action`, `state` (None without state columns) to be filled, and
    `episode`, `start` int64 (B,)."""

    def __init__(self, shape: BatchShape, pin: bool = False) -> None:
        self._frames = torch.empty(shape.frames, dtype=torch.uint8, pin_memory=pin)
        self._action = torch.empty(shape.action, dtype=torch.float32, pin_memory=pin)
        self._state = torch.empty(shape.state, dtype=torch.float32, pin_memory=pin) if shape.state_size else None
        self.frames, self.action = self._frames.numpy(), self._action.numpy()
        self.state = None if self._state is None else self._state.numpy()
        self.episode, self.start = np.empty(shape.rows, np.int64), np.empty(shape.rows, np.int64)

    def send(self) -> None:
        """Start to move the filled batch to the device."""

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frames, action and state on the device, ready for the consumer's current stream."""
        return self._frames, self._action, self._state

    def release(self) -> None:
        """Allow the next `send`, after what the consumer's current stream has been asked to do so far."""


class CudaSlot(Slot):
    """A pinned slot with its twin on a CUDA device, copied on `stream`."""

    def __init__(self, shape: BatchShape, device: torch.device, stream: torch.cuda.Stream) -> None:
        super().__init__(shape, pin=True)
        self._stream = stream
        self._frames_there = torch.empty_like(self._frames, device=device, pin_memory=False)
        self._action_there = torch.empty_like(self._action, device=device, pin_memory=False)
        self._state_there = None
        if self._state is not None:
            self._state_there = torch.empty_like(self._state, device=device, pin_memory=False)
        for tensor in (self._frames_there, self._action_there, self._state_there):
            if tensor is not None:
                tensor.record_stream(stream)  # memory that is freed during a copy is not handed out before its end
        self._copied, self._released = torch.cuda.Event(), torch.cuda.Event()
        # The allocator may have handed out memory that kernels on this stream still read.
        self._released.record(torch.cuda.current_stream(device))

    def send(self) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._released)
            self._frames_there.copy_(self._frames, non_blocking=True)
            self._action_there.copy_(self._action, non_blocking=True)
            if self._state is not None and self._state_there is not None:
                self._state_there.copy_(self._state, non_blocking=True)
            self._copied.record(self._stream)

    def receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        torch.cuda.current_stream(self._frames_there.device).wait_event(self._copied)
        return self._frames_there, self._action_there, self._state_there

    def release(self) -> None:
        self._copied.synchronize()  # the pinned memory is about to be overwritten; the copy was over long ago
        self._released.record(torch.cuda.current_stream(self._frames_there.device))


def make_slots(shape: BatchShape, device: torch.device, count: int) -> list[Slot]:
    """`count` slots for batches on `device`; ValueError for a device that is neither CPU nor CUDA."""
    if device.type == "cpu":
        return [Slot(shape) for _ in range(count)]
    if device.type != "cuda":
        raise ValueError(f"device {str(device)!r} is not supported; use 'cpu' or 'cuda'")
    stream = torch.cuda.Stream(device)
    return [CudaSlot(shape, device, stream) for _ in range(count)]
