"""A recurrent memory over latents, for tasks that a few stacked frames observe only in part.

A GRU reads the latents in order and adds a linear function of its state to each. The addition starts at zero, so a
model with a fresh memory is the model without. It reaches as far back as the window (training) or the known latents
(planning) do.
"""

import torch
from torch import Tensor, nn


class LatentMemory(nn.Module):
    """(B, T, D) latents and a state (B, units) or None to latents that remember, (B, T, D), and the state after."""

    def __init__(self, latent_dim: int, units: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(latent_dim, units)
        self.out = nn.Linear(units, latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        seen = []
        for z_BD in z_BTD.unbind(dim=1):
            state = self.cell(z_BD, state)
            seen.append(z_BD + self.out(state))
        return torch.stack(seen, dim=1), state
