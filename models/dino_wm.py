"""A twin of DINO-WM that costs what DINO-WM costs, to time LeWM's planning against. It predicts nothing of use.

DINO-WM (Zhou et al., arXiv 2411.04983) keeps all patch tokens of a frozen DINOv2 ViT-S/14 as its latent: an image of
196 px is 196 tokens of 384 numbers. Its predictor, a transformer over three frames of such tokens with a frame-causal
mask, takes the embedding of the action block (10 numbers) beside every token, 394 in all, and gives the tokens of the
next frame. Time depends on shapes and not on values, so the weights are random and nothing is downloaded.

The shapes are those of the published settings without proprioception, which LeWM was timed against: six layers,
16 heads of 64, MLPs of 2,048. A plan of five blocks from one frame is 121 GFLOP, 436 times LeWM's. DINOv2's LayerScale
is not here because it folds into the weights before it, and the position table has the size of the image.

`predict` computes as the published code does: whole frames under a dense mask, for every step anew. `rollout` is the
same function for less: keys and values of frames whose positions stay are kept, which is exact until the window of
three slides; a frame's queries meet only the keys they may see; the last layer works on the last frame alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vit import ViT

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Past = tuple[Tensor, Tensor]
"""Keys and values of earlier frames in one layer, each (B, heads, frames * patches, head_dim)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoWMConfig:
    """The published shapes; smaller ones are for tests."""

    image_size: int = 196
    patch: int = 14
    width: int = 384
    encoder_depth: int = 12
    encoder_heads: int = 6
    action_width: int = 10
    """Numbers that embed an action block, beside every token."""
    history: int = 3
    depth: int = 6
    heads: int = 16
    head_dim: int = 64
    hidden: int = 2048

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def latent_dim(self) -> int:
        """All patch tokens of a frame in one vector."""
        return self.patches * self.width


class PatchEncoder(ViT):
    """DINOv2's use of a vision transformer: (N, 3, h, w) to the patch tokens after the last norm, (N, P, width)."""

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 1:])


