"""Probes with a known answer."""

import numpy as np
import pytest

from shards.episode import StateColumn
from trainers.evaluation.latents import EpisodeFeatures
from trainers.evaluation.probes import linear_probe, targets

COLUMNS = (
    StateColumn("x", "m", "position", "one_frame"),
    StateColumn("angle", "rad", "angle", "one_frame", periodic=True),
    StateColumn("speed", "m/s", "velocity", "several_frames"),
)


def episodes(features, count: int = 24, steps: int = 40, seed: int = 0):
    """Episodes whose features are `features(state, rng)`; 18 to fit on, the rest held out."""
    rng = np.random.default_rng(seed)
    states, sequences = {}, []
    for number in range(count):
        t = np.arange(steps) / 5 + rng.uniform(0, 6)
        x, angle = np.sin(t), 3 * t
        states[number] = np.stack([x, angle, np.cos(t)], axis=1).astype(np.float32)
        sequences.append(EpisodeFeatures(number, np.arange(steps), features(states[number], rng)))
    return sequences[:18], sequences[18:], states


def test_targets_turn_angles_into_sine_and_cosine():
    names, values = targets(COLUMNS, np.array([[1.0, np.pi / 2, 3.0]]))
    assert [name for name, _ in names] == ["x", "sin(angle)", "cos(angle)", "speed"]
    np.testing.assert_allclose(values, [[1, 1, 0, 3]], atol=1e-12)


def test_a_linear_map_of_the_state_gives_one():
    mixing = np.random.default_rng(1).normal(size=(4, 16))
    train, test, states = episodes(lambda state, rng: targets(COLUMNS, state)[1] @ mixing + 5)
    fit = linear_probe(train, test, states, COLUMNS)
    assert all(score.r2 > 0.9999 for score in fit.scores)
    assert all(score.low <= score.r2 <= score.high + 1e-9 for score in fit.scores)


def test_noise_gives_nothing():
    train, test, states = episodes(lambda state, rng: rng.normal(size=(len(state), 16)))
    fit = linear_probe(train, test, states, COLUMNS)
    assert all(score.r2 < 0.05 for score in fit.scores)


def test_a_window_shows_the_velocity_that_one_position_hides():
    def position_only(state, rng):
        return state[:, :1].astype(np.float64)

    train, test, states = episodes(position_only)
    one = linear_probe(train, test, states, COLUMNS).score("speed").r2
    three = linear_probe(train, test, states, COLUMNS, window=3, spacing=2).score("speed").r2
    assert one < 0.3
    assert three > 0.99


def test_the_ridge_is_chosen_on_training_episodes():
    """More features than a plain fit could bear: cross-validation must pick a strength that generalises."""

    def many(state, rng):
        clean = targets(COLUMNS, state)[1]
        return np.concatenate([clean + 0.5 * rng.normal(size=clean.shape), rng.normal(size=(len(state), 300))], axis=1)

    train, test, states = episodes(many)
    fit = linear_probe(train, test, states, COLUMNS)
    assert fit.score("x").r2 > 0.5
    assert fit.score("x").strength > 1e-6


def test_too_little_data_is_refused():
    train, test, states = episodes(lambda state, rng: state.astype(np.float64))
    with pytest.raises(ValueError, match="5-fold"):
        linear_probe(train[:3], test, states, COLUMNS)
    with pytest.raises(ValueError, match="held-out"):
        linear_probe(train, [], states, COLUMNS)
    with pytest.raises(ValueError, match="long enough"):
        linear_probe(train, test, states, COLUMNS, window=3, spacing=30)
