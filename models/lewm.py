"""LeWM: an encoder, a predictor and two losses, trained end to end from pixels.

    z_j   = encoder(o_j)                          o_j: n stacked uint8 frames
    zhat  = predictor(z_j, a_j)                   a_j: a block of k raw actions
    loss  = mean (z_{j+1} - zhat_{j+1})^2 + weight * regularizer(z)

No stop-gradient, no EMA: gradients flow into the targets too, and only the regularizer stands against collapse
(LeWM, arXiv 2603.19312, section 3). Pixel scaling and action standardisation are buffers, so a checkpoint, a planner
and an exported model take raw frames and raw actions.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models import regularizers
from models.collectives import global_sum, world_size
from models.encoders import EncoderConfig, build_encoder
from models.precision import at_least_float32
from models.predictors import MLPPredictor, PredictorConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RegularizerConfig:
    """The term against collapse and its weight in the loss."""

    kind: Literal["kl", "sigreg"] = "kl"
    weight: float = 0.1
    directions: int = 1024
    """Random projections of SIGReg."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeWMConfig:
    """A whole model. H, k, n and s of a window belong to the preset (see `pipelines.windows`)."""

    image_size: int = 64
    latent_dim: int = 128
    history: int = 1
    """H: predictions in a training window, and latents that the predictor may look at."""
    frame_skip: int = 1
    """k: decisions between two observations, and actions in a block."""
    stack: int = 3
    """n: frames in an observation. One frame shows no velocity."""
    stack_stride: int = 1
    """s: decisions between two stacked frames."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)


@dataclass(frozen=True, slots=True)
class Losses:
    """What one batch gives: `total` is this rank's share, to be differentiated; the terms are for the record."""

    total: Tensor
    prediction: Tensor
    regularizer: Tensor
    z_BJD: Tensor


class LeWM(nn.Module):
    """The world model. Fill the buffers with `set_statistics` before training."""

    pixel_mean: Tensor
    pixel_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: LeWMConfig, action_size: int) -> None:
        super().__init__()
        self.config = config
        self.action_size = action_size
        self.encoder = build_encoder(
            config.encoder, channels=3 * config.stack, image_size=config.image_size, latent_dim=config.latent_dim
        )
        self.encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.predictor = MLPPredictor(
            config.predictor, latent_dim=config.latent_dim, action_block=config.frame_skip * action_size
        )
        self.register_buffer("pixel_mean", torch.full((3,), 127.5))
        self.register_buffer("pixel_std", torch.full((3,), 127.5))
        self.register_buffer("action_mean", torch.zeros(action_size))
        self.register_buffer("action_std", torch.ones(action_size))

    def set_statistics(self, *, pixel_mean: Tensor, pixel_std: Tensor, action_mean: Tensor, action_std: Tensor) -> None:
        """Fill the standardisation buffers: (3,) pixels on the 0..255 scale, (A,) raw actions. No std may be 0."""
        for name, value in (
            ("pixel_mean", pixel_mean),
            ("pixel_std", pixel_std),
            ("action_mean", action_mean),
            ("action_std", action_std),
        ):
            buffer = getattr(self, name)
            if value.shape != buffer.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, the model takes {tuple(buffer.shape)}")
            buffer.copy_(value)

    def encode(self, frames: Tensor) -> Tensor:
        """Raw observations (..., n, h, w, 3) uint8, oldest frame first, to latents (..., D)."""
        *batch, n, height, width, channels = frames.shape
        expected = (self.config.stack, self.config.image_size, self.config.image_size, 3)
        if (n, height, width, channels) != expected:
            raise ValueError(f"an observation has shape {(n, height, width, channels)}, the model takes {expected}")
        # (N, h, w, n*3) in memory, which seen as (N, n*3, h, w) is channels-last: one copy, of bytes.
        pixels = frames.reshape(-1, n, height, width, channels).permute(0, 2, 3, 1, 4).flatten(3)
        pixels = pixels.permute(0, 3, 1, 2).to(self.pixel_mean.dtype)
        scale = (1 / self.pixel_std).repeat(n).view(1, -1, 1, 1)
        shift = (-self.pixel_mean / self.pixel_std).repeat(n).view(1, -1, 1, 1)
        return self.encoder(torch.addcmul(shift, pixels, scale)).view(*batch, -1)

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        """Latents (..., D) and raw action blocks (..., K), oldest action first, to the next latents (..., D)."""
        blocks = action.shape[-1] // self.action_size
        standard = (action - self.action_mean.repeat(blocks)) / self.action_std.repeat(blocks)
        return self.predictor(z, standard)

    def rollout(self, z_BD: Tensor, plan_BHK: Tensor) -> Tensor:
        """Latents (B, H, D) that follow `z_BD` under the raw action blocks of a plan, by repeated prediction."""
        latents = []
        for step in range(plan_BHK.shape[1]):
            z_BD = self.predict(z_BD, plan_BHK[:, step])
            latents.append(z_BD)
        return torch.stack(latents, dim=1)

    def forward(self, frames: Tensor, action_BHK: Tensor, directions_DM: Tensor | None = None) -> Losses:
        """Losses of a batch of windows: frames (B, J, n, h, w, 3) uint8, raw action blocks (B, H, K).

        With W ranks the prediction term is W/G times the sum over this rank's items of a global batch of G, so that
        DDP's mean of gradients is that of the global batch. SIGReg needs `directions_DM`
        (`regularizers.random_directions`).
        """
        z_BJD = self.encode(frames)
        error = at_least_float32(self.predict(z_BJD[:, :-1], action_BHK) - z_BJD[:, 1:]).square()
        items = global_sum(error.new_tensor(float(len(error))))
        prediction = world_size() * error.mean(dim=(1, 2)).sum() / items
        if self.config.regularizer.kind == "kl":
            regularizer = regularizers.gaussian_kl(z_BJD)
        else:
            if directions_DM is None:
                raise ValueError("sigreg needs random directions: pass directions_DM")
            regularizer = regularizers.sigreg(z_BJD, directions_DM)
        total = prediction + self.config.regularizer.weight * regularizer
        return Losses(total, prediction.detach(), regularizer.detach(), z_BJD.detach())
