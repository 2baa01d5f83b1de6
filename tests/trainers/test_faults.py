"""Workers and nodes that die, nodes that join, a record and storage that are away: one run, one continuous curve."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from infra.home import Home
from tests.helpers import make_dataset
from tests.trainers.helpers import recorded
from trainers.checkpoint import complete_checkpoints

pytestmark = pytest.mark.slow

STEPS = 80
# Case: ranks at the start and at the end.
CASES = {"worker": (2, 2), "node": (2, 1), "gain": (1, 2), "mlflow": (2, 2), "storage": (2, 2)}


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
    rows = recorded(tmp_path / "record.jsonl")
    steps = list(range(1, STEPS + 1))
    assert (rows[0][1], rows[-1][1]) == CASES[case]
    assert sorted({step for step, _, _ in rows}) == steps
    restarts = [(step, following) for (step, *_), (following, *_) in pairwise(rows) if following != step + 1]
    assert bool(restarts) == (case != "storage")
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

    curve = curve_of(Home(tmp_path / "home"))
    assert [step for step, _ in curve] == steps
    assert dict(curve) == pytest.approx({step: metrics["train/prediction"] for step, _, metrics in rows}, rel=1e-3)
    saved = [int(path.name.removeprefix("step_")) for path in complete_checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved[-1] == steps[-1]
    assert 20 not in saved if case == "storage" else 20 in saved


def curve_of(home: Home) -> list[tuple[int, float]]:
    """The loss in the MLflow store, every row of it, in all runs that there are."""
    with closing(sqlite3.connect(home.database)) as database:
        rows = database.execute("select step, value from metrics where key = 'train/prediction' order by step")
        return rows.fetchall()
