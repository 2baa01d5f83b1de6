"""The authors' published weights: their names and settings to ours, and back.

A published checkpoint is `weights.pt`, a state dict, beside `config.json`, which names the parts and their sizes. The
encoder is a Hugging Face ViT, whose parameters have other names in transformers 4 and 5; some files put `model.` before
every name. Everything maps one to one, and whatever is missing, left over or of another shape is an error. Pixels are
scaled by the ImageNet statistics: a model with others has the difference folded into its patch embedding when it is
exported, which is exact. Action statistics are not part of the file.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.objective import RegularizerConfig
from models.predictors import PredictorConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BUFFERS = {"pixel_mean", "pixel_std", "action_mean", "action_std"}

# (our name, theirs), as patterns for whole names; `#` stands for a layer's number, `*` for weight, bias or a buffer.
_COMMON = (
    ("encoder.trunk.class_token", "encoder.embeddings.cls_token"),
    ("encoder.trunk.positions", "encoder.embeddings.position_embeddings"),
    ("encoder.trunk.patches.*", "encoder.embeddings.patch_embeddings.projection.*"),
    ("encoder.trunk.norm.*", "encoder.layernorm.*"),
    ("encoder.head.layers.#.*", "projector.net.#.*"),
    ("predictor.head.layers.#.*", "pred_proj.net.#.*"),
    ("predictor.positions", "predictor.pos_embedding"),
    ("predictor.norm.*", "predictor.transformer.norm.*"),
    ("predictor.blocks.#.attention.norm.*", "predictor.transformer.layers.#.attn.norm.*"),
    ("predictor.blocks.#.attention.qkv.*", "predictor.transformer.layers.#.attn.to_qkv.*"),
    ("predictor.blocks.#.attention.out.*", "predictor.transformer.layers.#.attn.to_out.0.*"),
    ("predictor.blocks.#.mlp.#.*", "predictor.transformer.layers.#.mlp.net.#.*"),
    ("predictor.blocks.#.modulation.*", "predictor.transformer.layers.#.adaLN_modulation.1.*"),
    ("predictor.action_encoder.mix.*", "action_encoder.patch_embed.*"),
    ("predictor.action_encoder.expand.*", "action_encoder.embed.0.*"),
    ("predictor.action_encoder.contract.*", "action_encoder.embed.2.*"),
)
_VIT = {
    4: (
        ("norm1", "encoder.encoder.layer.#.layernorm_before"),
        ("norm2", "encoder.encoder.layer.#.layernorm_after"),
        ("query", "encoder.encoder.layer.#.attention.attention.query"),
        ("key", "encoder.encoder.layer.#.attention.attention.key"),
        ("value", "encoder.encoder.layer.#.attention.attention.value"),
        ("out", "encoder.encoder.layer.#.attention.output.dense"),
        ("fc1", "encoder.encoder.layer.#.intermediate.dense"),
        ("fc2", "encoder.encoder.layer.#.output.dense"),
    ),
    5: (
        ("norm1", "encoder.layers.#.layernorm_before"),
        ("norm2", "encoder.layers.#.layernorm_after"),
        ("query", "encoder.layers.#.attention.q_proj"),
        ("key", "encoder.layers.#.attention.k_proj"),
        ("value", "encoder.layers.#.attention.v_proj"),
        ("out", "encoder.layers.#.attention.o_proj"),
        ("fc1", "encoder.layers.#.mlp.fc1"),
        ("fc2", "encoder.layers.#.mlp.fc2"),
    ),
}


def read_config(values: Mapping[str, Any], weights: Mapping[str, Tensor], *, frame_skip: int) -> tuple[LeWMConfig, int]:
    """Our configuration and the action size of a published `config.json`; `frame_skip` is not written there."""
    try:
        encoder, predictor = values["encoder"], values["predictor"]
        action_block = int(values["action_encoder"]["input_dim"])
        latent_dim = int(predictor["input_dim"])
        image_size, patch = int(encoder["image_size"]), int(encoder["patch_size"])
        shape = PredictorConfig(
            kind="transformer",
            hidden=int(predictor["mlp_dim"]),
            depth=int(predictor["depth"]),
            heads=int(predictor["heads"]),
            head_dim=int(predictor.get("dim_head", 64)),
            head_hidden=int(values["pred_proj"]["hidden_dim"]),
            dropout=float(predictor.get("dropout", 0.0)),
        )
        history, head_hidden = int(predictor["num_frames"]), int(values["projector"]["hidden_dim"])
        widths = {int(predictor["hidden_dim"]), int(predictor.get("output_dim") or latent_dim)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the configuration is not a published LeWM's: {error} is missing or of another kind"
        ) from error
    if widths != {latent_dim}:
        raise ValueError("only predictors of the latent's own width are supported: hidden_dim must equal input_dim")
    if action_block < 1 or action_block % frame_skip:
        raise ValueError(f"blocks of {action_block} values are not {frame_skip} actions: give another --frame-skip")
    names = {_without_prefix(name) for name in weights}
    patches = next((t for n, t in weights.items() if n.endswith("patch_embeddings.projection.weight")), None)
    fc1 = next((t for n, t in weights.items() if re.search(r"(intermediate\.dense|mlp\.fc1)\.weight$", n)), None)
    layers = {m[1] for name in names if (m := re.match(r"encoder\.(?:encoder\.layer|layers)\.(\d+)\.", name))}
    if patches is None or fc1 is None:
        raise ValueError("the weights hold no Hugging Face ViT below `encoder.`")
    width = patches.shape[0]
    config = LeWMConfig(
        image_size=image_size,
        latent_dim=latent_dim,
        history=history,
        frame_skip=frame_skip,
        stack=1,
        encoder=EncoderConfig(
            kind="vit",
            width=width,
            hidden=fc1.shape[0],
            patch=patch,
            depth=len(layers),
            heads=int(encoder.get("num_attention_heads", _heads(width))),
            head_hidden=head_hidden,
        ),
        predictor=shape,
        regularizer=RegularizerConfig(kind="sigreg", weight=0.09),
    )
    return config, action_block // frame_skip


def load_weights(model: LeWM, weights: Mapping[str, Tensor]) -> None:
    """Fill `model` from a published state dict, strictly, and set the pixel statistics that belong to it."""
    given = {_without_prefix(name): tensor for name, tensor in weights.items()}
    if len(given) != len(weights):
        raise ValueError("the weights hold names both with and without the prefix `model.`")
    version = 5 if any(name.startswith("encoder.layers.") for name in given) else 4
    ours = {}
    state = model.state_dict()
    names = {name: _theirs(name, version) for name in state if name not in _BUFFERS}
    missing = sorted(set(names.values()) - given.keys())
    unknown = sorted(given.keys() - set(names.values()))
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise ValueError(
            f"the weights do not fit the configuration: {first} ({len(missing)} missing, {len(unknown)} unknown)"
        )
    for mine, theirs in names.items():
        tensor = given[theirs]
        if theirs == "action_encoder.patch_embed.weight":
            tensor = tensor.squeeze(-1)
        if tensor.shape != state[mine].shape:
            raise ValueError(f"{theirs} has shape {tuple(tensor.shape)}, the model takes {tuple(state[mine].shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{theirs} has values that are NaN or infinite: the weights are of no use")
        ours[mine] = tensor
    ours |= {name: state[name] for name in _BUFFERS}
    model.load_state_dict(ours)
    model.pixel_mean.copy_(255 * torch.tensor(IMAGENET_MEAN))
    model.pixel_std.copy_(255 * torch.tensor(IMAGENET_STD))


def export_weights(model: LeWM, *, transformers: Literal[4, 5] = 4) -> dict[str, Tensor]:
    """The state dict that the authors' code loads, with the ViT names of that version of transformers."""
    _check_kind(model.config)
    weights = {
        _theirs(name, transformers): tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if name not in _BUFFERS
    }
    weights["action_encoder.patch_embed.weight"] = weights["action_encoder.patch_embed.weight"].unsqueeze(-1)
    # (pixel - ours) / our std is their scaled pixel times `gain` plus `offset`, and a linear layer comes first.
    mean, std = model.pixel_mean.cpu(), model.pixel_std.cpu()
    gain = 255 * torch.tensor(IMAGENET_STD) / std
    offset = (255 * torch.tensor(IMAGENET_MEAN) - mean) / std
    patches = "encoder.embeddings.patch_embeddings.projection"
    kernel = weights[f"{patches}.weight"]
    weights[f"{patches}.bias"] += torch.einsum("wchk,c->w", kernel, offset.to(kernel.dtype))
    weights[f"{patches}.weight"] = kernel * gain.to(kernel.dtype).view(1, 3, 1, 1)
    return weights


