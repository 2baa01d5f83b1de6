"""A registered model needs torch and MLflow only: a process that never imports this project loads and runs it."""

import subprocess
import sys

import numpy as np
import torch
from torch import nn

from infra import registry
from infra.home import Home
from infra.tracking import MlflowTracker

_LOAD = """
import sys
import mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model("models:/lewm-alone@champion")
with torch.no_grad():
    latent, following = model(torch.full((5, 1, 16, 16, 3), 7, dtype=torch.uint8), torch.ones(5, 2))
numpy.savez(sys.argv[2], latent=latent, following=following)
print(*{name.split(".")[0] for name in sys.modules})
"""


class SmallModel(nn.Module):
    """Convolution on bytes, as the world models have it: (frames, action) -> (latent, next latent)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 8))
        self.predictor = nn.Linear(8 + 2, 8)

    def forward(self, frames, action):
        latent = self.encoder(frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255)
        return latent, self.predictor(torch.cat([latent, action], dim=-1))


def test_another_process_loads_the_champion_without_this_project(tmp_path):
    """At another batch size than the example's, with the same results."""
    home = Home(tmp_path / "home")
    torch.manual_seed(0)
    model = SmallModel().eval()
    tracker = MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="registry", name="run")
    inputs = (np.zeros((2, 1, 16, 16, 3), np.uint8), np.zeros((2, 2), np.float32))
    tags = {"dataset_digest": "d" * 64, "preset": "tiny"}
    version = registry.register(tracker, name="lewm-alone", module=model, inputs=inputs, files=[], tags=tags)
    tracker.close()
    assert registry.promote("lewm-alone", version, home.tracking_uri).moved

    words = [sys.executable, "-c", _LOAD, home.tracking_uri, str(tmp_path / "out.npz")]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    ours = {"collectors", "shards", "pipelines", "models", "trainers", "infra"}
    assert ours & set(result.stdout.splitlines()[-1].split()) == set()
    with torch.no_grad():
        expected = model(torch.full((5, 1, 16, 16, 3), 7, dtype=torch.uint8), torch.ones(5, 2))
    with np.load(tmp_path / "out.npz") as loaded:
        for name, value in zip(("latent", "following"), expected, strict=True):
            np.testing.assert_allclose(loaded[name], value.numpy(), rtol=1e-5, atol=1e-6)
