"""The loop on a small synthetic dataset: it learns, resumes bit for bit, stops on NaN and records what it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders import EncoderConfig
from models.lewm import LeWMConfig
from models.predictors import PredictorConfig
from tests.helpers import make_dataset
from trainers.checkpoint import LocalSink
from trainers.config import OptimConfig, TrainConfig
from trainers.loop import Diverged, build_model, fit, learning_rate, null_value
from trainers.tracker import NullTracker


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


def tiny_config(data: Path, **changes) -> TrainConfig:
    model = LeWMConfig(
        image_size=16,
        latent_dim=8,
        frame_skip=2,
        stack=2,
        encoder=EncoderConfig(width=4, hidden=16),
        predictor=PredictorConfig(hidden=16),
    )
    base = TrainConfig(
        data=str(data),
        model=model,
        batch_size=8,
        stop_step=30,
        threads=1,
        log_every=5,
        validate_every=10,
        checkpoint_every=10,
        optim=OptimConfig(warmup_steps=5),
    )
    return replace(base, **changes)


def run(config: TrainConfig, folder: Path, record: Record | None = None):
    return fit(
        config,
        sink=LocalSink(folder, config.keep_checkpoints),
        tracker=record or Record(),
        device=torch.device("cpu"),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    latest = LocalSink(folder, 1).latest()
    assert latest is not None
    return load_file(latest / "model.safetensors")


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


def test_resuming_with_other_threads_is_refused(data, tmp_path):
    run(tiny_config(data, stop_step=10), tmp_path)
    with pytest.raises(ValueError, match="--threads 1"):
        run(tiny_config(data, threads=2), tmp_path)
    torch.set_num_threads(1)


def test_divergence_stops_with_a_clear_message(data, tmp_path):
    wild = OptimConfig(lr=1e18, warmup_steps=0, clip_norm=1e30)
    with pytest.raises(Diverged, match=r"at step \d+.*--optim.lr"):
        run(tiny_config(data, optim=wild, log_every=1), tmp_path)


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
