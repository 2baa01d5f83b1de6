"""One step of training: a batch in, the model and its optimizer changed. The loop and the benchmark take the same step.

All that is random in a step (projections, dropout) is seeded by the configuration's seed, the step and the rank, so no
generator's state has to be saved for a run to go on as it would have. Nothing here waits for the device.
"""

import math
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import objective
from models.collectives import world_size
from models.lewm import LeWM, LeWMConfig, Losses
from trainers.config import TrainConfig
from trainers.optim import build_optimizer, learning_rate
from trainers.rundir import window_spec


class Diverged(RuntimeError):
    """The loss stopped being finite; the last checkpoint is from before it."""


class Learner:
    """A model in training on this rank, its optimizer, and the step that changes both."""

    def __init__(self, config: TrainConfig, model: LeWM, rank: int = 0) -> None:
        self.config, self.model, self.rank = config, model, rank
        self.device, self.dtype = model.pixel_mean.device, model.pixel_mean.dtype
        self.optimizer = build_optimizer(model, config.optim)
        # Buffers are the same on every rank by construction, so that none are sent.
        trained: nn.Module = (
            DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            if world_size() > 1
            else model
        )
        compiled = config.compile == "on" or (config.compile == "auto" and self.device.type == "cuda")
        self.trained = torch.compile(trained) if compiled else trained
        self._observations = Observations(config.model, self.device, view=not compiled)
        self.lr = 0.0
        self._first_bad = torch.full((4,), -1.0, dtype=torch.float64, device=self.device)

    def step(self, frames: Tensor, action: Tensor, step: int) -> tuple[Losses, Tensor]:
        """Take step number `step`, counted from 0, on distinct frames (B, U, h, w, 3) and action blocks (B, H, K): its
        losses, and the norm of the gradient before it was clipped."""
        config = self.config
        self.lr = learning_rate(config.optim, step, config.stop_step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        torch.manual_seed(((config.seed * 1_000_003 + step) * 65_537 + self.rank) & 0x7FFF_FFFF_FFFF_FFFF)
        directions = objective.directions(
            config.model.regularizer,
            config.model.latent_dim,
            seed=config.seed,
            step=step,
            device=self.device,
            dtype=self.dtype,
        )
        with autocast(config, self.device):
            losses = self.trained(self._observations(frames), action.to(self.dtype), directions)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        self.optimizer.step()
        self._watch(step, losses, grad_norm)
        return losses, grad_norm

    def check_finite(self) -> None:
        """`Diverged` if any step so far had a loss or gradient that was not finite, on any rank. Waits for the device.

        Every rank calls it at the same steps, and all raise or none does.
        """
        latest = self._first_bad[0].clone()
        if world_size() > 1:
            dist.all_reduce(latest, op=dist.ReduceOp.MAX)
        if latest < 0:
            return
        step, *values = self._first_bad.tolist()
        names = ("prediction loss", "regularizer", "gradient norm")
        found = next(
            (f"the {name} is {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)),
            "a loss on another rank is not finite",
        )
        raise Diverged(f"{found} at step {int(step if step >= 0 else latest) + 1}: resume with a lower --optim.lr")

    def _watch(self, step: int, losses: Losses, grad_norm: Tensor) -> None:
        """Keep the first step that was not finite, on the device: looking at it would wait for the step to end."""
        values = torch.stack([losses.prediction, losses.regularizer, grad_norm.detach()]).double()
        now = torch.cat([torch.full((1,), float(step), dtype=torch.float64, device=self.device), values])
        keep = torch.isfinite(values).all() | (self._first_bad[0] >= 0)
        self._first_bad = torch.where(keep, self._first_bad, now)


class Observations:
    """The observations (B, H+1, n, h, w, 3) that the distinct frames (B, U, h, w, 3) of windows make.

    Observations share frames, so that stacks are a view of them, without a copy, where they lie at equal distances.
    A compiled step gets a copy: memory that overlaps itself is not for it.
    """

    def __init__(self, config: LeWMConfig, device: torch.device, *, view: bool) -> None:
        index = window_spec(config).observation_index
        self._index = torch.as_tensor(index, device=device)
        self._shape = index.shape
        self._steps = tuple(int(np.diff(index, axis=axis).max(initial=0)) for axis in (0, 1))
        even = sum(step * number for step, number in zip(self._steps, np.indices(index.shape), strict=True))
        self._view = view and bool((index == even).all())

    def __call__(self, frames: Tensor) -> Tensor:
        if not self._view:
            return frames[:, self._index]
        batch, frame, *pixel = frames.stride()
        strides = (batch, *(step * frame for step in self._steps), *pixel)
        return frames.as_strided((len(frames), *self._shape, *frames.shape[2:]), strides, frames.storage_offset())


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The precision of a forward pass, in training as in validation."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
