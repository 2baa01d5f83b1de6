"""The sweep of lambda measures every weight once, goes on where it stood, and tells collapse from none."""

import pytest
import torch

from infra.bench import sweep
from tests.helpers import make_dataset
from tests.trainers.helpers import tiny_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", n=40, steps=14)


def weighted(dataset, weight, **changes):
    config = tiny_config(dataset.path, **({"stop_step": 60, "checkpoint_every": 30, "validate_every": 60} | changes))
    return sweep._weighted(config, weight)


def test_a_weight_is_measured_once_and_its_row_kept(dataset, tmp_path):
    steps, device = [], torch.device("cpu")
    row = sweep.measure(weighted(dataset, 0.1), dataset, tmp_path / "a", device, steps.append)
    assert steps[-1] == 60
    assert (row.weight, row.training_steps, row.environment) == (0.1, 60, "dmc/cartpole-swingup")
    assert row.r2_least <= row.r2_mean <= 1
    assert 1 <= row.effective_rank <= row.latent_dim == 8
    again = []
    assert sweep.measure(weighted(dataset, 0.1), dataset, tmp_path / "a", device, again.append) == row
    assert again == [60]
    assert not (tmp_path / "a" / "checkpoints" / "step_000000090").exists()


def test_an_interrupted_weight_goes_on(dataset, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(step):
        if step == 45:
            raise Interrupted

    device = torch.device("cpu")
    whole = sweep.measure(weighted(dataset, 0.1), dataset, tmp_path / "whole", device, lambda step: None)
    with pytest.raises(Interrupted):
        sweep.measure(weighted(dataset, 0.1), dataset, tmp_path / "cut", device, stop)
    steps = []
    assert sweep.measure(weighted(dataset, 0.1), dataset, tmp_path / "cut", device, steps.append) == whole
    assert steps[0] > 30


def test_without_the_term_latents_collapse(dataset, tmp_path):
    device = torch.device("cpu")
    rows = [
        sweep.measure(weighted(dataset, weight, stop_step=200), dataset, tmp_path / str(weight), device, lambda _: None)
        for weight in (0.0, 0.5)
    ]
    assert rows[0].effective_rank < rows[1].effective_rank
    assert rows[0].regularizer > rows[1].regularizer


def test_weights_must_differ_and_not_be_negative(tmp_path):
    for weights in ((), (0.1, 0.1), (-0.1,)):
        with pytest.raises(ValueError, match="--weights must be different numbers from 0 on"):
            sweep.Args(data=tmp_path, weights=weights)
