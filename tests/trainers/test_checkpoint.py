"""Checkpoints are whole or ignored, and hold no pickles."""

import resource
import shutil
from dataclasses import replace

import pytest
import torch

from trainers.checkpoint import (
    BEST,
    LocalSink,
    TrainState,
    best_checkpoint,
    complete_checkpoints,
    load_checkpoint,
)


def state(step: int) -> TrainState:
    return TrainState(
        step=step,
        model={"weight": torch.full((2,), float(step))},
        optimizer={"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        state={"loader": {"epoch": 1, "step": 2}, "threads": 1},
    )


def test_round_trip_and_retention(tmp_path):
    sink = LocalSink(tmp_path, keep=2)
    assert sink.latest() is None
    for step in (5, 10, 15):
        sink.save(state(step), "{}\n")
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == [
        "step_000000010",
        "step_000000015",
    ]
    latest = sink.latest()
    assert latest is not None
    loaded = load_checkpoint(latest)
    assert loaded.step == 15
    torch.testing.assert_close(loaded.model["weight"], torch.full((2,), 15.0))
    assert loaded.optimizer["param_groups"][0]["lr"] == 0.1
    assert loaded.state == {"loader": {"epoch": 1, "step": 2}, "threads": 1}


def test_the_best_by_validation_stays_beside_the_newest(tmp_path):
    sink = LocalSink(tmp_path, keep=1)
    for step, value in ((5, 0.9), (10, 0.4), (15, float("nan")), (20, 0.6), (25, None)):
        metrics = {} if value is None else {BEST: value}
        sink.save(replace(state(step), state={"metrics": metrics}), "{}\n")
    kept = complete_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step_000000010", "step_000000025"]
    assert best_checkpoint(kept) == kept[0]
    sink.save(replace(state(30), state={"metrics": {BEST: 0.1}}), "{}\n")
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["step_000000030"]


def test_a_checkpoint_that_was_being_written_is_ignored_and_removed(tmp_path):
    sink = LocalSink(tmp_path, keep=3)
    sink.save(state(5), "{}\n")
    torn = tmp_path / "checkpoints" / "step_000000010.tmp"
    torn.mkdir()
    incomplete = tmp_path / "checkpoints" / "step_000000009"
    incomplete.mkdir()
    latest = sink.latest()
    assert latest is not None
    assert latest.name == "step_000000005"
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        load_checkpoint(incomplete)
    sink.save(state(15), "{}\n")
    assert not torn.exists()


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_none_that_looks_complete(tmp_path, monkeypatch):
    sink = LocalSink(tmp_path, keep=1)
    sink.save(state(5), "{}\n")

    def killed(path):
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            sink.save(state(10), "{}\n")
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["step_000000010"]
    sink.save(state(15), "{}\n")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000015"]


def test_pickles_are_not_loaded(tmp_path):
    sink = LocalSink(tmp_path, keep=1)
    path = sink.save(state(1), "{}\n")
    torch.save({"evil": pytest.raises}, path / "optim.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_checkpoint(path)


@pytest.mark.parametrize("limit", [40, 400])
def test_storage_that_is_full_is_an_error_of_the_system(tmp_path, limit):
    """Which may pass, so that the write is tried again; the weights do not fit, or the optimizer does not."""
    sink = LocalSink(tmp_path, keep=3)
    sink.save(state(5), "{}\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OSError, match="File too large"):
            sink.save(state(10), "{}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in complete_checkpoints(tmp_path / "checkpoints")] == ["step_000000005"]
    sink.save(state(10), "{}\n")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()].count("step_000000010.tmp") == 0
    assert load_checkpoint(tmp_path / "checkpoints/step_000000010").step == 10
