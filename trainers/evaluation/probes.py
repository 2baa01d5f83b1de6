"""Linear probes: how much of the named physical state can be read from frozen features with a ridge regression.

Features and targets are standardised on training episodes; the ridge strength of each target is chosen by
cross-validation over training episodes; R2 is measured on held-out episodes, with a bootstrap interval over episodes.
Angles are probed as sine and cosine. A window of w features is w latents, `spacing` frames apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.episode import StateColumn
from trainers.evaluation.latents import EpisodeFeatures

STRENGTHS = np.logspace(-6, 1, 15)
"""Ridge strengths tried, in units of the number of training rows (features have unit variance)."""


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """One target's result on held-out episodes. `low` and `high` bound the 95 % bootstrap interval of R2."""

    target: str
    observable: str
    r2: float
    low: float
    high: float
    r: float
    strength: float


@dataclass(frozen=True, slots=True)
class ProbeFit:
    """Scores, and the held-out truth and predictions (M, targets) that figures show."""

    scores: tuple[ProbeScore, ...]
    truth: np.ndarray
    prediction: np.ndarray

    def score(self, target: str) -> ProbeScore:
        return next(score for score in self.scores if score.target == target)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Design matrix of several episodes; `episode` numbers them 0, 1, ... in order."""

    x: np.ndarray
    y: np.ndarray
    episode: np.ndarray


def targets(columns: Sequence[StateColumn], state: np.ndarray) -> tuple[list[tuple[str, str]], np.ndarray]:
    """(name, observability) of every target and their values (M, targets): periodic columns as sine and cosine."""
    names: list[tuple[str, str]] = []
    values: list[np.ndarray] = []
    for index, column in enumerate(columns):
        if column.periodic:
            names += [(f"sin({column.name})", column.observable), (f"cos({column.name})", column.observable)]
            values += [np.sin(state[:, index]), np.cos(state[:, index])]
        else:
            names.append((column.name, column.observable))
            values.append(state[:, index])
    return names, np.stack(values, axis=1).astype(np.float64)


def linear_probe(
    train: Sequence[EpisodeFeatures],
    test: Sequence[EpisodeFeatures],
    states: dict[int, np.ndarray],
    columns: Sequence[StateColumn],
    *,
    window: int = 1,
    spacing: int = 1,
    folds: int = 5,
    bootstraps: int = 500,
) -> ProbeFit:
    """Fit on `train`, score on `test`. `states` maps an episode's number to its (T+1, S) state."""
    if len(train) < folds:
        raise ValueError(f"{len(train)} training episodes are too few for {folds}-fold cross-validation")
    if not test:
        raise ValueError("there is no held-out episode to probe: collect more episodes")
    names = targets(columns, next(iter(states.values())))[0]
    fit_rows = _rows(train, states, columns, window, spacing)
    test_rows = _rows(test, states, columns, window, spacing)
    x_mean, x_std = fit_rows.x.mean(axis=0), _safe_std(fit_rows.x)
    y_mean, y_std = fit_rows.y.mean(axis=0), _safe_std(fit_rows.y)
    x, y = (fit_rows.x - x_mean) / x_std, (fit_rows.y - y_mean) / y_std

    error = np.zeros((len(STRENGTHS), y.shape[1]))
    for fold in range(folds):
        inside = fit_rows.episode % folds != fold
        for index, weights in enumerate(_ridge_path(x[inside], y[inside])):
            error[index] += np.square(x[~inside] @ weights - y[~inside]).sum(axis=0)
    best = error.argmin(axis=0)
    path = np.stack(_ridge_path(x, y))
    weights = np.stack([path[best[target], :, target] for target in range(y.shape[1])], axis=1)
    prediction = ((test_rows.x - x_mean) / x_std) @ weights * y_std + y_mean

    low, high = _bootstrap_r2(test_rows, prediction, bootstraps)
    r2 = _r2(test_rows.y, prediction)
    scores = tuple(
        ProbeScore(
            target=name,
            observable=observable,
            r2=float(r2[index]),
            low=float(low[index]),
            high=float(high[index]),
            r=_correlation(test_rows.y[:, index], prediction[:, index]),
            strength=float(STRENGTHS[best[index]]),
        )
        for index, (name, observable) in enumerate(names)
    )
    return ProbeFit(scores, test_rows.y, prediction)


def _rows(
    sequences: Sequence[EpisodeFeatures],
    states: dict[int, np.ndarray],
    columns: Sequence[StateColumn],
    window: int,
    spacing: int,
) -> _Rows:
    """One row a time step whose window lies within the episode: the newest feature last."""
    xs, ys, episodes = [], [], []
    for number, sequence in enumerate(sequences):
        stride = int(sequence.time[1] - sequence.time[0]) if len(sequence.time) > 1 else 1
        if window > 1 and spacing % stride:
            raise ValueError(f"a window spacing of {spacing} frames does not fit features every {stride} frames")
        lag = spacing // stride
        first = (window - 1) * lag
        rows = np.arange(first, len(sequence.time))
        if len(rows) == 0:
            continue
        xs.append(np.concatenate([sequence.features[rows - lag * back] for back in reversed(range(window))], axis=1))
        ys.append(targets(columns, states[sequence.episode][sequence.time[rows]])[1])
        episodes.append(np.full(len(rows), number))
    if not xs:
        raise ValueError(f"no episode is long enough for a window of {window} latents, {spacing} frames apart")
    return _Rows(np.concatenate(xs).astype(np.float64), np.concatenate(ys), np.concatenate(episodes))


def _ridge_path(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Ridge weights (features, targets) for every strength, from one eigendecomposition."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    projected = vectors.T @ (x.T @ y / len(x))
    return [vectors @ (projected / (np.maximum(values, 0) + strength)[:, None]) for strength in STRENGTHS]


def _safe_std(x: np.ndarray) -> np.ndarray:
    std = x.std(axis=0)
    return np.where(std > 1e-12, std, 1.0)


def _r2(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    residual = np.square(truth - prediction).sum(axis=0)
    total = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    return 1 - residual / np.where(total > 0, total, np.inf)


def _correlation(truth: np.ndarray, prediction: np.ndarray) -> float:
    if truth.std() == 0 or prediction.std() == 0:
        return 0.0
    return float(np.corrcoef(truth, prediction)[0, 1])


def _bootstrap_r2(rows: _Rows, prediction: np.ndarray, bootstraps: int) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 percentiles of R2 over resampled episodes, from per-episode sums."""
    sums = np.stack(
        [
            np.stack(
                [
                    np.full(rows.y.shape[1], float(mask.sum())),
                    rows.y[mask].sum(axis=0),
                    np.square(rows.y[mask]).sum(axis=0),
                    np.square(rows.y[mask] - prediction[mask]).sum(axis=0),
                ]
            )
            for mask in (rows.episode == number for number in np.unique(rows.episode))
        ]
    )
    generator = np.random.default_rng(0)
    counts = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=bootstraps)
    count, total, square, residual = np.einsum("be,eks->kbs", counts, sums)
    spread = square - total**2 / count
    r2 = 1 - residual / np.where(spread > 0, spread, np.inf)
    low, high = np.percentile(r2, [2.5, 97.5], axis=0)
    return low, high
