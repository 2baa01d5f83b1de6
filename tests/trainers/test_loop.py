"""The loop on a small synthetic dataset: it learns, resumes bit for bit, stops on NaN and records what it says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import make_dataset
from tests.trainers.helpers import random_config, tiny_config, weights
from trainers import loop
from trainers.checkpoint import BEST, LocalSink, complete_checkpoints
from trainers.config import OptimConfig, TrainConfig
from trainers.learner import Diverged, Learner
from trainers.loop import build_model, fit, null_value
from trainers.optim import build_optimizer, learning_rate
from trainers.tracker import NullTracker
from trainers.validation import validate


class Record(NullTracker):
    """Keeps the metrics that it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("loop") / "data"
    dataset = make_dataset(path, n=24, steps=20)
    assert len(dataset.indices("validation")) > 0
    return path


def run(config: TrainConfig, folder: Path, record: Record | None = None):
    return fit(
        config,
        sink=LocalSink(folder, config.keep_checkpoints),
        tracker=record or Record(),
        device=torch.device("cpu"),
    )


def test_losses_fall_and_are_recorded_once_a_step(data, tmp_path):
    record = Record()
    summary = run(tiny_config(data, stop_step=80), tmp_path, record)
    steps = [step for step, _ in record.rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == summary.steps == 80
    first, last = record.rows[0][1], record.rows[-1][1]
    total = [row["train/prediction"] + 0.1 * row["train/regularizer"] for row in (first, last)]
    assert total[1] < total[0]
    expected = {
        "train/regularizer_null",
        "train/effective_rank",
        "train/samples_per_second",
        "train/mfu",
        "data/wait_share",
        "val/prediction",
    }
    assert expected <= last.keys()
    assert 0 <= last["data/wait_share"] <= 1


def test_a_resumed_run_equals_one_left_alone(data, tmp_path):
    config = tiny_config(data)
    run(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 10:
            raise Killed

    with pytest.raises(Killed):
        fit(
            config,
            sink=LocalSink(tmp_path / "broken", 2),
            tracker=Record(),
            device=torch.device("cpu"),
            after_checkpoint=kill,
        )
    record = Record()
    run(config, tmp_path / "broken", record)
    assert record.rows[0][0] == 15
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_every_checkpoint_is_judged_whatever_the_intervals(data, tmp_path):
    run(tiny_config(data, stop_step=13, validate_every=4, checkpoint_every=3, keep_checkpoints=9), tmp_path)
    kept = complete_checkpoints(tmp_path / "checkpoints")
    assert [json.loads((path / "state.json").read_text())["step"] for path in kept] == [3, 6, 9, 12, 13]
    assert all(BEST in json.loads((path / "state.json").read_text())["metrics"] for path in kept)


def test_resuming_takes_the_threads_of_the_run_and_refuses_others(data, tmp_path, monkeypatch):
    run(tiny_config(data, stop_step=10), tmp_path)
    with pytest.raises(ValueError, match="--threads 1"):
        run(tiny_config(data, stop_step=10, threads=2), tmp_path)
    monkeypatch.setattr(loop, "_threads", lambda config: 2)  # what a larger machine would choose
    run(tiny_config(data, stop_step=10, threads=0), tmp_path)
    assert torch.get_num_threads() == 1


def test_another_configuration_is_refused_and_where_it_runs_is_not(data, tmp_path):
    run(tiny_config(data, stop_step=10), tmp_path)
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.002, is 0\.1"):
        run(tiny_config(data, stop_step=10, optim=OptimConfig(warmup_steps=5, lr=0.1)), tmp_path)
    with pytest.raises(ValueError, match=r"stop_step was 10, is 20"):
        run(tiny_config(data, stop_step=20), tmp_path)
    make_dataset(tmp_path / "other", n=24, steps=20, seed=1)
    with pytest.raises(ValueError, match=r"digest is '\w+' there and '\w+' here"):
        run(tiny_config(tmp_path / "other", stop_step=10), tmp_path)
    assert run(tiny_config(data, stop_step=10, prefetch=1, log_every=2, tier="memmap"), tmp_path).steps == 10


def test_a_run_whose_schedule_has_a_length_may_go_on_for_longer(data, tmp_path):
    optim = OptimConfig(warmup_steps=5, schedule_steps=40)
    run(tiny_config(data, stop_step=20, optim=optim), tmp_path / "longer")
    run(tiny_config(data, optim=optim), tmp_path / "longer")
    run(tiny_config(data, optim=optim), tmp_path / "whole")
    whole, longer = weights(tmp_path / "whole"), weights(tmp_path / "longer")
    assert all(torch.equal(tensor, longer[name]) for name, tensor in whole.items())


def test_divergence_stops_with_a_clear_message(data, tmp_path):
    wild = OptimConfig(lr=1e18, warmup_steps=0, clip_norm=1e30)
    with pytest.raises(Diverged, match=r"at step \d+: .*--optim.lr"):
        run(tiny_config(data, optim=wild, log_every=1), tmp_path)


def test_a_checkpoint_is_from_before_the_first_step_that_was_not_finite(data, tmp_path, monkeypatch):
    """One bad step between two looks; the weights that follow are bad, and none of them is saved."""
    step = Learner.step

    def bad_once(self, frames, action, number):
        if number == 12:
            with torch.no_grad():
                next(self.model.predictor.parameters()).fill_(torch.inf)
        return step(self, frames, action, number)

    monkeypatch.setattr(Learner, "step", bad_once)
    config = tiny_config(data, checkpoint_every=10, log_every=30, validate_every=30)
    with pytest.raises(Diverged, match=r"prediction loss is (nan|inf) at step 13"):
        run(config, tmp_path)
    assert LocalSink(tmp_path, 1).latest() == tmp_path / "checkpoints/step_000000010"
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_nothing_in_a_step_looks_at_the_device(data, monkeypatch):
    """Waiting for the device shows as a tensor that becomes a Python number."""
    from shards.dataset import Dataset

    config = random_config(data, stop_step=5, precision="bfloat16")
    dataset = Dataset.open(data)
    learner = Learner(config, build_model(config, dataset, torch.device("cpu")))
    frames = torch.randint(0, 256, (8, 3, 16, 16, 3), dtype=torch.uint8)
    action = torch.randn(8, 2, dataset.action_size)
    learner.step(frames, action, 0)
    for name in ("item", "tolist", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: pytest.fail(f"Tensor.{name} in a step"))
    learner.step(frames, action, 1)


def test_validation_is_in_the_precision_of_training(data):
    from shards.dataset import Dataset

    dataset = Dataset.open(data)
    config = random_config(data)
    model = build_model(config, dataset, torch.device("cpu"))
    exact = validate(model, config, dataset)["val/prediction"]
    rough = validate(model, replace(config, precision="bfloat16"), dataset)["val/prediction"]
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.1)
    assert model.training


def test_held_out_windows_show_rollouts_and_latents(data):
    from shards.dataset import Dataset

    dataset = Dataset.open(data)
    config = tiny_config(data)
    model = build_model(config, dataset, torch.device("cpu"))
    found = validate(model, config, dataset)
    assert found == validate(model, config, dataset)
    assert found.keys() == {
        "val/prediction",
        "val/prediction_over_copy",
        *(f"val/rollout/error_{ahead}{end}" for ahead in (1, 2, 4, 8) for end in ("", "_over_copy")),
        "val/rollout/retrieval_top1",
        "val/rollout/retrieval_mean_rank",
        *(f"val/latents/{name}" for name in ("effective_rank", "sigreg", "sigreg_null", "straightness")),
    }
    assert all(math.isfinite(value) for value in found.values())
    model.encode = lambda frames: torch.ones(*frames.shape[:-4], 8)
    collapsed = validate(model, config, dataset)
    assert (collapsed["val/latents/effective_rank"], collapsed["val/rollout/retrieval_top1"]) == (0.0, 0.0)
    assert collapsed["val/latents/sigreg"] > 10 * collapsed["val/latents/sigreg_null"]
    model.encode = lambda frames: torch.full((*frames.shape[:-4], 8), torch.nan)
    assert math.isnan(validate(model, config, dataset)["val/latents/effective_rank"])


def test_one_prediction_ahead_is_the_prediction_loss(tmp_path):
    """In episodes that have room for no more."""
    dataset = make_dataset(tmp_path, n=24, steps=4)
    config = tiny_config(tmp_path, batch_size=999)
    found = validate(build_model(config, dataset, torch.device("cpu")), config, dataset)
    assert found["val/rollout/error_1"] == pytest.approx(found["val/prediction"])
    assert found["val/rollout/error_1_over_copy"] == pytest.approx(found["val/prediction_over_copy"])
    assert not {"val/rollout/error_2", "val/latents/straightness"} & found.keys()


def test_decay_is_of_matrices_only(data):
    from shards.dataset import Dataset

    model = build_model(tiny_config(data), Dataset.open(data), torch.device("cpu"))
    matrices, vectors = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim > 1 for parameter in matrices["params"])
    assert all(parameter.ndim <= 1 for parameter in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_the_model_starts_from_the_seed_and_the_manifest(data):
    from shards.dataset import Dataset

    dataset = Dataset.open(data)
    config = tiny_config(data)
    torch.manual_seed(5)
    first = build_model(config, dataset, torch.device("cpu"))
    second = build_model(config, dataset, torch.device("cpu"))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    expected = torch.as_tensor(dataset.manifest.statistics.action_mean, dtype=torch.float32)
    torch.testing.assert_close(first.action_mean, expected)
    other = replace(config, model=replace(config.model, image_size=64))
    with pytest.raises(ValueError, match="16 px"):
        build_model(other, dataset, torch.device("cpu"))


def test_learning_rate_schedule():
    config = OptimConfig(lr=1.0, warmup_steps=10, final_share=0.1)
    assert learning_rate(config, 0, 100) == pytest.approx(0.1, rel=0.01)
    assert learning_rate(config, 50, 100) == pytest.approx(0.55)
    assert learning_rate(config, 100, 100) == pytest.approx(0.1)
    longer = replace(config, schedule_steps=1000)
    assert learning_rate(longer, 100, 100) > 0.95


def test_null_value_follows_the_regularizer(data):
    config = tiny_config(data)
    assert 0 < null_value(config.model, 64) < 1
