"""Predictors: latents and action blocks to the next latents.

`mlp` is the article's: an MLP on concat(z_t, a_t) for every time step alone, so it is Markov and works for any
history. What it cannot see in one latent (velocity) must be in the observation, which is why presets that use it
stack frames, or in its recurrent memory (`models.memory`). `transformer` is the paper's (`models.transformer`).

Every predictor has `forward`, for training, and `rollout`, which imagines: (B, T, D) known latents and (B, N, K)
standardised blocks, the T - 1 past ones first, to the N - T + 1 latents that follow.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.memory import LatentMemory
from models.transformer import TransformerPredictor


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Which predictor, and how large. The fields from `depth` on apply to `transformer` alone."""

    kind: Literal["mlp", "transformer"] = "mlp"
    hidden: int = 512
    """Units of the two hidden layers of `mlp`, or of the MLP in a block of `transformer`."""
    memory: int = 0
    """Units of a recurrent memory before `mlp`, for tasks that even stacked frames observe in part; 0 for none."""
    depth: int = 6
    heads: int = 16
    head_dim: int = 64
    head_hidden: int = 2048
    """Units of the projection head behind the transformer."""
    dropout: float = 0.1


def build_predictor(config: PredictorConfig, *, latent_dim: int, action_block: int, history: int) -> nn.Module:
    """The predictor that `config` describes."""
    if config.kind == "mlp":
        return MLPPredictor(config, latent_dim=latent_dim, action_block=action_block)
    if config.memory:
        raise ValueError("a memory goes with the mlp predictor; give the transformer a longer history instead")
    return TransformerPredictor(
        latent_dim=latent_dim,
        action_block=action_block,
        history=history,
        depth=config.depth,
        heads=config.heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        head_hidden=config.head_hidden,
        dropout=config.dropout,
    )


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
        self.memory = LatentMemory(latent_dim, config.memory) if config.memory else None

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """With a memory, `z` is a sequence (B, T, D) and every step remembers those before it."""
        if self.memory is not None:
            z, _ = self.memory(z)
        return self.layers(torch.cat([z, action], dim=-1))

    def rollout(self, z_BTD: Tensor, action_BNK: Tensor) -> Tensor:
        known = z_BTD.shape[1]
        seen_BTD, state = (z_BTD, None) if self.memory is None else self.memory(z_BTD)
        z_BD = seen_BTD[:, -1]
        latents = []
        for step in range(known - 1, action_BNK.shape[1]):
            if latents and self.memory is not None:
                seen_B1D, state = self.memory(z_BD[:, None], state)
                z_BD = seen_B1D[:, 0]
            z_BD = self.layers(torch.cat([z_BD, action_BNK[:, step]], dim=-1))
            latents.append(z_BD)
        return torch.stack(latents, dim=1)
