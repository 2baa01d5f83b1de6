"""Checkpoints in the background: storage that fails for a while, storage that stays away, and a kill in the middle."""

import threading
from pathlib import Path

import pytest
import torch

from tests.helpers import make_dataset
from tests.trainers.helpers import tiny_config
from trainers.background import BackgroundWriter
from trainers.checkpoint import LocalSink, TrainState, complete_checkpoints
from trainers.loop import fit
from trainers.tracker import NullTracker


class Flaky(LocalSink):
    """Storage that fails the first `failures` times."""

    def __init__(self, run: Path, failures: int, error: Exception) -> None:
        super().__init__(run, keep=9)
        self.failures, self.error, self.calls = failures, error, 0

    def save(self, checkpoint: TrainState, config: str) -> Path:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return super().save(checkpoint, config)


class Gated(LocalSink):
    """Storage that takes as long as a test wants."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, keep=9)
        self.began, self.go_on = threading.Event(), threading.Event()

    def save(self, checkpoint: TrainState, config: str) -> Path:
        self.began.set()
        assert self.go_on.wait(60)
        return super().save(checkpoint, config)


def state(step: int) -> TrainState:
    return TrainState(step, {"w": torch.full((3,), float(step))}, {"state": {}, "param_groups": []}, {})


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in complete_checkpoints(run / "checkpoints")]


def test_storage_that_fails_for_a_while_does_not_end_a_run(tmp_path, monkeypatch):
    make_dataset(tmp_path / "data", n=24, steps=20)
    monkeypatch.setattr("trainers.loop.BackgroundWriter", lambda sink: BackgroundWriter(sink, pause=0.01))
    sink = Flaky(tmp_path / "run", 3, OSError(5, "Input/output error"))
    summary = fit(tiny_config(tmp_path / "data"), sink=sink, tracker=NullTracker(), device=torch.device("cpu"))
    assert summary.steps == 30
    assert sink.calls > 3
    assert steps(tmp_path / "run")[-1] == 30


def test_storage_that_stays_away_is_an_error_at_last(tmp_path):
    writer = BackgroundWriter(Flaky(tmp_path, 10**9, OSError(28, "No space left on device")), patience=0.05, pause=0.01)
    writer.submit(state(1), "{}")
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_an_error_that_is_not_of_storage_surfaces_at_once(tmp_path):
    sink = Flaky(tmp_path, 10**9, TypeError("not a tensor"))
    writer = BackgroundWriter(sink)
    writer.submit(state(1), "{}")
    with pytest.raises(TypeError, match="not a tensor"):
        writer.close()
    assert sink.calls == 1


def test_the_newest_of_those_that_wait_is_written(tmp_path):
    sink = Gated(tmp_path)
    with BackgroundWriter(sink) as writer:
        writer.submit(state(1), "{}")
        assert sink.began.wait(60)
        writer.submit(state(2), "{}")
        writer.submit(state(3), "{}")
        sink.go_on.set()
    assert steps(tmp_path) == [1, 3]


def fail_after_submitting(writer: BackgroundWriter) -> None:
    def training() -> None:
        with writer:
            writer.submit(state(4), "{}")
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        training()


def test_what_was_handed_over_is_written_when_training_fails(tmp_path):
    fail_after_submitting(BackgroundWriter(LocalSink(tmp_path, 9)))
    assert steps(tmp_path) == [4]


def test_a_failing_run_does_not_wait_for_storage(tmp_path):
    sink = Flaky(tmp_path, 10**9, OSError(5, "Input/output error"))
    fail_after_submitting(BackgroundWriter(sink, pause=10**6))
    assert steps(tmp_path) == []


def test_a_copy_on_the_host_is_not_changed_by_training():
    live = torch.zeros(3)
    copy = TrainState(1, {"w": live}, {"state": {0: {"m": live}}, "param_groups": [{"params": [0]}]}, {}).on_host()
    live.fill_(7)
    assert copy.model["w"].sum() == copy.optimizer["state"][0]["m"].sum() == 0
    assert copy.optimizer["param_groups"] == [{"params": [0]}]
