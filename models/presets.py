"""Presets: named, complete model configurations, as Python functions.

`tiny` trains on two CPU cores in minutes. `article` is the LeWorldModel article's model. Both stack three frames,
because their predictor is Markov and one frame shows no velocity. `released` and `paper` are the authors' model, whose
predictor sees three latents; `dmc` and `metaworld` are the same at 64 px with patches of 8 px.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from models.encoders import EncoderConfig
from models.flops import forward_flops
from models.lewm import LeWM, LeWMConfig
from models.objective import RegularizerConfig
from models.predictors import PredictorConfig


def tiny() -> LeWMConfig:
    """About a million parameters for CPUs, tests and the demo.

    Four decisions between observations make the prediction worth something at 50 decisions a second. The KL term is
    light: with more weight the latents spend themselves on looking Gaussian, and less of the state can be read.
    """
    return LeWMConfig(
        latent_dim=256,
        frame_skip=4,
        encoder=EncoderConfig(kind="conv", width=32, hidden=512),
        predictor=PredictorConfig(hidden=512),
        regularizer=RegularizerConfig(kind="kl", weight=0.02),
    )


def article() -> LeWMConfig:
    """The LeWorldModel article: ResNet-18 to 256-d, MLP predictor 256 + K -> 1536 -> 1536 -> 256, KL / D at 0.1.

    The article does not say how velocity gets into the latent of a Markov predictor; three stacked frames put it there.
    """
    return LeWMConfig(
        latent_dim=256,
        encoder=EncoderConfig(kind="resnet18"),
        predictor=PredictorConfig(hidden=1536),
        regularizer=RegularizerConfig(kind="kl", weight=0.1),
    )


def released() -> LeWMConfig:
    """LeWM as its authors released it: ViT-tiny/14 at 224 px, causal AdaLN transformer, SIGReg at 0.09.

    18,034,478 parameters for 2-d actions in blocks of 5; their published weights load into it.
    """
    return _vit_preset(image_size=224, patch=14, weight=0.09)


def paper() -> LeWMConfig:
    """LeWM as its paper says: `released` with SIGReg at 0.1."""
    return _vit_preset(image_size=224, patch=14, weight=0.1)


def dmc() -> LeWMConfig:
    """`released` for dm_control at 64 px: patches of 8 px, blocks of 4 decisions (of 2 control steps each)."""
    return _vit_preset(image_size=64, patch=8, weight=0.09, frame_skip=4)


def metaworld() -> LeWMConfig:
    """`released` for Meta-World at 64 px: patches of 8 px, blocks of 5 decisions."""
    return _vit_preset(image_size=64, patch=8, weight=0.09)


def _vit_preset(*, image_size: int, patch: int, weight: float, frame_skip: int = 5) -> LeWMConfig:
    return LeWMConfig(
        image_size=image_size,
        latent_dim=192,
        history=3,
        frame_skip=frame_skip,
        stack=1,
        encoder=EncoderConfig(kind="vit", width=192, hidden=768, patch=patch),
        predictor=PredictorConfig(kind="transformer", hidden=2048),
        regularizer=RegularizerConfig(kind="sigreg", weight=weight),
    )


PRESETS: dict[str, Callable[[], LeWMConfig]] = {
    "tiny": tiny,
    "article": article,
    "released": released,
    "paper": paper,
    "dmc": dmc,
    "metaworld": metaworld,
}


def preset(name: str) -> LeWMConfig:
    """The model configuration called `name`."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]()


@dataclass(frozen=True, slots=True)
class PresetRow:
    """What a preset costs, for one action size."""

    preset: str
    image: int
    stack: int
    history: int
    frame_skip: int
    latent_dim: int
    encoder: str
    predictor: str
    regularizer: str
    encoder_parameters: int
    predictor_parameters: int
    parameters: int
    encode_mflop: float
    """Forward MFLOP of encoding one observation (a multiply-add counts as two)."""
    predict_mflop: float
    """Forward MFLOP of predicting from one latent."""


def describe(action_size: int = 1) -> list[PresetRow]:
    """One row a preset: shapes, parameters and counted FLOPs."""
    return [_describe(name, make(), action_size) for name, make in PRESETS.items()]


def _describe(name: str, config: LeWMConfig, action_size: int) -> PresetRow:
    model = LeWM(config, action_size).eval()
    frames = torch.zeros(1, config.stack, config.image_size, config.image_size, 3, dtype=torch.uint8)
    action = torch.zeros(1, config.frame_skip * action_size)
    with torch.no_grad():
        z_BD = model.encode(frames)
    return PresetRow(
        preset=name,
        image=config.image_size,
        stack=config.stack,
        history=config.history,
        frame_skip=config.frame_skip,
        latent_dim=config.latent_dim,
        encoder=config.encoder.kind,
        predictor=config.predictor.kind,
        regularizer=f"{config.regularizer.kind} x {config.regularizer.weight:g}",
        encoder_parameters=_count(model.encoder),
        predictor_parameters=_count(model.predictor),
        parameters=_count(model),
        encode_mflop=forward_flops(lambda: model.encode(frames)) / 1e6,
        predict_mflop=forward_flops(lambda: model.predict(z_BD, action)) / 1e6,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
