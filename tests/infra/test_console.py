"""Results go to standard output, everything else to standard error, JSON is one value."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.console import print_json, print_table, progress, say


@dataclass(frozen=True)
class Score:
    name: str
    r2: float


def test_json_is_one_plain_value(capsys):
    print_json(
        {
            "scores": (Score("x", 0.5), Score("y", float("nan"))),
            "rate": np.float64(2.5),
            "counts": np.arange(3),
            "worst": float("-inf"),
            "path": Path("/data"),
        }
    )
    out = capsys.readouterr().out
    assert json.loads(out) == {
        "scores": [{"name": "x", "r2": 0.5}, {"name": "y", "r2": None}],
        "rate": 2.5,
        "counts": [0, 1, 2],
        "worst": None,
        "path": "/data",
    }


def test_progress_and_remarks_keep_off_standard_output(capsys):
    with progress("train", 3, "steps") as bar:
        bar.update(1)
        bar.update(3, "2.0 steps/s")
    say("done with [run 1]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "train: 3/3 steps" in captured.err
    assert "2.0 steps/s" in captured.err
    assert "ETA" in captured.err
    assert "[run 1]" in captured.err


def test_a_table_shows_every_cell_as_it_is(capsys):
    print_table("Runs", ("run", "loss"), [("walker [a]", "0.125"), ("reacher", "0.25")])
    out = capsys.readouterr().out
    assert all(text in out for text in ("Runs", "run", "loss", "walker [a]", "0.125", "reacher"))
