"""A registered model needs torch and MLflow only: a process that cannot import this project loads and runs it."""

import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import torch

from infra import registry
from infra.home import Home
from infra.tracking import MlflowTracker
from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.predictors import PredictorConfig
from trainers.export import WorldModel, example_inputs

_LOAD = """
import importlib.util, sys
ours = ("collectors", "shards", "pipelines", "models", "trainers", "infra")
assert [name for name in ours if importlib.util.find_spec(name)] == [], sys.path
import mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
for name in sys.argv[3:]:
    model = mlflow.pytorch.load_model(f"models:/{name}@champion")
    given = numpy.load(f"{sys.argv[2]}/{name}.npz")
    with torch.no_grad():
        latent, following = model(torch.from_numpy(given["frames"]), torch.from_numpy(given["action"]))
    numpy.savez(f"{sys.argv[2]}/{name}-out.npz", latent=latent, following=following)
"""
MODELS = {
    "lewm-conv": LeWMConfig(
        image_size=16,
        latent_dim=8,
        frame_skip=2,
        stack=2,
        encoder=EncoderConfig(width=4, hidden=16),
        predictor=PredictorConfig(hidden=16),
    ),
    "lewm-vit": LeWMConfig(
        image_size=16,
        latent_dim=8,
        history=2,
        stack=1,
        encoder=EncoderConfig(kind="vit", width=6, hidden=8, patch=8, depth=1, head_hidden=8),
        predictor=PredictorConfig(kind="transformer", hidden=8, depth=1, heads=2, head_dim=4, head_hidden=8),
    ),
}


def test_another_process_loads_the_champions_without_this_project(tmp_path):
    """Both kinds of encoder and predictor, at another batch size than the example's, with the same results."""
    home = Home(tmp_path / "home")
    tracker = MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="registry", name="run")
    expected = {}
    for name, config in MODELS.items():
        torch.manual_seed(0)
        module = WorldModel(LeWM(config, action_size=2).eval())
        tags = {"dataset_digest": "d" * 64, "preset": "tiny"}
        inputs = example_inputs(module.model)
        version = registry.register(tracker, name=name, module=module, inputs=inputs, files=[], tags=tags)
        assert registry.promote(name, version, home.tracking_uri).moved
        frames, action = example_inputs(module.model, batch=5)
        action += np.linspace(-1, 1, action.size, dtype=np.float32).reshape(action.shape)
        np.savez(tmp_path / f"{name}.npz", frames=frames, action=action)
        with torch.no_grad():
            expected[name] = module(torch.from_numpy(frames), torch.from_numpy(action))
    tracker.close()

    # -S leaves out what an editable installation adds to the path.
    words = [sys.executable, "-S", "-c", _LOAD, home.tracking_uri, str(tmp_path), *MODELS]
    path = {"PYTHONPATH": os.pathsep.join(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))}
    result = subprocess.run(words, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name, latents in expected.items():
        with np.load(tmp_path / f"{name}-out.npz") as loaded:
            for key, value in zip(("latent", "following"), latents, strict=True):
                assert loaded[key] == pytest.approx(value.numpy(), rel=1e-5, abs=1e-6)
