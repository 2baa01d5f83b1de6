"""The benchmark of collection measures every contender and says against what."""

import csv

import pytest

from infra.bench import collect
from infra.bench.common import Figure


def test_a_ratio_is_of_the_turns_and_not_of_the_medians():
    """Both contenders were slow in the same turn: the ratio does not see it."""
    ours, theirs = Figure((20.0, 2.0, 20.0, 4.0)), Figure((10.0, 1.0, 10.0, 2.0))
    assert ours.over(theirs) == 2.0
    assert (ours.rate, ours.low, ours.high, ours.turns) == (12.0, 2.0, 20.0, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("gl")
def test_every_contender_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "_COMMAND_SECONDS", 0.1)
    path = tmp_path / "collection.csv"
    sizes = (16, 32)
    collect.run(
        collect.Args(envs=("dmc/cartpole-swingup",), sizes=sizes, steps=3, episodes=1, turns=2, workers=1, csv=path)
    )
    rows = list(csv.DictReader(path.read_text().splitlines()))
    contenders = ["own calls", "record", "record, full", "render only", "1 process", "lewm collect, 1 actor"]
    assert [(row["size"], row["contender"]) for row in rows] == [(str(s), name) for s in sizes for name in contenders]
    assert all(float(row["low"]) <= float(row["frames_per_second"]) <= float(row["high"]) for row in rows)
    assert [row["against"] for row in rows[:6]] == ["own calls"] * 4 + ["record", "1 process"]
    assert float(rows[0]["ratio"]) == 1
