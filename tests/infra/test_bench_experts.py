"""Intervals are those of the textbooks, and the command reports what episodes return."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from infra.bench import experts


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_success_rates_have_wilsons_interval(counts):
    wins, n = counts
    known = binomtest(wins, n).proportion_ci(method="wilson")
    assert experts.wilson(wins, n) == pytest.approx((known.low, known.high), abs=1e-6)


def test_returns_have_an_interval_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(500, 100, 200)
    low, high = experts.bootstrap(values)
    error = values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)
    assert experts.bootstrap(np.full(5, 3.0)) == (3.0, 3.0)


@pytest.mark.usefixtures("gl")
def test_patterns_mean_environments():
    assert experts.matching(["dmc/reacher-*", "dmc/walker-walk"]) == [
        "dmc/reacher-easy",
        "dmc/reacher-hard",
        "dmc/walker-walk",
    ]
    assert len(experts.matching(["metaworld/*"])) == 50
    with pytest.raises(ValueError, match=r"walker-wal.*did you mean dmc/walker-walk"):
        experts.matching(["dmc/walker-wal"])


@pytest.mark.usefixtures("gl")
def test_the_command_reports_whole_episodes(tmp_path):
    command = [sys.executable, "-c", "from infra.cli import entry; entry()", "bench", "experts", "--json"]
    command += ["--tasks", "dmc/reacher-easy", "metaworld/drawer-open-v3", "--episodes", "2"]
    done = subprocess.run([*command, "--csv", str(tmp_path / "out.csv")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["task"], row["policy"]): row for row in json.loads(done.stdout)}
    expert, random = (rows["dmc/reacher-easy", policy] for policy in ("expert", "random"))
    assert random["return_mean"] < 500 < 900 < expert["return_min"] <= expert["return_mean"] <= expert["return_high"]
    assert expert["success"] is None
    assert rows["metaworld/drawer-open-v3", "expert"]["success"] == 1.0
    assert rows["metaworld/drawer-open-v3", "expert"]["success_low"] == pytest.approx(experts.wilson(2, 2)[0])
    written = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(row["task"], row["policy"]) for row in written] == list(rows)
    assert {"command", "commit", "hardware", "date"} <= set(written[0])
