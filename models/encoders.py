"""Encoders: stacked frames to one latent vector.

`conv` is for CPUs: a 4x4 patch convolution, two strided 3x3 convolutions and a hidden layer, about 7 MFLOP forward for
an observation of 64 px at width 32. `resnet18` is the article's encoder: the standard ResNet-18 (He et al. 2016) with
its 7x7/2 stem and max-pool, then Linear 512 -> D. `vit` is the paper's: a vision transformer (`models.vit`) and a
projection head with BatchNorm. All take the n frames of an observation as 3n channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import ProjectionHead
from models.norm import GlobalBatchNorm
from models.vit import ViT


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Which encoder, and how wide: ResNet-18 has its standard widths. Fields from `patch` on apply to `vit` alone."""

    kind: Literal["conv", "resnet18", "vit"] = "conv"
    width: int = 32
    """Channels of the first convolution of `conv`, whose later ones have twice as many; width of `vit`."""
    hidden: int = 512
    """Units of the hidden layer before the latent of `conv`; of the MLP in a block of `vit`."""
    patch: int = 14
    """Side of a patch in pixels."""
    depth: int = 12
    heads: int = 3
    head_hidden: int = 2048
    """Units of the projection head."""


def build_encoder(config: EncoderConfig, *, channels: int, image_size: int, latent_dim: int) -> nn.Module:
    """A module from (N, channels, image_size, image_size) floats to (N, latent_dim)."""
    if config.kind == "conv":
        return _conv_encoder(config, channels, image_size, latent_dim)
    if config.kind == "vit":
        return ViTEncoder(config, channels, image_size, latent_dim)
    return ResNet18(channels, latent_dim)


def _conv_encoder(config: EncoderConfig, channels: int, image_size: int, latent_dim: int) -> nn.Sequential:
    if image_size % 16:
        raise ValueError(f"the conv encoder takes images whose size is a multiple of 16, not {image_size}")
    width = config.width
    stages: list[nn.Module] = []
    for fan_in, fan_out, kernel, stride, padding in (
        (channels, width, 4, 4, 0),
        (width, 2 * width, 3, 2, 1),
        (2 * width, 2 * width, 3, 2, 1),
    ):
        stages += [
            nn.Conv2d(fan_in, fan_out, kernel, stride, padding, bias=False),
            GlobalBatchNorm(fan_out),
            nn.ReLU(inplace=True),
        ]
    features = 2 * width * (image_size // 16) ** 2
    head = (
        nn.Flatten(),
        nn.Linear(features, config.hidden, bias=False),
        GlobalBatchNorm(config.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden, latent_dim),
    )
    return nn.Sequential(*stages, *head)


class ViTEncoder(nn.Module):
    """A vision transformer and the projection head behind its class token."""

    def __init__(self, config: EncoderConfig, channels: int, image_size: int, latent_dim: int) -> None:
        super().__init__()
        self.trunk = ViT(
            channels=channels,
            image_size=image_size,
            patch=config.patch,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=config.hidden,
        )
        self.head = ProjectionHead(config.width, config.head_hidden, latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.norm1 = GlobalBatchNorm(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.norm2 = GlobalBatchNorm(fan_out)
        self.shortcut = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), GlobalBatchNorm(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for images of 32 px and more, with a linear layer to the latent."""

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
            GlobalBatchNorm(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        fan_in = 64
        for fan_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [_BasicBlock(fan_in, fan_out, stride), _BasicBlock(fan_out, fan_out, 1)]
            fan_in = fan_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
