"""The module that is registered: raw frames and raw actions in, latents out, no pickle and no project code needed."""

import numpy as np
from torch import Tensor, nn

from models.lewm import LeWM


class WorldModel(nn.Module):
    """forward(frames (B, n, h, w, 3) uint8, action (B, K) float32) -> (latent (B, D), next latent (B, D))."""

    def __init__(self, model: LeWM) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        z_BD = self.model.encode(frames)
        return z_BD, self.model.predict(z_BD, action)


def example_inputs(model: LeWM, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the right shape and type, for tracing and for the registry's example."""
    config = model.config
    shape = (batch, config.stack, config.image_size, config.image_size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return frames, np.zeros((batch, config.frame_skip * model.action_size), dtype=np.float32)
