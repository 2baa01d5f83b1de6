"""The authors' weights: what their published package computes, we compute, and files go there and back.

`peer_small.json` holds outputs of stable-worldmodel 0.1.1 for weights and inputs that are formulas
(`tests/models/peer_reference.py`); the test marked `peer` runs that package itself, at the released size too.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from models.lewm import LeWM
from models.official import export_config, export_weights, load_weights, read_config
from models.presets import released, tiny
from models.regularizers import sigreg
from tests.models.peer_reference import SIZES, actions, frames, patterned

HERE = Path(__file__).parent
PACKAGES = [
    *("torch==2.13.0", "einops", "transformers==5.23.0", "opencv-python-headless", "loguru", "tqdm", "hydra-core"),
    *("omegaconf", "gymnasium", "rich", "pillow", "lancedb", "imageio"),
]


def small_model() -> tuple[LeWM, dict[str, torch.Tensor]]:
    """The model of the recorded comparison, and its weights under their published names."""
    recorded = json.loads((HERE / "peer_small.json").read_text())
    size = SIZES["small"]
    config = released()
    config = replace(
        config,
        image_size=size["image"],
        latent_dim=size["width"],
        frame_skip=2,
        encoder=replace(
            config.encoder, width=24, depth=2, heads=3, hidden=size["vit_mlp"], patch=size["patch"], head_hidden=40
        ),
        predictor=replace(config.predictor, depth=2, heads=2, head_dim=8, hidden=size["mlp"], head_hidden=40),
    )
    names = export_weights(LeWM(config, 2), transformers=5)
    weights = {
        name: patterned(name, value.shape) if value.is_floating_point() else value for name, value in names.items()
    }
    read, action_size = read_config(recorded["config"], weights, frame_skip=2)
    assert (read, action_size) == (config, 2)
    model = LeWM(read, action_size)
    load_weights(model, weights)
    return model.eval(), weights


@torch.no_grad()
def check_outputs(model: LeWM, outputs: dict, size: str) -> None:
    """Encoder, predictor, rollouts from 1, 2 and 3 known latents, and SIGReg, to 1e-5."""
    shape = SIZES[size]
    expected = {name: torch.tensor(value) for name, value in outputs.items()}
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    plan = actions(shape["batch"], 6, shape["block"])
    latents = model.encode(frames(shape["batch"], 3, shape["image"]).unsqueeze(2))
    close(latents, expected["latents"])
    close(model.predict(latents, plan[:, :3]), expected["predicted"])
    for known in (1, 2, 3):
        rolled = model.rollout(latents[:, :known], plan[:, known - 1 :], plan[:, : known - 1])
        close(rolled, expected[f"rollout_{known}"])
    close(sigreg(latents, expected["directions"]), expected["sigreg"])


def test_outputs_are_those_that_the_published_package_gave():
    model, _ = small_model()
    check_outputs(model, json.loads((HERE / "peer_small.json").read_text())["outputs"], "small")


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_go_there_and_back(version, prefix):
    model, _ = small_model()
    weights = export_weights(model, transformers=version)
    assert any(name.startswith("encoder.encoder.layer.0" if version == 4 else "encoder.layers.0") for name in weights)
    config, action_size = read_config(export_config(model), weights, frame_skip=2)
    # The loss's weight is not in the file.
    assert config == replace(model.config, regularizer=config.regularizer)
    other = LeWM(config, action_size)
    load_weights(other, {prefix + name: value for name, value in weights.items()})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


@torch.no_grad()
def test_pixel_statistics_of_the_training_data_are_exported_in_the_patch_embedding():
    torch.manual_seed(0)
    model = LeWM(small_model()[0].config, 2).eval()
    model.set_statistics(
        pixel_mean=torch.tensor([60.0, 70.0, 80.0]),
        pixel_std=torch.tensor([30.0, 40.0, 50.0]),
        action_mean=torch.zeros(2),
        action_std=torch.ones(2),
    )
    other = LeWM(model.config, 2).eval()
    # Large enough that the images decide about the latents.
    ours, theirs = (each.get_submodule("encoder.trunk.patches") for each in (model, other))
    ours.get_parameter("weight").mul_(20)
    load_weights(other, export_weights(model))
    size = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 1, size, size, 3), generator=generator, dtype=torch.uint8)
    torch.testing.assert_close(other.encode(images), model.encode(images), rtol=1e-4, atol=1e-4)
    theirs.load_state_dict(ours.state_dict())
    assert (other.encode(images) - model.encode(images)).abs().max() > 0.01


def test_every_mismatch_is_named():
    model, weights = small_model()
    with pytest.raises(ValueError, match=r"projector\.net\.0\.weight is missing \(1 missing, 0 unknown\)"):
        load_weights(model, {name: value for name, value in weights.items() if name != "projector.net.0.weight"})
    with pytest.raises(ValueError, match="extra is unknown"):
        load_weights(model, {**weights, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"projector\.net\.0\.weight has shape \(1,\)"):
        load_weights(model, {**weights, "projector.net.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="both with and without"):
        load_weights(model, {**weights, "model.projector.net.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="'hidden_dim' is missing"):
        read_config({**export_config(model), "pred_proj": {}}, weights, frame_skip=2)
    with pytest.raises(ValueError, match="--frame-skip"):
        read_config(export_config(model), weights, frame_skip=3)
    config = export_config(model)
    narrow = {key: value for key, value in config["predictor"].items() if key != "hidden_dim"}
    with pytest.raises(ValueError, match="not a published LeWM's: 'hidden_dim' is missing"):
        read_config({**config, "predictor": narrow}, weights, frame_skip=2)
    with pytest.raises(ValueError, match="not a published LeWM's"):
        read_config({**config, "encoder": {**config["encoder"], "image_size": "x"}}, weights, frame_skip=2)
    with pytest.raises(ValueError, match="hidden_dim must equal input_dim"):
        read_config({**config, "predictor": {**config["predictor"], "hidden_dim": 7}}, weights, frame_skip=2)
    with pytest.raises(ValueError, match="--frame-skip"):
        read_config({**config, "action_encoder": {"input_dim": 0}}, weights, frame_skip=2)
    bad = {**weights, "projector.net.0.bias": torch.full_like(weights["projector.net.0.bias"], torch.nan)}
    with pytest.raises(ValueError, match=r"projector\.net\.0\.bias has values that are NaN"):
        load_weights(LeWM(model.config, 2), bad)
    heads = replace(model.config, encoder=replace(model.config.encoder, heads=6))
    with pytest.raises(ValueError, match="has 3 there, not 6"):
        export_config(LeWM(heads, 2))
    with pytest.raises(ValueError, match="not conv of 3 frames and mlp"):
        export_weights(LeWM(tiny(), 1))


def test_the_released_size_is_the_published_one():
    model = LeWM(released(), 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 18_034_478
    assert len(export_weights(model)) == 303
    assert sum(parameter.numel() for parameter in LeWM(released(), 5).parameters()) == 18_034_628


@pytest.mark.peer
@pytest.mark.parametrize("size", ["small", "full"])
def test_the_published_package_agrees(size, peer_python, tmp_path):
    subprocess.run([peer_python, "-W", "ignore", HERE / "peer_reference.py", size, tmp_path], check=True)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    config, action_size = read_config(
        json.loads((tmp_path / "config.json").read_text()), weights, frame_skip=2 if size == "small" else 5
    )
    model = LeWM(config, action_size).eval()
    load_weights(model, weights)
    check_outputs(model, json.loads((tmp_path / "outputs.json").read_text()), size)


@pytest.fixture(scope="module")
def peer_python(tmp_path_factory) -> Path:
    """Python of an environment with the peer, kept in $LEWM_PEER_VENV if that is set."""
    given = os.environ.get("LEWM_PEER_VENV")
    venv = Path(given) if given else tmp_path_factory.mktemp("peer") / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "stable-worldmodel==0.1.1"], check=True)
    return python
