"""Surprise with a known answer: planted anomalies, noise, delays, and a model whose dynamics are exact."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.lewm import LeWM, LeWMConfig
from trainers.evaluation.detection import auroc, detect
from trainers.evaluation.surprise import (
    Curves,
    EventRecord,
    EventScore,
    SurpriseConfig,
    SurpriseReport,
    SurpriseScorecard,
    frames_around,
    verdict,
    window_frames,
)
from trainers.evaluation.surprise_figures import auroc_table, score_curves, write_clip
from trainers.evaluation.surprise_scores import SCORES, Familiar, Score, Scorer, predictions

E, BEFORE, AFTER = 30, 25, 6


def rollouts(anomaly: float = 0.0, begin: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of event frames, the same frames of clean rollouts, and all clean frames; noise plus `anomaly`."""
    rng = np.random.default_rng(0)
    background = rng.uniform(size=(E, BEFORE + AFTER))
    event = rng.uniform(size=(E, AFTER))
    event[:, begin:] += anomaly
    return event, background[:, BEFORE:], background


def test_a_planted_anomaly_is_found_at_once_and_without_false_alarms():
    found = detect(*rollouts(anomaly=2.0))
    assert (found.auroc, found.low, found.high) == (1.0, 1.0, 1.0)
    assert (found.detected, found.delay, found.false_alarms) == (1.0, 0.0, 0.0)


def test_noise_is_a_coin():
    found = detect(*rollouts())
    assert found.low < 0.5 < found.high
    assert 0.4 < found.auroc < 0.6
    assert found.detected < 0.3
    assert found.false_alarms > 300


@pytest.mark.parametrize("begin", [0, 1, 4])
def test_the_delay_counts_decisions_from_the_event(begin):
    event, clean, background = rollouts(anomaly=2.0, begin=begin)
    event[:, :begin] = 0.5
    found = detect(event, clean, background)
    assert (found.detected, found.delay, found.delay_low, found.delay_high) == (1.0, begin, begin, begin)


