"""`lewm bench train` in the small, and the arithmetic of the roofline."""

import csv
import json

import pytest

from infra.bench.train import BASELINE, LOADER, RESIDENT, Work
from infra.cli import main
from tests.helpers import make_dataset


def test_it_measures_all_contenders_in_one_run(tmp_path, capsys):
    make_dataset(tmp_path / "data", n=24, steps=20, size=64)
    words = ["--data", str(tmp_path / "data"), "--batch", "8", "--seconds", "0.2", "--turns", "2", "--device", "cpu"]
    assert main(["bench", "train", *words, "--threads", "1", "--csv", str(tmp_path / "rows.csv"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["contender"]: row for row in result["rows"]}
    assert list(rows) == [BASELINE, RESIDENT, LOADER]
    base = rows[BASELINE]
    assert base["ratio"] == 1
    for row in rows.values():
        assert row["low"] <= row["steps_per_second"] <= row["high"]
        assert row["low"] / base["high"] <= row["ratio"] <= row["high"] / base["low"]
        assert row["samples_per_second"] == pytest.approx(8 * row["steps_per_second"])
        assert row["mfu"] > 0
        assert row["roofline"] > 0
        assert row["memory_gb"] > 0
        assert row["steps"] >= 2
    assert rows[BASELINE]["wait_share"] == rows[RESIDENT]["wait_share"] == 0
    assert 0 < rows[LOADER]["wait_share"] < 1
    assert rows[LOADER]["tier"] in ("stream", "memmap", "gpu")
    assert result["rtx_3090_steps_per_second_estimate"] is None
    with (tmp_path / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["contender"] for row in written] == list(rows)
    assert all(row["hardware"] and row["commit"] for row in written)


def test_the_estimate_is_the_measured_share_of_the_other_roofline():
    # Bound by FLOPs here and there: a tenth of the FLOP/s of an RTX 3090 gives ten times the rate.
    compute = Work(flops=1e12, least_bytes=1e3, usual_bytes=2e3, flops_per_second=7.1e12, bytes_per_second=1e12)
    assert compute.roofline(3.55) == pytest.approx(0.5)
    assert compute.rtx_3090(3.55) == pytest.approx((35.5, 35.5))
    # Bound by memory there at the usual traffic alone: the estimate becomes a range.
    mixed = Work(flops=71e9, least_bytes=0.5e9, usual_bytes=2 * 936e6, flops_per_second=71e12, bytes_per_second=1e15)
    assert mixed.rtx_3090(500.0) == pytest.approx((250.0, 500.0))


@pytest.mark.parametrize("words", [["--turns", "0"], ["--seconds", "0"], ["--batch", "-1"]])
def test_numbers_that_measure_nothing_are_refused(words, capsys):
    assert main(["bench", "train", *words]) == 2
    assert words[0].removeprefix("--") in capsys.readouterr().err