class FrameBlock(nn.Module):
    """A pre-norm transformer block over frames of tokens; a token sees its own frame and the frames before it."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BNW: Tensor, seen_NN: Tensor) -> Tensor:
        """All tokens under a dense mask, True where the row's token sees the column's."""
        q, k, v = self._heads(self.qkv(self.norm(x_BNW)), 3)
        return self._finish(x_BNW, F.scaled_dot_product_attention(q, k, v, attn_mask=seen_NN))

    def extend(self, x_BNW: Tensor, past: Past | None, patches: int, *, last_only: bool) -> tuple[Tensor, Past]:
        """Whole frames that follow those in `past`; with `last_only` the tokens of the last one. And all keys."""
        y = self.norm(x_BNW)
        if last_only:
            inner = len(self.qkv.weight) // 3
            (q,) = self._heads(F.linear(y[:, -patches:], self.qkv.weight[:inner]), 1)
            k, v = self._heads(F.linear(y, self.qkv.weight[inner:]), 2)
            x_BNW = x_BNW[:, -patches:]
        else:
            q, k, v = self._heads(self.qkv(y), 3)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen, asked = k.shape[2], q.shape[2]
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, begin : begin + patches],
                k[:, :, : seen - asked + begin + patches],
                v[:, :, : seen - asked + begin + patches],
            )
            for begin in range(0, asked, patches)
        ]
        return self._finish(x_BNW, torch.cat(parts, dim=2)), (k, v)

    def _heads(self, x_BNW: Tensor, parts: int) -> list[Tensor]:
        return [part.transpose(1, 2) for part in x_BNW.unflatten(-1, (parts, self.heads, -1)).unbind(dim=2)]

    def _finish(self, x_BNW: Tensor, seen: Tensor) -> Tensor:
        x_BNW = x_BNW + self.out(seen.transpose(1, 2).flatten(2))
        return x_BNW + self.mlp(x_BNW)


class DinoWM(nn.Module):
    """The twin. Latents are the patch tokens of a frame in one vector (..., D), D = 196 * 384."""

    pixel_mean: Tensor
    pixel_std: Tensor
    seen: Tensor

    def __init__(self, config: DinoWMConfig, action_block: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = PatchEncoder(
            channels=3,
            image_size=config.image_size,
            patch=config.patch,
            width=config.width,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
            hidden=4 * config.width,
        )
        self.action_encoder = nn.Linear(action_block, config.action_width)
        width = config.width + config.action_width
        self.positions = nn.Parameter(torch.randn(1, config.history * config.patches, width))
        self.blocks = nn.ModuleList(
            FrameBlock(width, config.heads, config.head_dim, config.hidden) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.register_buffer("pixel_mean", 255 * torch.tensor(IMAGENET_MEAN))
        self.register_buffer("pixel_std", 255 * torch.tensor(IMAGENET_STD))
        frame = torch.arange(config.history * config.patches) // config.patches
        self.register_buffer("seen", frame[:, None] >= frame[None])

    def encode(self, frames: Tensor) -> Tensor:
        """Raw frames (N, h, w, 3) uint8 to latents (N, D)."""
        pixels = (frames.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return self.encoder(pixels.permute(0, 3, 1, 2)).flatten(1)

    def predict(self, z_BTD: Tensor, action_BTK: Tensor) -> Tensor:
        """The latent after each of T <= history frames, (B, T, D), in one pass under the dense mask."""
        x = self._tokens(z_BTD, self.action_encoder(action_BTK))
        x = x + self.positions[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, self.seen[: x.shape[1], : x.shape[1]])
        return self._latents(self.norm(x))

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None) -> Tensor:
        """Latents (B, H, D) that follow T <= history known ones (B, T, D), or (B, D) for one, under a plan.

        `past_BPK` holds the P = T - 1 blocks that led from each to the next. Gives what repeated `predict` over the
        last `history` frames gives.
        """
        if z_BTD.dim() == 2:
            z_BTD = z_BTD[:, None]
        known, history = z_BTD.shape[1], self.config.history
        blocks_BNK = plan_BHK if past_BPK is None else torch.cat([past_BPK, plan_BHK], dim=1)
        action = self.action_encoder(blocks_BNK)
        latents = list(z_BTD.unbind(dim=1))
        blocks: list[FrameBlock] = list(self.blocks)  # pyright: ignore[reportAssignmentType]
        pasts: dict[FrameBlock, Past] = {}
        fed = 0
        for end in range(known, action.shape[1] + 1):
            begin = max(0, end - history)
            if begin:
                # The window has slid: every frame has another position, and nothing of before holds.
                fed, pasts = begin, {}
            z_BTD = torch.stack(latents[fed:end], dim=1)
            x = self._tokens(z_BTD, action[:, fed:end])
            first = (fed - begin) * self.config.patches
            x = x + self.positions[:, first : first + x.shape[1]]
            for block in blocks:
                last_only = block is blocks[-1]
                x, pasts[block] = block.extend(x, pasts.get(block), self.config.patches, last_only=last_only)
            latents.append(self._latents(self.norm(x))[:, 0])
            fed = end
        return torch.stack(latents[known:], dim=1)

    def _tokens(self, z_BTD: Tensor, action_BTA: Tensor) -> Tensor:
        """Patch tokens with their frame's action beside each, (B, T * P, width + action_width)."""
        patches_BTPW = z_BTD.unflatten(-1, (self.config.patches, self.config.width))
        action_BTPA = action_BTA[:, :, None].expand(-1, -1, self.config.patches, -1)
        return torch.cat([patches_BTPW, action_BTPA], dim=-1).flatten(1, 2)

    def _latents(self, x_BNW: Tensor) -> Tensor:
        """The patch part of predicted tokens, (B, T, D)."""
        return x_BNW[..., : self.config.width].unflatten(1, (-1, self.config.patches)).flatten(2)
