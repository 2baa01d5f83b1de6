"""A run that is killed with SIGKILL, again and again, goes on to the losses and weights of one that was left alone."""

import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.helpers import make_dataset
from tests.trainers.helpers import losses_by_step, processes, random_config, recorded, train, weights

STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "data"
    make_dataset(path, n=24, steps=20)
    return path


def in_process(*args) -> int | None:
    process = processes().Process(target=train, args=args)
    process.start()
    process.join()
    return process.exitcode


def check(data: Path, folder: Path, kills: list[int]) -> None:
    """Kill one run at each of `kills`, in one life after the other."""
    config = random_config(data, stop_step=STEPS)
    assert in_process(config, folder / "whole") == 0
    for step in kills:
        assert in_process(config, folder / "killed", step) == -signal.SIGKILL
    assert in_process(config, folder / "killed") == 0
    assert losses_by_step(folder / "killed/record.jsonl") == losses_by_step(folder / "whole/record.jsonl")
    assert sorted(losses_by_step(folder / "killed/record.jsonl")) == list(range(1, STEPS + 1))
    lives = [step for step, _, _ in recorded(folder / "killed/record.jsonl")]
    begins = [after for before, after in pairwise(lives) if after <= before]
    # Each went on from a checkpoint, which took more than none and less than all that was done.
    assert len(begins) == len(kills)
    assert max(begins) > 10
    left_alone, resumed = weights(folder / "whole"), weights(folder / "killed")
    assert left_alone.keys() == resumed.keys()
    for name, tensor in left_alone.items():
        assert torch.equal(tensor, resumed[name]), name


def test_five_kills(data, tmp_path):
    check(data, tmp_path, [3, 5, 11, 16, 22])


@pytest.mark.slow
def test_twenty_kills(data, tmp_path):
    """At every step but the last ones, in an order that goes on."""
    check(data, tmp_path, list(range(1, 21)))
