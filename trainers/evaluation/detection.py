"""How well a score tells frames of an event from the same frames of a rollout without it.

AUROC is the chance that a frame of an event scores above a clean one. Two operating points go with it: at the threshold
that one clean frame in a hundred exceeds, how many events are detected and after how many decisions; and at the
threshold that 95 % of events reach, how many of 1,000 clean frames exceed it. All intervals are bootstrap intervals
over episodes, because the frames of one rollout are not independent.
"""

from dataclasses import dataclass

import numpy as np

FALSE_ALARMS = 0.01
"""Share of clean frames above the threshold at which delays are counted."""
DETECTION = 0.95
"""Share of events detected at which false alarms are counted."""


@dataclass(frozen=True, slots=True)
class Detection:
    """Pairs `low`, `high` are 95 % intervals; `low` and `high` themselves those of the AUROC.

    `detected` is the share of events with a frame above the threshold that 1 % of clean frames exceed, `delay` the mean
    number of decisions from the first frame that may show the event to the first one above it, over detected events
    (None without any). `false_alarms` counts clean frames in 1,000 above the threshold that 95 % of events reach.
    """

    auroc: float
    low: float
    high: float
    detected: float
    detected_low: float
    detected_high: float
    delay: float | None
    delay_low: float | None
    delay_high: float | None
    false_alarms: float
    false_alarms_low: float
    false_alarms_high: float


def detect(event_EN: np.ndarray, clean_EN: np.ndarray, background: np.ndarray, bootstraps: int = 500) -> Detection:
    """Judge scores (E, N) of N frames from an event on, and of the same frames of the E clean rollouts.

    `background` (E, M) are scores of all clean frames of those rollouts, NaN where one is not there yet.
    """
    wins_EE, clean_EM = _wins(event_EN, clean_EN), background[:, np.isfinite(background).all(axis=0)]
    drawn = np.random.default_rng(0).integers(len(event_EN), size=(bootstraps, len(event_EN)))
    counts = np.stack([np.bincount(each, minlength=len(event_EN)) for each in drawn]).astype(float)
    aurocs = np.einsum("be,ef,bf->b", counts, wins_EE, counts) / len(event_EN) ** 2
    own = _operating(event_EN[None], clean_EM[None])[:, 0]
    others = _operating(event_EN[drawn], clean_EM[drawn])
    bounds = [_bounds(aurocs), *(_bounds(row) for row in others)]
    values = (float(wins_EE.mean()), *own)
    shares, detected, delay, alarms = ((float(value), *pair) for value, pair in zip(values, bounds, strict=True))
    return Detection(*shares, *detected, *((None, None, None) if np.isnan(delay[0]) else delay), *alarms)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that one of `positive` (P,) is above one of `negative` (N,), ties counting half."""
    return float(_wins(positive[None], negative[None])[0, 0])


def _wins(event_EN: np.ndarray, clean_EN: np.ndarray) -> np.ndarray:
    """(E, E): the share of pairs in which a frame of event e is above one of clean rollout f, ties counting half."""
    wins = np.empty((len(event_EN), len(clean_EN)))
    for f, clean in enumerate(np.sort(clean_EN, axis=1)):
        below, upto = np.searchsorted(clean, event_EN), np.searchsorted(clean, event_EN, side="right")
        wins[:, f] = ((below + upto) / (2 * len(clean))).mean(axis=1)
    return wins


def _operating(event_BEN: np.ndarray, clean_BEM: np.ndarray) -> np.ndarray:
    """(3, B): share detected and mean delay at a fixed rate of false alarms, false alarms in 1,000 at fixed detection.

    The first axis has B sets of episodes that are judged by themselves.
    """
    clean_BC = clean_BEM.reshape(len(clean_BEM), -1)
    threshold_B = np.quantile(clean_BC, 1 - FALSE_ALARMS, axis=1)
    above_BEN = event_BEN > threshold_B[:, None, None]
    found_BE = above_BEN.any(axis=2)
    count_B = found_BE.sum(axis=1)
    delay_B = np.where(found_BE, above_BEN.argmax(axis=2), 0).sum(axis=1) / np.where(count_B > 0, count_B, np.nan)
    missed = int(np.floor((1 - DETECTION) * event_BEN.shape[1] + 1e-9))
    reached_B = np.sort(event_BEN.max(axis=2), axis=1)[:, missed]
    alarms_B = 1000 * (clean_BC >= reached_B[:, None]).mean(axis=1)
    return np.stack([found_BE.mean(axis=1), delay_B, alarms_B])


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of what is finite."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return float(low), float(high)
