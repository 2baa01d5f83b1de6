"""Acting from pixels with a frozen LeWM: frames in, actions out, for several episodes side by side.

Every decision encodes the newest observation once, and either takes the prior's action or plans. What was seen before
stays with the agent: the heads read latents a block apart, the predictor its history, both as in training; before the
first frame there is the first frame.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.control import ControlHeads
from models.lewm import LeWM

Mode = Literal["prior", "plan"]


class LatentHistory:
    """What E episodes have shown so far: frames for the next stack, latents and actions of all decisions."""

    def __init__(self, model: LeWM, frames_EHWC: np.ndarray) -> None:
        self.model = model
        config = model.config
        self._offsets = np.arange(1 - config.stack, 1) * config.stack_stride
        self._frames = [frames_EHWC]
        self._latents: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._encode()

    def extend(self, action_EA: np.ndarray, frames_EHWC: np.ndarray) -> None:
        """Note the decisions that were taken, (E, A), and the frames that they led to."""
        self._actions.append(torch.as_tensor(action_EA, device=self.model.pixel_mean.device))
        self._frames.append(frames_EHWC)
        del self._frames[: int(self._offsets[0]) - 1]
        self._encode()

    def window(self, count: int) -> Tensor:
        """(E, count, D): the latents up to the present one, a block apart."""
        block, now = self.model.config.frame_skip, len(self._latents) - 1
        return torch.stack([self._latents[max(0, now - back * block)] for back in reversed(range(count))], dim=1)

    def known(self) -> tuple[Tensor, Tensor]:
        """Latents (E, P + 1, D) and the raw action blocks (E, P, K) between them, as many as the predictor may look at
        and as whole blocks have passed."""
        block, now = self.model.config.frame_skip, len(self._latents) - 1
        past = min(self.model.config.history - 1, now // block)
        latents = self.window(past + 1)
        if past == 0:
            return latents, latents.new_zeros(len(latents), 0, block * self.model.action_size)
        steps = torch.stack(self._actions[now - past * block :], dim=1)
        return latents, steps.view(len(latents), past, -1)

    @torch.no_grad()
    def _encode(self) -> None:
        newest = len(self._frames) - 1
        stack = np.stack([self._frames[max(0, newest + offset)] for offset in self._offsets], axis=1)
        self._latents.append(self.model.encode(torch.from_numpy(stack).to(self.model.pixel_mean.device)).float())


@torch.no_grad()
def imagined_prior(model: LeWM, heads: ControlHeads, history: LatentHistory, horizon: int) -> tuple[Tensor, Tensor]:
    """The blocks (E, horizon, K) that the prior takes one after the other, in imagination, and the latents
    (E, horizon, D) that follow each."""
    z, past = history.known()
    window = history.window(heads.config.window)
    plan: list[Tensor] = []
    imagined = z[:, :0]
    for _ in range(horizon):
        plan.append(heads.prior(window))
        imagined = model.rollout(z, torch.stack(plan, dim=1), past).float()
        window = torch.cat([window, imagined[:, -1:]], dim=1)[:, 1:]
    return torch.stack(plan, dim=1), imagined
