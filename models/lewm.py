"""LeWM: an encoder, a predictor and two losses, trained end to end from pixels.

    z_j   = encoder(o_j)                          o_j: n stacked uint8 frames
    zhat  = predictor(z_<=j, a_<=j)               a_j: a block of k raw actions
    loss  = mean (z_{j+1} - zhat_{j+1})^2 + weight * regularizer(z)

No stop-gradient, no EMA: gradients flow into the targets too, and only the regularizer stands against collapse
(LeWM, arXiv 2603.19312, section 3). Pixel scaling and action standardisation are buffers, so a checkpoint, a planner
and an exported model take raw frames and raw actions.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.collectives import global_sum, world_size
from models.encoders import EncoderConfig, build_encoder
from models.objective import RegularizerConfig, regularize
from models.precision import at_least_float32
from models.predictors import PredictorConfig, build_predictor


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
    rollout_weight: float = 0.0
    """Weight of the open-loop error: the window's H latents imagined from its first one alone. 0 for none."""

    def __post_init__(self) -> None:
        for name in ("image_size", "latent_dim", "history", "frame_skip", "stack", "stack_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.rollout_weight < math.inf:
            raise ValueError(f"rollout_weight must be finite and not negative, not {self.rollout_weight}")
        if self.rollout_weight and self.history == 1:
            raise ValueError("a rollout loss over one step is the prediction loss: set history to 2 or more")


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
        self.predictor = build_predictor(
            config.predictor,
            latent_dim=config.latent_dim,
            action_block=config.frame_skip * action_size,
            history=config.history,
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
            if not torch.isfinite(value).all() or ("std" in name and (value <= 0).any()):
                raise ValueError(f"{name} is {value.tolist()}: means must be finite and deviations above 0")
            buffer.copy_(value)

    def encode(self, frames: Tensor) -> Tensor:
        """Raw observations (..., n, h, w, 3) uint8, oldest frame first, to latents (..., D)."""
        if frames.dtype != torch.uint8:
            raise ValueError(f"observations are raw uint8 frames, not {frames.dtype}: the model scales them itself")
        *batch, n, height, width, channels = frames.shape
        expected = (self.config.stack, self.config.image_size, self.config.image_size, 3)
        if (n, height, width, channels) != expected:
            raise ValueError(f"an observation has shape {(n, height, width, channels)}, the model takes {expected}")
        # Channels-last: (N, h, w, n*3) in memory, seen as (N, n*3, h, w). Bytes are moved, a frame at a time, and whole
        # rows are scaled in place: on a CPU a permuted copy and a scale a channel take a third of a small model's step.
        pixels = torch.cat(frames.unbind(-4), dim=-1)
        scale = (1 / self.pixel_std).repeat(n * width)
        shift = (-self.pixel_mean / self.pixel_std).repeat(n * width)
        pixels = pixels.reshape(-1, height, width * n * channels).to(self.pixel_mean.dtype).mul_(scale).add_(shift)
        return self.encoder(pixels.view(-1, height, width, n * channels).permute(0, 3, 1, 2)).view(*batch, -1)

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        """Next latents of latents (B, T, D) and raw action blocks (B, T, K), both oldest first, T <= history.

        Step t sees steps up to t. One latent each, (B, D) and (B, K), gives (B, D).
        """
        block = self.config.frame_skip * self.action_size
        if action.shape != (*z.shape[:-1], block):
            # One block for several latents would be broadcast.
            raise ValueError(
                f"latents {tuple(z.shape)} need action blocks {(*z.shape[:-1], block)}, not {tuple(action.shape)}"
            )
        if z.dim() == 2:
            return self.predictor(z[:, None], self._standardise(action)[:, None])[:, 0]
        return self.predictor(z, self._standardise(action))

    def _standardise(self, action: Tensor) -> Tensor:
        blocks = action.shape[-1] // self.action_size
        return (action - self.action_mean.repeat(blocks)) / self.action_std.repeat(blocks)

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None) -> Tensor:
        """Latents (B, H, D) that follow under the raw action blocks of a plan, by repeated prediction.

        `z_BTD` holds the latents known so far, oldest first, at most `history` of them ((B, D) for one), and
        `past_BPK` the P = T - 1 raw blocks that led from each to the next.
        """
        if z_BTD.dim() == 2:
            z_BTD = z_BTD[:, None]
        known, given = z_BTD.shape[1], 0 if past_BPK is None else past_BPK.shape[1]
        if not 1 <= known <= self.config.history or given != known - 1:
            raise ValueError(
                f"a rollout takes 1 to {self.config.history} known latents and one past action block fewer, "
                f"not {known} and {given}"
            )
        if len(plan_BHK) != len(z_BTD):
            raise ValueError(f"{len(z_BTD)} starts need as many plans, not {len(plan_BHK)}")
        blocks_BNK = plan_BHK if past_BPK is None else torch.cat([past_BPK, plan_BHK], dim=1)
        return self.predictor.rollout(z_BTD, self._standardise(blocks_BNK))  # pyright: ignore[reportCallIssue]

    def forward(self, frames: Tensor, action_BHK: Tensor, directions_DM: Tensor | None = None) -> Losses:
        """Losses of a batch of windows: frames (B, J, n, h, w, 3) uint8, raw action blocks (B, H, K).

        With W ranks the prediction term is W/G times the sum over this rank's items of a global batch of G, so that
        DDP's mean of gradients is that of the global batch. Regularizers on random directions need `directions_DM`
        (`models.objective.directions`). NaN or infinite actions are a ValueError on a CPU; on a GPU, where looking
        would wait for the device, they show as a loss that is not finite.
        """
        if action_BHK.device.type == "cpu" and not torch.isfinite(action_BHK).all():
            raise ValueError("the batch has NaN or infinite actions: verify the dataset (`lewm shards verify`)")
        z_BJD = self.encode(frames)
        prediction = self._mean_square(self.predict(z_BJD[:, :-1], action_BHK) - z_BJD[:, 1:])
        regularizer = regularize(self.config.regularizer, z_BJD, directions_DM)
        total = prediction + self.config.regularizer.weight * regularizer
        if self.config.rollout_weight:
            imagined_BHD = self.rollout(z_BJD[:, :1], action_BHK)
            total = total + self.config.rollout_weight * self._mean_square(imagined_BHD - z_BJD[:, 1:])
        return Losses(total, prediction.detach(), regularizer.detach(), z_BJD.detach())

    @staticmethod
    def _mean_square(difference_BHD: Tensor) -> Tensor:
        """Mean square over the global batch, as this rank's share of it."""
        error = at_least_float32(difference_BHD).square()
        items = global_sum(error.new_tensor(float(len(error))))
        return world_size() * error.mean(dim=(1, 2)).sum() / items
