"""Run by the peer test inside the peer's own environment: build its LeWM, and write weights, inputs and outputs.

    python peer_reference.py small|full OUT

`small` fills every parameter by the formula of `patterned`, so that recorded outputs alone can be compared with later;
`full` is the released size with random weights. Nothing of ours is imported here, and of the package only its world
models: what its own first import brings along wants a torchvision whose build fits that of torch.
"""

# pyright: reportMissingImports=false

import importlib.util
import json
import math
import sys
import types
import zlib
from pathlib import Path

import torch

SIZES = {
    "small": {"image": 16, "patch": 4, "width": 24, "layers": 2, "vit_mlp": 48, "depth": 2, "heads": 2, "head_dim": 8}
    | {"mlp": 32, "head": 40, "block": 4, "directions": 16, "batch": 2},
    "full": {"image": 224, "patch": 14, "width": 192, "layers": 12, "vit_mlp": 768, "depth": 6, "heads": 16}
    | {"head_dim": 64, "mlp": 2048, "head": 2048, "block": 10, "directions": 64, "batch": 2},
}


def patterned(name: str, shape: torch.Size) -> torch.Tensor:
    """Values that are a function of a parameter's published name (transformers 5) and shape alone."""
    start = zlib.crc32(name.encode()) % 1000
    wave = 0.3 * torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + start)
    return (wave.abs() + 0.5 if name.endswith("running_var") else wave).float().reshape(shape)


def frames(batch: int, times: int, image: int) -> torch.Tensor:
    """uint8 (batch, times, image, image, 3)."""
    count = batch * times * image * image * 3
    values = 127.5 + 127.4 * torch.sin(0.013 * torch.arange(count, dtype=torch.float64) ** 1.2)
    return values.to(torch.uint8).reshape(batch, times, image, image, 3)


def actions(batch: int, times: int, block: int) -> torch.Tensor:
    return torch.sin(torch.arange(batch * times * block, dtype=torch.float64)).float().reshape(batch, times, block)


def import_only_what_is_asked_for(package: str) -> None:
    """From now on the package's submodules are imported without what its `__init__` imports."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{package} is not installed")
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module


def main(size: str, out: Path) -> None:
    import_only_what_is_asked_for("stable_worldmodel")
    from stable_worldmodel.wm.lewm import LeWM
    from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor
    from stable_worldmodel.wm.loss import SIGReg
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    s = SIZES[size]
    width, block, batch = s["width"], s["block"], s["batch"]
    vit = ViTConfig(
        hidden_size=width,
        num_hidden_layers=s["layers"],
        num_attention_heads=3,
        intermediate_size=s["vit_mlp"],
        patch_size=s["patch"],
        image_size=s["image"],
    )
    predictor = {"num_frames": 3, "input_dim": width, "hidden_dim": width, "output_dim": width, "depth": s["depth"]}
    predictor |= {"heads": s["heads"], "dim_head": s["head_dim"], "mlp_dim": s["mlp"], "dropout": 0.1}
    head = {"input_dim": width, "hidden_dim": s["head"], "output_dim": width}
    model = LeWM(
        ViTModel(vit, add_pooling_layer=False, use_mask_token=False),
        Predictor(**predictor),
        Embedder(input_dim=block, emb_dim=width),
        MLP(**head, norm_fn=torch.nn.BatchNorm1d),
        MLP(**head, norm_fn=torch.nn.BatchNorm1d),
    ).eval()
    state = model.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if size == "small":
            tensor.copy_(patterned(name, tensor.shape))
        else:
            noise = 0.05 * torch.randn(tensor.shape)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)

    scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((frames(batch, 3, s["image"]).float() / 255 - scale[0]) / scale[1]).permute(0, 1, 4, 2, 3)
    plan = actions(batch, 6, block)
    with torch.no_grad():
        latents = model.encode({"pixels": pixels})["emb"]
        predicted = model.predict(latents, model.action_encoder(plan[:, :3]))
        rollouts = {
            f"rollout_{known}": model.rollout({"pixels": pixels[:, None, :known]}, plan[:, None])["predicted_emb"][
                :, 0, known:
            ]
            for known in (1, 2, 3)
        }
        torch.manual_seed(1)
        sigreg = SIGReg(num_proj=s["directions"])(latents.transpose(0, 1))
        torch.manual_seed(1)
        directions = torch.randn(width, s["directions"])
        directions /= directions.norm(dim=0)
    outputs = {"latents": latents, "predicted": predicted, "sigreg": sigreg, "directions": directions, **rollouts}

    config = {
        "encoder": {"size": "tiny", "patch_size": s["patch"], "image_size": s["image"]},
        "predictor": predictor,
        "action_encoder": {"input_dim": block, "emb_dim": width},
        "projector": head,
        "pred_proj": head,
    }
    (out / "config.json").write_text(json.dumps(config))
    torch.save(state, out / "weights.pt")
    (out / "outputs.json").write_text(json.dumps({name: value.tolist() for name, value in outputs.items()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
