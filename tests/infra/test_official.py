"""`lewm models import` and `export`: published files to a run and back, and what is refused."""

import json
import pickle

import pytest
import torch

from infra.official import export_run, import_run
from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.official import export_config, export_weights
from models.predictors import PredictorConfig
from tests.helpers import make_dataset


@pytest.fixture
def published(tmp_path):
    """A small model in the published format, and its files."""
    config = LeWMConfig(
        image_size=16,
        latent_dim=12,
        history=3,
        frame_skip=2,
        stack=1,
        encoder=EncoderConfig(kind="vit", width=12, hidden=8, patch=8, depth=1, head_hidden=8),
        predictor=PredictorConfig(kind="transformer", hidden=8, depth=1, heads=2, head_dim=4, head_hidden=8),
    )
    model = LeWM(config, 2)
    torch.save(export_weights(model), tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps(export_config(model)))
    return model, {"config": tmp_path / "config.json", "weights": tmp_path / "weights.pt", "frame_skip": 2}


def test_a_run_of_published_weights_goes_back_to_the_same_files(published, tmp_path):
    model, files = published
    dataset = make_dataset(tmp_path / "data")
    run = import_run(tmp_path / "runs" / "official", data=str(dataset.path), **files)
    loaded = run.load_model(torch.device("cpu"))
    torch.testing.assert_close(loaded.action_std, torch.tensor(dataset.manifest.statistics.action_std).float())
    export_run(run, tmp_path / "out", transformers=4)
    back = torch.load(tmp_path / "out" / "weights.pt", weights_only=True)
    expected = export_weights(model)
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == export_config(model)
    with pytest.raises(ValueError, match="--name"):
        import_run(run.path, data="", **files)


def test_files_that_are_not_weights_are_refused(published, tmp_path):
    _, files = published
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(pytest.raises, protocol=2))
    with pytest.raises(ValueError, match="tensors alone"):
        import_run(tmp_path / "run", data="", **files)
    torch.save({"a": 1}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="tensors alone"):
        import_run(tmp_path / "run", data="", **files)
    assert not (tmp_path / "run").exists()
