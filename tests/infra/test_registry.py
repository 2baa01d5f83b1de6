"""Registered models: no pickles, loadable without this project, and the rule of the champion."""

import os
import warnings

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.pytorch import load_model
from torch import nn

from infra import registry
from infra.cli import main
from infra.home import Home
from infra.ports import LOOPBACK, any_free
from infra.tracking import MlflowTracker

NAME = "lewm-toy"
INPUTS = (np.ones((2, 3), np.float32), np.ones((2, 1), np.float32))


class Toy(nn.Module):
    """Raw inputs in, two latents out, as `trainers.export.WorldModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.predict = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, frames, action):
        latent = self.encode(frames)
        return latent, self.predict(torch.cat([latent, action], dim=-1))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def toys(home, tmp_path_factory):
    """Two registered versions of one name, each from a run of its own, trained on the same dataset."""
    weights = tmp_path_factory.mktemp("files") / "model.safetensors"
    weights.write_bytes(b"weights")
    modules = []
    for name in ("first", "second"):
        tracker = MlflowTracker.create(home.tracking_uri, home.artifacts, experiment="lewm/toy", name=name)
        modules.append(Toy().eval())
        tags = {"dataset_digest": "d" * 64, "preset": "tiny"}
        version = registry.register(
            tracker,
            name=NAME,
            module=modules[-1],
            inputs=INPUTS,
            files=[weights],
            tags=tags,
            step=10 * len(modules),
            card=f"# {name}",
        )
        tracker.close()
        assert version == str(len(modules))
    return modules


@pytest.fixture
def set_score(home, toys):
    """Record a version's validation score, later values over earlier ones."""
    return lambda version, score: registry.set_score(NAME, version, home.tracking_uri, score)


@pytest.fixture
def no_champion(home, toys):
    """The name without its alias, before and after."""
    client = MlflowClient(home.tracking_uri)
    yield
    client.delete_registered_model_alias(NAME, registry.CHAMPION)
    client.set_model_version_tag(NAME, "2", "dataset_digest", "d" * 64)
    for version in ("1", "2"):
        client.delete_model_version_tag(NAME, version, registry.SCORE)


def champion(home) -> str:
    return registry.describe(NAME, registry.CHAMPION, home.tracking_uri).version


def test_the_rule_of_the_champion(home, set_score, no_champion):
    uri = home.tracking_uri
    assert registry.promote(NAME, "1", uri).moved
    again = registry.promote(NAME, "1", uri)
    assert (again.moved, again.reason) == (False, "it is the champion already")
    unprobed = registry.promote(NAME, "2", uri)
    assert not unprobed.moved
    assert "not been probed" in unprobed.reason
    set_score("1", 0.8)
    set_score("2", 0.7)
    assert not registry.promote(NAME, "2", uri).moved
    set_score("2", 0.8)
    assert not registry.promote(NAME, "2", uri).moved
    assert champion(home) == "1"
    set_score("2", 0.9)
    better = registry.promote(NAME, "2", uri)
    assert better.moved
    assert "0.9000 beats 0.8000 of version 1" in better.reason
    assert champion(home) == "2"


def test_another_dataset_needs_force(home, set_score, no_champion):
    uri = home.tracking_uri
    set_score("1", 0.1)
    set_score("2", 0.9)
    assert registry.promote(NAME, "1", uri).moved
    MlflowClient(uri).set_model_version_tag(NAME, "2", "dataset_digest", "e" * 64)
    refused = registry.promote(NAME, "2", uri)
    assert not refused.moved
    assert "another dataset" in refused.reason
    assert champion(home) == "1"
    assert registry.promote(NAME, "2", uri, force=True).moved
    assert champion(home) == "2"


def test_plain_mlflow_loads_it_at_any_batch_size(home, toys, no_champion):
    registry.promote(NAME, "2", home.tracking_uri)
    mlflow.set_tracking_uri(home.tracking_uri)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow and torch.export warn about each other's deprecations
        loaded = load_model(f"models:/{NAME}@champion")
    frames, action = torch.randn(5, 3), torch.randn(5, 1)
    with torch.no_grad():
        for found, expected in zip(loaded(frames, action), toys[1](frames, action), strict=True):
            torch.testing.assert_close(found, expected)


def test_no_pickle_but_the_weights_beside_it(home, toys):
    files = {path.name for path in home.artifacts.rglob("*") if path.is_file()}
    assert "model.safetensors" in files
    assert "model.pt2" in files
    assert not {name for name in files if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".cloudpickle"))}


def test_versions_are_listed_with_where_they_came_from(home, toys):
    found = registry.versions(NAME, home.tracking_uri)
    assert registry.model_names(home.tracking_uri) == [NAME]
    assert [(each.version, each.run, each.preset) for each in found] == [
        ("1", "first", "tiny"),
        ("2", "second", "tiny"),
    ]
    assert registry.run_name_of(f"models:/{NAME}/2", home.tracking_uri) == "second"


@pytest.mark.parametrize(("name", "version"), [(NAME, "9"), (NAME, "challenger"), ("lewm-other", "1")])
def test_an_unknown_version_names_what_there_is(home, toys, name, version):
    with pytest.raises(ValueError, match=f"registered: {NAME}"):
        registry.describe(name, version, home.tracking_uri)


def test_a_version_has_its_card_and_its_step(home, toys):
    (found,) = registry.made_from(registry.describe(NAME, "2", home.tracking_uri).run_id, 20, home.tracking_uri)
    assert (found.version, found.step, found.card, found.score) == ("2", 20, "# second", None)
    assert registry.made_from(found.run_id, 10, home.tracking_uri) == []
    cards = {path.read_text() for path in home.artifacts.rglob(registry.CARD)}
    assert cards == {"# first", "# second"}


def test_a_score_that_is_not_finite_is_none(home, toys):
    registry.set_score(NAME, "2", home.tracking_uri, float("nan"))
    assert registry.describe(NAME, "2", home.tracking_uri).score is None


def test_loading_runs_the_version_and_puts_its_files_somewhere(home, toys, tmp_path, capsys):
    found = registry.load(NAME, "1", home.tracking_uri)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # another home's work in this process is its own
    assert found.inputs == {"frames": "(B, 3) float32", "action": "(B, 1) float32"}
    assert found.outputs == {"latent": "(B, 4) float32", "next_latent": "(B, 4) float32"}
    to = tmp_path / "files" / "model"
    assert main(["models", "load", NAME, "--version", "1", "--to", str(to), "--home", str(home.path)]) == 0
    assert f'load_model("{to}' in capsys.readouterr().out.replace("\n", "")
    assert (to / "extra_files" / registry.CARD).read_text() == "# first"
    assert main(["models", "load", NAME, "--version", "1", "--to", str(to), "--home", str(home.path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["ls", "show lewm-toy", "promote lewm-toy 1", "load lewm-toy"])
def test_a_server_that_does_not_answer_is_one_line(words, tmp_path, monkeypatch, capsys):
    url = f"http://{LOOPBACK}:{any_free()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    assert main(["models", *words.split(), "--home", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lewm models: no MLflow server answers at {url}: ")
    assert captured.err.count("\n") == 1
