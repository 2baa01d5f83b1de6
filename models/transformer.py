"""The paper's predictor: a causal transformer over a few latents whose blocks are steered by the actions (AdaLN-zero).

Every block normalises without learned scale, then shifts, scales and gates by a linear function of that step's action
embedding. The gates start at zero, so a fresh predictor is its final LayerNorm (Peebles and Xie 2023; LeWM, section 3).
A second, learned LayerNorm stands inside attention and MLP, as in the released model.

`forward` predicts from every prefix of a window at once, for training. `rollout` imagines: it slides a window of at
most `history` latents over its own predictions. Embeddings and modulations of all blocks are computed once before the
loop, and the last layer works on the last token alone. Every step has shapes that depend on its number only, and
nothing waits for the device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import ActionEncoder, ProjectionHead


class Modulation(NamedTuple):
    """Shift, scale and gate of attention and of the MLP, each (B, T, D)."""

    attention_shift: Tensor
    attention_scale: Tensor
    attention_gate: Tensor
    mlp_shift: Tensor
    mlp_scale: Tensor
    mlp_gate: Tensor


class CausalAttention(nn.Module):
    """Multi-head attention in which a step sees itself and what came before."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x_BTD: Tensor, *, last_only: bool = False) -> Tensor:
        qkv = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(dim=2))
        drop = self.dropout if self.training else 0.0
        if last_only:
            seen = F.scaled_dot_product_attention(q[:, :, -1:], k, v, dropout_p=drop)
        else:
            seen = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
        return F.dropout(self.out(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)


class AdaLNBlock(nn.Module):
    """One block of the transformer; `modulate` turns action embeddings into what `forward` takes."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = CausalAttention(dim, heads, head_dim, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulate(self, action_BTD: Tensor) -> Modulation:
        return Modulation(*self.modulation(F.silu(action_BTD)).chunk(6, dim=-1))

    def forward(self, x_BTD: Tensor, by: Modulation, *, last_only: bool = False) -> Tensor:
        """The tokens after this block; with `last_only` just the last one, (B, 1, D)."""
        seen = self.attention(self.norm1(x_BTD) * (1 + by.attention_scale) + by.attention_shift, last_only=last_only)
        if last_only:
            x_BTD = x_BTD[:, -1:]
            by = Modulation(*(part[:, -1:] for part in by))
        x_BTD = x_BTD + by.attention_gate * seen
        return x_BTD + by.mlp_gate * self.mlp(self.norm2(x_BTD) * (1 + by.mlp_scale) + by.mlp_shift)


class TransformerPredictor(nn.Module):
    """Latents (B, T, D) and standardised action blocks (B, T, K), T <= history, to next latents (B, T, D)."""

    def __init__(
        self,
        *,
        latent_dim: int,
        action_block: int,
        history: int,
        depth: int,
        heads: int,
        head_dim: int,
        hidden: int,
        head_hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.history = history
        self.action_encoder = ActionEncoder(action_block, latent_dim)
        self.positions = nn.Parameter(torch.randn(1, history, latent_dim))
        self.blocks = nn.ModuleList(AdaLNBlock(latent_dim, heads, head_dim, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(latent_dim)
        self.head = ProjectionHead(latent_dim, head_hidden, latent_dim)

    def modulations(self, action_BTK: Tensor) -> list[Modulation]:
        """One modulation a block, for action blocks (B, T, K) of any number."""
        action_BTD = self.action_encoder(action_BTK)
        return [block.modulate(action_BTD) for block in self.blocks]  # pyright: ignore[reportCallIssue]

    def forward(self, z_BTD: Tensor, action_BTK: Tensor) -> Tensor:
        if z_BTD.shape[1] > self.history:
            raise ValueError(f"the predictor looks at {self.history} latents at most, not {z_BTD.shape[1]}")
        return self.head(self._run(z_BTD, self.modulations(action_BTK)))

    def _run(self, z_BTD: Tensor, modulations: list[Modulation], *, last_only: bool = False) -> Tensor:
        x = z_BTD + self.positions[:, : z_BTD.shape[1]]
        last = len(modulations) - 1
        for index, (block, by) in enumerate(zip(self.blocks, modulations, strict=True)):
            x = block(x, by, last_only=last_only and index == last)
        return self.norm(x)

    def rollout(self, z_BTD: Tensor, action_BNK: Tensor) -> Tensor:
        """Latents (B, N - T + 1, D) that follow T known ones.

        `action_BNK` holds the T - 1 standardised blocks between the known latents, then the plan.
        """
        known = z_BTD.shape[1]
        modulations = self.modulations(action_BNK)
        latents = list(z_BTD.unbind(dim=1))
        for end in range(known, action_BNK.shape[1] + 1):
            begin = max(0, end - self.history)
            window = [Modulation(*(part[:, begin:end] for part in by)) for by in modulations]
            x_B1D = self._run(torch.stack(latents[begin:], dim=1), window, last_only=True)
            latents.append(self.head(x_B1D[:, -1]))
        return torch.stack(latents[known:], dim=1)