def export_config(model: LeWM) -> dict[str, Any]:
    """The `config.json` that goes with `export_weights`."""
    config = model.config
    _check_kind(config)
    head = {"input_dim": config.latent_dim, "output_dim": config.latent_dim}
    norm = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
    mlp = "stable_worldmodel.wm.lewm.module.MLP"
    size = {192: "tiny", 384: "small", 768: "base", 1024: "large"}.get(config.encoder.width, str(config.encoder.width))
    return {
        "_target_": "stable_worldmodel.wm.lewm.LeWM",
        "encoder": {
            "_target_": "stable_pretraining.backbone.utils.vit_hf",
            "size": size,
            "patch_size": config.encoder.patch,
            "image_size": config.image_size,
            "pretrained": False,
            "use_mask_token": False,
        },
        "predictor": {
            "_target_": "stable_worldmodel.wm.lewm.module.Predictor",
            "num_frames": config.history,
            "input_dim": config.latent_dim,
            "hidden_dim": config.latent_dim,
            "output_dim": config.latent_dim,
            "depth": config.predictor.depth,
            "heads": config.predictor.heads,
            "mlp_dim": config.predictor.hidden,
            "dim_head": config.predictor.head_dim,
            "dropout": config.predictor.dropout,
            "emb_dropout": 0.0,
        },
        "action_encoder": {
            "_target_": "stable_worldmodel.wm.lewm.module.Embedder",
            "input_dim": config.frame_skip * model.action_size,
            "emb_dim": config.latent_dim,
        },
        "projector": {
            "_target_": mlp,
            **head,
            "input_dim": config.encoder.width,
            "hidden_dim": config.encoder.head_hidden,
            "norm_fn": norm,
        },
        "pred_proj": {"_target_": mlp, **head, "hidden_dim": config.predictor.head_hidden, "norm_fn": norm},
    }


