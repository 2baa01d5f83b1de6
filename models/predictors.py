"""The predictor: latent and action block to the next latent.

`mlp` is the article's: an MLP on concat(z_t, a_t) for every time step alone, so it is Markov and works for any
history. What it cannot see in one latent (velocity) must be in the observation: that is why the presets that use it
stack frames.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Which predictor, and how large."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = 512
    """Units of the two hidden layers."""


class MLPPredictor(nn.Module):
    """(…, D) latents and (…, K) standardised action blocks to (…, D) predicted next latents."""

    def __init__(self, config: PredictorConfig, *, latent_dim: int, action_block: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim + action_block, config.hidden),
            nn.LayerNorm(config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, latent_dim),
        )

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([z, action], dim=-1))
