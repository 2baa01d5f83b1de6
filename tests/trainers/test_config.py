"""Configurations survive JSON, and bad ones are refused by name."""

import json
from dataclasses import asdict, replace

import pytest

from trainers.config import (
    TrainConfig,
    check_resumable,
    config_id,
    config_json,
    flatten,
    load_train_config,
    parse_train_config,
    train_preset,
)
from trainers.optim import learning_rate


def test_json_round_trip(tmp_path):
    config = replace(train_preset("article", "/data/walker"), seed=7)
    path = tmp_path / "config.json"
    path.write_text(config_json(config))
    assert load_train_config(path) == config
    assert config_id(load_train_config(path)) == config_id(config)
    assert config_id(replace(config, seed=8)) != config_id(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": "many"}, "batch_size"),
        ({"model": {"latent_dim": [1]}}, "model.latent_dim"),
        ({"colour": 1}, "colour"),
        ({"optim": {"momentum": 0.9}}, "optim.momentum"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_fields_are_named(change, named):
    values = json.loads(config_json(train_preset("tiny", "/data")))
    for name, value in change.items():
        if isinstance(value, dict):
            values[name] |= value
        else:
            values[name] = value
    with pytest.raises(ValueError, match=named):
        parse_train_config(values, source="config.json")


def test_not_json_and_missing_fields(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_train_config(path)
    with pytest.raises(ValueError, match="data"):
        parse_train_config({"model": asdict(train_preset("tiny", "").model)}, source="x")


def test_more_workers_than_windows_is_refused():
    with pytest.raises(ValueError, match="3 workers"):
        replace(train_preset("tiny", "/data"), batch_size=2, workers=3)


@pytest.mark.parametrize(("workers", "expected"), [(1, (1, 1)), (4, (4, 4)), ("2..4", (2, 4)), ("3", (3, 3))])
def test_workers_are_a_number_or_a_range(tmp_path, workers, expected):
    config = replace(train_preset("tiny", "/data"), workers=workers)
    assert config.worker_range == expected
    (tmp_path / "config.json").write_text(config_json(config))
    assert load_train_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("workers", [0, -1, "2..", "..4", "4..2", "many", ""])
def test_bad_workers_are_refused(workers):
    with pytest.raises(ValueError, match="workers"):
        replace(train_preset("tiny", "/data"), workers=workers)


def test_a_run_may_go_on_elsewhere_but_not_as_another():
    config = train_preset("tiny", "/data")
    check_resumable(config, replace(config, data="/other", workers="1..2", threads=3, compile="off"), "run one")
    other = replace(config, seed=1, optim=replace(config.optim, lr=1.0))
    with pytest.raises(ValueError, match=r"run one .*optim\.lr was 0\.002, is 1\.0; seed was 0, is 1"):
        check_resumable(config, other, "run one")
    with pytest.raises(ValueError, match="stop_step was 2500, is 9000"):
        check_resumable(config, replace(config, stop_step=9000), "run one")
    scheduled = replace(config, optim=replace(config.optim, schedule_steps=9000))
    check_resumable(scheduled, replace(scheduled, stop_step=9000), "run one")


def test_flatten():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}


def test_presets_are_complete():
    assert isinstance(train_preset("tiny", "/data"), TrainConfig)
    assert train_preset("article", "/data").batch_size == 256
    assert train_preset("article", "/data").stop_step == 500_000


def test_the_released_recipe_stops_long_before_its_schedule_ends():
    """The authors scheduled 100 epochs and stopped after 10: the rate has hardly decayed by then."""
    config = train_preset("released", "/data")
    assert config.optim.schedule_steps == 10 * config.stop_step
    start, end = (learning_rate(config.optim, step, config.stop_step) for step in (13_900, config.stop_step))
    assert 0.97 < end / start < 0.99
    assert (config.batch_size, config.precision, config.optim.lr) == (128, "bfloat16", 5e-5)