def test_delays_are_of_detected_events_alone():
    event, clean, background = rollouts()
    event[:] = 0.5
    event[: E // 2, 3] = 9.0
    found = detect(event, clean, background)
    assert (found.detected, found.delay) == (0.5, 3.0)
    event[:] = 0.5
    assert detect(event, clean, background).delay is None


def test_false_alarms_are_counted_where_95_percent_of_events_are_found():
    """20 events reach 1..20; one may be missed, so the threshold is 2; of clean frames a tenth is above it."""
    event = np.repeat(np.arange(1.0, 21.0)[:, None], 3, axis=1)
    background = np.tile(np.r_[np.full(9, 1.5), 3.0], (20, 1))
    found = detect(event, background[:, :3], background)
    assert found.false_alarms == 100.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_auroc_is_the_share_of_pairs(seed, positives, negatives):
    rng = np.random.default_rng(seed)
    p, n = rng.integers(0, 5, positives).astype(float), rng.integers(0, 5, negatives).astype(float)
    pairs = np.mean((p[:, None] > n) + 0.5 * (p[:, None] == n))
    assert auroc(p, n) == pytest.approx(pairs)
    assert auroc(n, p) == pytest.approx(1 - pairs)
    assert auroc(np.exp(p), np.exp(n)) == pytest.approx(pairs)


def linear_model(history: int, skip: int) -> Any:
    """z_{t+k} = z_t + the sum of the block's actions, in two dimensions, exactly."""

    def predict(z, blocks):
        return z + blocks.reshape(*blocks.shape[:2], skip, 2).sum(dim=2)

    config = SimpleNamespace(history=history, frame_skip=skip, stack=1, stack_stride=1, latent_dim=2)
    return SimpleNamespace(config=config, predict=predict, action_mean=torch.zeros(2))


def walk(seed: int, steps: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    action = 0.3 * torch.randn(steps, 2, generator=torch.Generator().manual_seed(seed))
    start = torch.randn(1, 2, generator=torch.Generator().manual_seed(seed + 1000))
    return torch.cat([start, start + action.cumsum(dim=0)]), action


@pytest.mark.parametrize(("history", "skip"), [(1, 1), (1, 4), (3, 2)])
def test_true_dynamics_leave_no_error_and_every_frame_meets_its_own_prediction(history, skip):
    model, (z, action) = linear_model(history, skip), walk(0)
    expected = predictions(cast(LeWM, model), z, action)
    torch.testing.assert_close(expected, z[history * skip :])


@pytest.mark.parametrize(("history", "skip"), [(1, 4), (3, 2)])
def test_an_event_raises_the_error_while_it_is_in_the_window_and_not_after(history, skip):
    model = cast(LeWM, linear_model(history, skip))
    scorer = Scorer.fit(model, [walk(seed) for seed in range(1, 9)])
    z, action = walk(0)
    z[20:] += 3.0
    scores = scorer.scores(np.zeros((len(z), 4, 4, 3), np.uint8), z, action)
    above = np.flatnonzero(np.nan_to_num(scores["prediction"]) > 1.0)
    # A predictor that looks at its newest latent alone is wrong for one step of it.
    assert above.tolist() == list(range(20, 20 + skip))
    assert set(above) <= set(range(20, 20 + window_frames(model.config)))
    assert np.isnan(scores["prediction"][: history * skip]).all()
    assert np.isfinite(scores["prediction"][history * skip :]).all()


def test_scores_of_latents_know_the_standard_normal():
    model = cast(LeWM, linear_model(1, 1))
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=rng)
    scorer = Scorer.fit(model, [(z, torch.zeros(3999, 2))])
    shown = z.clone()
    shown[100] = 30.0
    scores = scorer.scores(np.zeros((4000, 2, 2, 3), np.uint8), shown, torch.zeros(3999, 2))
    assert scores["norm"][100] == pytest.approx(899.0)
    assert np.mean(scores["mahalanobis"]) == pytest.approx(1.0, abs=0.3)
    assert scores["mahalanobis"].argmax() == 100
    assert np.isnan(scores["kl"][:7]).all()
    assert set(range(100, 108)) == set(np.argsort(np.nan_to_num(scores["kl"]))[-8:].tolist())


def test_pixels_and_actions_that_matter():
    model = cast(LeWM, linear_model(1, 2))
    scorer = Scorer.fit(model, [walk(seed) for seed in range(1, 9)])
    z, action = walk(0)
    frames = np.zeros((len(z), 4, 4, 3), np.uint8)
    frames[10:] = 20
    scores = scorer.scores(frames, z, action)
    assert np.flatnonzero(np.nan_to_num(scores["pixels"])).tolist() == [10, 11]
    assert scores["pixels"][10] == 400.0
    np.testing.assert_allclose(scores["latents"][2:], (z[2:] - z[:-2]).square().mean(dim=1).numpy(), rtol=1e-5)
    # With mean actions of zero, the blind predictor expects no change.
    np.testing.assert_allclose(scores["no_actions"][2:], scores["latents"][2:], rtol=1e-5)


def test_familiar_is_the_mahalanobis_distance():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3)) + 3 * np.eye(3)
    x = rng.normal(size=(5000, 3)) @ mixing.T
    point = x[:5]
    inverse = np.linalg.inv(np.cov(x.T))
    centred = point - x.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", centred, inverse, centred) / 3
    found = Familiar.of(torch.from_numpy(x)).distance(torch.from_numpy(point)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_windows_and_frames_around_the_event():
    config = LeWMConfig(history=3, frame_skip=4, stack=3, stack_stride=2)
    assert window_frames(config) == 16
    before, after = frames_around(config, SurpriseConfig(before=1, after=1))
    assert before == 4 + 12 + 1
    assert after == 16
    assert frames_around(config, SurpriseConfig(before=50, after=40)) == (54, 40)
    with pytest.raises(ValueError, match="episodes must be at least 2, not 1"):
        SurpriseConfig(episodes=1)


def card_and_curves() -> SurpriseReport:
    found = detect(*rollouts(anomaly=2.0))
    missed = detect(*rollouts())
    kinds = (("obstacle", "small"), ("teleport", "large"), ("light", ""))
    scores = [
        EventScore(event, size, score, missed if score == "kl" or event == "light" else found)
        for event, size in kinds
        for score in SCORES
    ]
    records = tuple(EventRecord(event, size, False, AFTER, 0.1) for event, size in kinds)
    own: tuple[Score, ...] = ("prediction", "kl")
    card = SurpriseScorecard(
        "test", E, BEFORE, AFTER, 3, 0, records, tuple(scores), (), tuple(verdict(scores, score) for score in own)
    )
    frames = np.random.default_rng(0).integers(0, 256, (BEFORE + AFTER + 2, 16, 16, 3), dtype=np.uint8)
    curves = Curves({score: rollouts()[2] for score in SCORES}, frames)
    return SurpriseReport(card, curves, {record.label: curves for record in records})


def test_the_verdict_is_over_obstacles_and_large_changes():
    by_prediction, by_kl = card_and_curves().scorecard.verdicts
    assert by_prediction.reached == ("obstacle (small)", "teleport (large)")
    assert by_prediction.missed == ()
    assert by_kl.missed == ("obstacle (small)", "teleport (large)")


def test_metrics_are_named_by_score_and_event():
    metrics = card_and_curves().scorecard.metrics()
    assert metrics["surprise/prediction/auroc/obstacle_small"] == 1.0
    assert metrics["surprise/prediction/delay/teleport_large"] == 0.0
    assert "surprise/no_actions/false_alarms/light" in metrics
    assert metrics["surprise/prediction/reached"] == 2.0


def test_figures_are_drawn_and_the_clip_has_a_picture_a_frame(tmp_path):
    report = card_and_curves()
    score_curves(report, list(report.events), "prediction").savefig(tmp_path / "curves.png")
    auroc_table(report.scorecard).savefig(tmp_path / "table.png")
    path = write_clip(tmp_path / "clips" / "event.gif", report, "teleport (large)")
    with Image.open(path) as clip:
        assert getattr(clip, "n_frames", 1) == BEFORE + AFTER
