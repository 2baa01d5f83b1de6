"""Workers and nodes that die, and nodes that join: the run goes on, as one run with one continuous curve."""

import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers import make_dataset
from tests.trainers.helpers import recorded

pytestmark = pytest.mark.slow

# Case: ranks at the start and at the end, and steps.
CASES = {"worker": (2, 2, 80), "node": (2, 1, 80), "gain": (1, 2, 300)}


@pytest.mark.parametrize("case", CASES)
def test_the_run_goes_on(case, tmp_path):
    make_dataset(tmp_path / "data", n=24, steps=20)
    root = Path(__file__).resolve().parents[2]
    # Ray leaves the address of the newest cluster in its directory, for others to connect to: not here.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray_directory:
        done = subprocess.run(
            [sys.executable, "-m", "tests.trainers.cluster_run", case, str(tmp_path)],
            cwd=root, env=os.environ | {"RAY_TMPDIR": ray_directory},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    before, after, stop_step = CASES[case]
    rows = recorded(tmp_path / "record.jsonl")
    assert (rows[0][1], rows[-1][1]) == (before, after)
    assert sorted({step for step, _, _ in rows}) == list(range(1, stop_step + 1))
    restarts = [(step, following) for (step, *_), (following, *_) in pairwise(rows) if following != step + 1]
    assert restarts
    for step, following in restarts:
        # From a checkpoint, of which there is one every 10 steps, and the latest may have been on its way.
        assert following <= step
        assert (following - 1) % 10 == 0
        assert step - following < 20
    losses: dict[int, float] = {}
    for step, _, metrics in rows:
        total = metrics["train/prediction"] + 0.1 * metrics["train/regularizer"]
        # A step that was taken again, also by other ranks, sees the same global batch.
        assert losses.setdefault(step, total) == pytest.approx(total, rel=1e-3)
