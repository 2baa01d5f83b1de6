"""Variants are trained on joined data with its own statistics; blank frames show nothing, but to a memory."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from infra.bench import memory, mixture, variants
from tests.helpers import make_dataset
from tests.trainers.helpers import tiny_config

CPU = torch.device("cpu")


def test_pooled_statistics_are_those_of_all_frames_together():
    rng = np.random.default_rng(0)
    parts = [rng.normal(shift, scale, (count, 3)) for shift, scale, count in ((1, 2, 30), (7, 1, 90))]
    datasets = [
        SimpleNamespace(
            manifest=SimpleNamespace(
                n_frames=len(part),
                statistics=SimpleNamespace(
                    pixel_mean=part.mean(0), pixel_std=part.std(0), action_mean=part.mean(0), action_std=part.std(0)
                ),
            )
        )
        for part in parts
    ]
    found = variants._pooled(cast(Any, datasets))
    together = np.concatenate(parts)
    np.testing.assert_allclose(found["pixel_mean"], together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["action_std"], together.std(0), rtol=1e-5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", n=40, steps=20)


def test_a_blank_frame_alone_shows_nothing_and_a_memory_remembers(dataset):
    args = memory.Args(data=dataset.path, history=3, units=8)
    rows, steps = {}, []
    for name in (memory.SINGLE, memory.MEMORY):
        config = memory.configured(tiny_config(dataset.path, stop_step=60), name, args)
        rows[name] = memory.measure(config, name, 0.5, dataset, CPU, steps.append)
    assert steps == [25, 50, 60] * 2
    for name, found in rows.items():
        assert {row.frames for row in found} == {"all", "blank"}
        assert all(row.model == name and row.r2 <= 1 for row in found)
    on_blank = {
        name: [row.r2 for row in found if row.frames == "blank" and not np.isnan(row.r2)]
        for name, found in rows.items()
    }
    # One latent for every blank frame: a probe can but say the mean, of other frames than those it is scored on.
    assert max(on_blank[memory.SINGLE]) < 0.02
    assert on_blank[memory.MEMORY] != on_blank[memory.SINGLE]


def test_a_memory_reads_the_observations_before(dataset):
    args = memory.Args(data=dataset.path, history=3, units=8)
    config = memory.configured(tiny_config(dataset.path, stop_step=30), memory.MEMORY, args)
    model = variants.train(config, [dataset], CPU, lambda step: None)
    everywhere, on_blank = memory._features(model, dataset, dataset.indices("train")[:2], 0.5)
    for all_of_it, blank in zip(everywhere, on_blank, strict=True):
        assert set(blank.time) <= set(all_of_it.time)
        assert all_of_it.time[0] >= (config.model.history - 1) * config.model.frame_skip
        assert len(np.unique(blank.features.round(6), axis=0)) > 1
    before = [each.features.copy() for each in everywhere]
    torch.nn.init.zeros_(cast(Any, model.predictor).memory.out.weight)
    again, blank_again = memory._features(model, dataset, dataset.indices("train")[:2], 0.5)
    assert any(np.abs(a.features - b).max() > 1e-4 for a, b in zip(again, before, strict=True))
    assert len(np.unique(blank_again[0].features.round(6), axis=0)) == 1


def test_a_mixture_has_a_gaussian_a_task_and_every_task_is_read(tmp_path):
    datasets = [make_dataset(tmp_path / str(seed), n=40, steps=14, seed=seed) for seed in (0, 1)]
    args = mixture.Args(data=tuple(each.path for each in datasets), steps=40)
    base = tiny_config(datasets[0].path)
    for target, components in (("one Gaussian", 1), ("mixture", 2)):
        config = mixture.configured(args, base, target, len(datasets))
        assert (config.model.regularizer.kind, config.stop_step) == (mixture.TARGETS[target], 40)
        rows = mixture.measure(replace(config, seed=3), target, datasets, CPU, lambda step: None)
        assert [(row.target, row.components, row.seed) for row in rows] == [(target, components, 3)] * 2
        assert all(row.r2_mean <= 1 and 1 <= row.effective_rank <= 8 for row in rows)
        assert rows[0].r2_mean != rows[1].r2_mean


def test_bad_arguments_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="--masked is a share of frames between 0 and 1, not 1"):
        memory.Args(data=tmp_path, masked=1.0)
    with pytest.raises(ValueError, match="--data takes two datasets or more, not 1"):
        mixture.Args(data=(tmp_path,))
    with pytest.raises(ValueError, match="--seeds name one"):
        memory.Args(data=tmp_path, seeds=())
