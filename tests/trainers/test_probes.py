"""Probes with a known answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.lewm import LeWMConfig
from shards.episode import StateColumn
from trainers.evaluation.baselines import shown_state
from trainers.evaluation.latents import EpisodeFeatures
from trainers.evaluation.mlp_probe import MLPProbeConfig, mlp_probe
from trainers.evaluation.probes import ProbeData, ProbeScore, Rows, linear_probe, targets
from trainers.evaluation.scorecard import ProbeResult, ProbeScorecard, mean_r2, verdict

COLUMNS = (
    StateColumn("x", "m", "position", "one_frame"),
    StateColumn("angle", "rad", "angle", "one_frame", periodic=True),
    StateColumn("speed", "m/s", "velocity", "several_frames"),
)

SHORT = MLPProbeConfig(steps=100)


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


def linear(features, **window):
    return linear_probe(data(features, **window))


def data(features, **window) -> ProbeData:
    train, test, states = episodes(features)
    return ProbeData.of(train, test, states, COLUMNS, **window)


@pytest.mark.parametrize("probe", [linear_probe, mlp_probe])
def test_a_linear_map_of_the_state_gives_one(probe):
    mixing = np.random.default_rng(1).normal(size=(4, 16))
    fit = probe(data(lambda state, rng: targets(COLUMNS, state)[1] @ mixing + 5))
    least = 0.9999 if probe is linear_probe else 0.98
    for score in fit.scores:
        assert score.r2 > least
        assert score.r > least
        assert score.mse < 1 - least
        assert score.low <= score.r2 <= score.high + 1e-9
        assert score.r_low <= score.r <= score.r_high + 1e-9
        assert score.mse_low - 1e-9 <= score.mse <= score.mse_high + 1e-9


@pytest.mark.parametrize("probe", [linear_probe, mlp_probe])
def test_noise_gives_nothing(probe):
    rows = data(lambda state, rng: rng.normal(size=(len(state), 16)))
    fit = probe(rows)
    for score in fit.scores:
        assert score.r2 < 0.05
        assert abs(score.r) < 0.2
        assert score.mse > 0.5


def test_an_mlp_reads_what_is_encoded_nonlinearly():
    """The features show the size of x, and its sign times something else: x is a product."""

    def folded(state, rng):
        x = state[:, 0]
        return np.stack([np.abs(x), np.sign(x) * rng.uniform(0.3, 1, len(x))], axis=1)

    rows = data(folded)
    assert linear_probe(rows).score("x").r2 < 0.9
    assert mlp_probe(rows).score("x").r2 > 0.98


def test_an_mlp_probe_is_a_function_of_its_seed():
    rows = data(lambda state, rng: state + 0.3 * rng.normal(size=state.shape))
    first, again, other = (mlp_probe(rows, SHORT, seed=seed).prediction for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_mlp_probe_never_sees_held_out_targets():
    rows = data(lambda state, rng: state + 0.3 * rng.normal(size=state.shape))
    changed = ProbeData(rows.names, rows.train, Rows(rows.test.x, rows.test.y + 7, rows.test.episode))
    np.testing.assert_array_equal(mlp_probe(rows, SHORT).prediction, mlp_probe(changed, SHORT).prediction)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 2.0), st.floats(-1e3, 1e3))
@settings(max_examples=30, deadline=None)
def test_scores_are_what_numpy_says(seed, noise, offset):
    rng = np.random.default_rng(seed)
    rows = Rows(np.zeros((60, 1)), rng.normal(size=(60, 2)) + offset, np.repeat(np.arange(6), 10))
    prediction = rows.y + noise * rng.normal(size=rows.y.shape)
    scores = ProbeData((("a", "one_frame"), ("b", "hidden")), rows, rows).fit(prediction, bootstraps=50).scores
    for index, score in enumerate(scores):
        truth, guess = rows.y[:, index], prediction[:, index]
        assert score.mse == pytest.approx(np.mean((truth - guess) ** 2) / truth.var(), abs=1e-9)
        assert score.r2 == pytest.approx(1 - score.mse, abs=1e-9)
        assert score.r == pytest.approx(np.corrcoef(truth, guess)[0, 1], abs=1e-6)


def test_intervals_narrow_with_episodes_and_not_with_frames():
    """Ten times the frames of the same episodes is no more evidence."""

    def width(episodes: int, frames: int) -> float:
        rng = np.random.default_rng(0)
        level = np.repeat(rng.normal(size=episodes), frames)[:, None]
        error = np.repeat(rng.normal(size=episodes), frames)[:, None]
        rows = Rows(level, level, np.repeat(np.arange(episodes), frames))
        score = ProbeData((("a", "one_frame"),), rows, rows).fit(level + 0.3 * error).scores[0]
        return score.high - score.low

    assert width(10, 100) == pytest.approx(width(10, 10), rel=1e-6)
    assert width(400, 10) < 0.5 * width(10, 10)


def test_a_quantity_that_only_training_episodes_move_has_no_score():
    rng = np.random.default_rng(0)

    def rows(scale):
        y = rng.normal(size=(200, 2)) * [1, scale]
        return Rows(y + rng.normal(size=y.shape) * 0.1, y, np.repeat(np.arange(10), 20))

    def r2(scale):
        names = (("moved", "one_frame"), ("still", "one_frame"))
        return [score.r2 for score in linear_probe(ProbeData(names, rows(1.0), rows(scale)), bootstraps=1).scores]

    assert min(r2(1.0)) > 0.9
    moved, still = r2(0.01)
    assert moved > 0.9
    assert np.isnan(still)


def test_a_quantity_that_does_not_vary_has_no_score():
    def still(state):
        state[:, 0] = 3.0
        return state

    train, test, states = episodes(lambda state, rng: state)
    rows = ProbeData.of(train, test, {number: still(state) for number, state in states.items()}, COLUMNS)
    x, *others = linear_probe(rows).scores
    assert math.isnan(x.r2)
    assert math.isnan(x.high)
    assert not any(math.isnan(score.r2) for score in others)
    assert mean_r2((x, *others)) == pytest.approx(sum(score.r2 for score in others) / len(others))


def test_the_true_state_shows_what_the_frames_of_a_stack_show():
    states = {0: np.arange(24, dtype=np.float32).reshape(8, 3)}
    config = LeWMConfig(stack=2, stack_stride=3)
    times = np.array([3, 5])
    (shown,) = shown_state([EpisodeFeatures(0, times, np.zeros((2, 1)))], states, COLUMNS, config)
    x, angle = states[0][:, 0], states[0][:, 1]
    shows = ((float, x), (np.sin, angle), (np.cos, angle))
    expected = [[f(v[t - back]) for back in (3, 0) for f, v in shows] for t in times]
    np.testing.assert_allclose(shown.features, np.array(expected))


def score(target: str, observable: str, r2: float, low: float = 0.0) -> ProbeScore:
    return ProbeScore(target, observable, r2, low, 1.0, 0.9, 0.8, 1.0, 0.1, 0.0, 0.2, None)


def results(one: dict[str, float], three: dict[str, float]) -> list[ProbeResult]:
    kinds = {"x": "one_frame", "speed": "several_frames", "root": "hidden", "goal": "one_frame"}
    return [
        ProbeResult("lewm", "linear", window, tuple(score(name, kinds[name], r2) for name, r2 in values.items()))
        for window, values in ((1, one), (3, three))
    ]


def test_the_verdict_takes_positions_from_one_latent_and_velocities_from_three():
    nan = float("nan")
    good = verdict(
        results(
            {"x": 0.95, "speed": 0.1, "root": 0.0, "goal": nan}, {"x": 0.5, "speed": 0.93, "root": 0.0, "goal": nan}
        ),
        "linear",
    )
    assert good.met
    assert (good.passed, good.columns, good.worst, good.constant) == (2, 2, "speed", ("goal",))
    bad = verdict(results({"x": 0.9, "speed": 0.99}, {"x": 0.99, "speed": 0.99}), "linear")
    assert not bad.met
    assert (bad.passed, bad.columns, bad.worst, bad.worst_r2) == (1, 2, "x", 0.9)
    assert not verdict(results({"root": 0.99}, {"root": 0.99}), "linear").met


def test_metrics_are_grouped_by_what_is_compared():
    found = tuple(
        ProbeResult(source, probe, window, (score("sin(pole)", "one_frame", 0.5),))
        for source in ("lewm", "pixel_pca")
        for probe in ("linear", "mlp")
        for window in (1, 3)
    )
    card = ProbeScorecard("test", 9, 3, 4, found, (verdict(found, "linear"),), 0.5, 0.4, 10.0, 16)
    metrics = card.metrics()
    expected = {
        f"probe/{probe}/{window}/{value}/pole_sin"
        for probe in ("linear", "mlp")
        for window in ("w1", "w3")
        for value in ("r2", "r", "mse")
    } | {"probe_pixel_pca/mlp/w1/r2/pole_sin", "probe/linear/w3/r2_mean", "val/probe/linear/w3/r2_mean"}
    assert expected <= metrics.keys()
    assert card.scores("pixel_pca", "mlp", 3) is found[-1].scores


def test_a_window_shows_the_velocity_that_one_position_hides():
    def position_only(state, rng):
        return state[:, :1].astype(np.float64)

    one = linear(position_only).score("speed").r2
    three = linear(position_only, window=3, spacing=2).score("speed").r2
    assert one < 0.3
    assert three > 0.99


def test_the_ridge_is_chosen_on_training_episodes():
    """More features than a plain fit could bear: cross-validation must pick a strength that generalises."""

    def many(state, rng):
        clean = targets(COLUMNS, state)[1]
        return np.concatenate([clean + 0.5 * rng.normal(size=clean.shape), rng.normal(size=(len(state), 300))], axis=1)

    fit = linear(many)
    assert fit.score("x").r2 > 0.5
    strength = fit.score("x").strength
    assert strength is not None
    assert strength > 1e-6


def test_too_little_data_is_refused():
    train, test, states = episodes(lambda state, rng: state.astype(np.float64))
    with pytest.raises(ValueError, match="5-fold"):
        linear_probe(ProbeData.of(train[:3], test, states, COLUMNS))
    with pytest.raises(ValueError, match="stop early"):
        mlp_probe(ProbeData.of(train[:3], test, states, COLUMNS))
    with pytest.raises(ValueError, match="held-out"):
        ProbeData.of(train, [], states, COLUMNS)
    with pytest.raises(ValueError, match="long enough"):
        ProbeData.of(train, test, states, COLUMNS, window=3, spacing=30)
    with pytest.raises(ValueError, match="nothing to probe"):
        ProbeData.of(train, test, states, ())
