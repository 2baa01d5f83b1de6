"""How fast training goes: steps and samples a second, waiting for data, and the share of the matmul ceiling.

MFU here is counted FLOPs of a step (forward counted by torch, backward taken as twice that) over what a large matrix
multiplication reaches on this device, measured at the start; not over a number from a data sheet.
"""

import time
from dataclasses import dataclass

import torch

from models.flops import forward_flops
from models.lewm import LeWM


def matmul_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of a square matrix product on `device`: best of the repeats that fit into `seconds`."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, started = float("inf"), time.perf_counter()
    torch.mm(a, a)
    while time.perf_counter() - started < seconds:
        synchronize(device)
        begin = time.perf_counter()
        torch.mm(a, a)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best if best < float("inf") else float("nan")


def step_flops(model: LeWM, batch_size: int) -> float:
    """FLOPs of a training step on `batch_size` windows: three times the counted forward pass."""
    config = model.config
    device = model.pixel_mean.device
    shape = (1, config.history + 1, config.stack, config.image_size, config.image_size, 3)
    frames = torch.zeros(shape, dtype=torch.uint8, device=device)
    shape = (1, config.history, config.frame_skip * model.action_size)
    action = torch.zeros(shape, device=device, dtype=model.pixel_mean.dtype)
    training = model.training
    model.eval()
    counted = forward_flops(lambda: model.predict(model.encode(frames)[:, :-1], action))
    model.train(training)
    return 3.0 * batch_size * counted


@dataclass(slots=True)
class Meter:
    """Throughput between two log lines, the time left, and the most memory that a GPU was asked for."""

    batch_size: int
    flops_per_step: float
    ceiling: float
    stop_step: int
    device: torch.device
    _step: int = 0
    _time: float = 0.0
    _wait: float = 0.0

    def start(self, step: int, wait_seconds: float) -> None:
        """Begin to measure at `step`; `wait_seconds` is the loader's running total."""
        self._step, self._time, self._wait = step, time.perf_counter(), wait_seconds

    def read(self, step: int, wait_seconds: float) -> dict[str, float]:
        """Metrics since the last reading, under their final names."""
        elapsed = time.perf_counter() - self._time
        rate = (step - self._step) / elapsed
        metrics = {
            "train/steps_per_second": rate,
            "train/samples_per_second": rate * self.batch_size,
            "train/mfu": rate * self.flops_per_step / self.ceiling,
            "train/eta_seconds": (self.stop_step - step) / rate,
            "data/wait_share": (wait_seconds - self._wait) / elapsed,
        }
        if self.device.type == "cuda":
            metrics["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.start(step, wait_seconds)
        return metrics


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