def _check_kind(config: LeWMConfig) -> None:
    if (config.encoder.kind, config.predictor.kind, config.stack) != ("vit", "transformer", 1):
        raise ValueError(
            f"the published format holds a vit of single frames and a transformer, not {config.encoder.kind} of "
            f"{config.stack} frames and {config.predictor.kind}"
        )
    if config.encoder.heads != _heads(config.encoder.width):
        raise ValueError(
            f"the published format has no place for the number of heads: a vit of width {config.encoder.width} has "
            f"{_heads(config.encoder.width)} there, not {config.encoder.heads}"
        )


def _heads(width: int) -> int:
    """Attention heads of the family's member of this width: 64 wide, three of them at least and 16 at most."""
    return min(16, max(3, width // 64))


def _without_prefix(name: str) -> str:
    return name.removeprefix("model.")


def _theirs(name: str, version: int) -> str:
    """Their name of one of our parameters."""
    rules = _COMMON + tuple((f"encoder.trunk.blocks.#.{mine}.*", f"{theirs}.*") for mine, theirs in _VIT[version])
    for mine, theirs in rules:
        pattern = re.escape(mine).replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)")
        if match := re.fullmatch(pattern, name):
            for part in match.groups():
                theirs = re.sub(r"[#*]", part, theirs, count=1)
            return theirs
    raise AssertionError(f"{name} has no published name")
