"""Probes: how much of the named physical state can be read from frozen features, and how sure that is.

A probe is fitted on training episodes and scored on held-out ones: R2, correlation r, and mean squared error in units
of the target's variance on training data, each with a bootstrap interval over episodes, because the frames of one
episode are not independent. Angles are probed as sine and cosine. A window of w features is w latents, `spacing` frames
apart. Here are the rows that every probe works on, the scores, and the linear probe, a ridge regression whose strength
is chosen for each target by cross-validation over training episodes; `mlp_probe` is the other one. A linear probe of
10,000 rows and 768 features takes a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.episode import StateColumn
from trainers.evaluation.latents import EpisodeFeatures

STRENGTHS = np.logspace(-6, 1, 15)
"""Ridge strengths tried, in units of the number of training rows (features have unit variance)."""
_CONSTANT = 1e-6
"""A target whose standard deviation is below this share of its size does not vary: float32 holds no more."""
_STILL = 0.05
"""Nor does one that varies on held-out episodes by less than this share of what it does on training ones, such as an
object that is touched in training episodes alone: R2 would be its error in units of next to nothing."""


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """One target's result on held-out episodes. Pairs `low`, `high` bound 95 % bootstrap intervals: `low` and `high`
    themselves that of R2.

    All are NaN for a target that does not vary, or hardly, on the held-out or the training episodes. `strength` is the
    ridge's, and None for other probes.
    """

    target: str
    observable: str
    r2: float
    low: float
    high: float
    r: float
    r_low: float
    r_high: float
    mse: float
    mse_low: float
    mse_high: float
    strength: float | None


@dataclass(frozen=True, slots=True)
class ProbeFit:
    """Scores, and the held-out truth and predictions (M, targets) that figures show."""

    scores: tuple[ProbeScore, ...]
    truth: np.ndarray
    prediction: np.ndarray

    def score(self, target: str) -> ProbeScore:
        return next(score for score in self.scores if score.target == target)


@dataclass(frozen=True, slots=True)
class Rows:
    """Features `x` (M, F) and targets `y` (M, targets) of several episodes; `episode` (M,) numbers them in order."""

    x: np.ndarray
    y: np.ndarray
    episode: np.ndarray


@dataclass(frozen=True, slots=True)
class ProbeData:
    """What any probe needs: rows to fit on and to score on, and (name, observability) of every target."""

    names: tuple[tuple[str, str], ...]
    train: Rows
    test: Rows

    @staticmethod
    def of(
        train: Sequence[EpisodeFeatures],
        test: Sequence[EpisodeFeatures],
        states: dict[int, np.ndarray],
        columns: Sequence[StateColumn],
        *,
        window: int = 1,
        spacing: int = 1,
    ) -> "ProbeData":
        """Rows of features of episodes. `states` maps an episode's number to its (T+1, S) state."""
        if not columns:
            raise ValueError("the dataset names no physical state: there is nothing to probe for")
        if not test:
            raise ValueError("there is no held-out episode to probe: collect more episodes")
        names = tuple(targets(columns, next(iter(states.values())))[0])
        return ProbeData(names, *(_rows(each, states, columns, window, spacing) for each in (train, test)))

    def standardised(self) -> "Standardised":
        """Both parts in units of the training rows' mean and deviation."""
        x_mean, x_std = self.train.x.mean(axis=0), _safe_std(self.train.x)
        y_mean, y_std = self.train.y.mean(axis=0), _safe_std(self.train.y)
        return Standardised(
            (self.train.x - x_mean) / x_std, (self.train.y - y_mean) / y_std, (self.test.x - x_mean) / x_std, y_mean,
            y_std,
        )  # fmt: skip

    def fit(self, prediction: np.ndarray, strengths: np.ndarray | None = None, bootstraps: int = 500) -> ProbeFit:
        """The scores of predictions (M, targets) of the held-out rows."""
        return ProbeFit(self._scores(prediction, strengths, bootstraps), self.test.y, prediction)

    def _scores(self, prediction: np.ndarray, strengths: np.ndarray | None, bootstraps: int) -> tuple[ProbeScore, ...]:
        variance = np.square(_safe_std(self.train.y))
        sums = _episode_sums(self.test, prediction)
        drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=bootstraps)
        resampled = np.einsum("be,eks->kbs", drawn, sums)
        values = _statistics(sums.sum(axis=0), variance)  # (3, targets): r2, r, mse
        bounds = np.percentile(_statistics(resampled, variance), [2.5, 97.5], axis=1)  # (2, 3, targets)
        varies = _varies(self.train.y) & _varies(self.test.y)
        varies &= self.test.y.std(axis=0) > _STILL * self.train.y.std(axis=0)
        values, bounds = np.where(varies, values, np.nan), np.where(varies, bounds, np.nan)
        return tuple(
            ProbeScore(
                name,
                observable,
                *(float(each) for k in range(3) for each in (values[k, i], *bounds[:, k, i])),
                strength=None if strengths is None else float(strengths[i]),
            )
            for i, (name, observable) in enumerate(self.names)
        )


@dataclass(frozen=True, slots=True)
class Standardised:
    """Training features and targets, held-out features, and what turns targets back."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_mean: np.ndarray
    y_std: np.ndarray


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


def linear_probe(data: ProbeData, *, folds: int = 5, bootstraps: int = 500) -> ProbeFit:
    """Ridge regression, its strength chosen for each target by cross-validation over the training episodes."""
    episodes = len(np.unique(data.train.episode))
    if episodes < folds:
        raise ValueError(f"{episodes} training episodes are too few for {folds}-fold cross-validation")
    scaled = data.standardised()
    x, y = scaled.x, scaled.y
    error = np.zeros((len(STRENGTHS), y.shape[1]))
    for fold in range(folds):
        inside = data.train.episode % folds != fold
        for index, weights in enumerate(_ridge_path(x[inside], y[inside])):
            error[index] += np.square(x[~inside] @ weights - y[~inside]).sum(axis=0)
    best = error.argmin(axis=0)
    path = np.stack(_ridge_path(x, y))
    weights = np.stack([path[best[target], :, target] for target in range(y.shape[1])], axis=1)
    return data.fit(scaled.x_test @ weights * scaled.y_std + scaled.y_mean, STRENGTHS[best], bootstraps)


def _rows(
    sequences: Sequence[EpisodeFeatures],
    states: dict[int, np.ndarray],
    columns: Sequence[StateColumn],
    window: int,
    spacing: int,
) -> Rows:
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
    return Rows(np.concatenate(xs).astype(np.float64), np.concatenate(ys), np.concatenate(episodes))


def _ridge_path(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Ridge weights (features, targets) for every strength, from one eigendecomposition."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    projected = vectors.T @ (x.T @ y / len(x))
    return [vectors @ (projected / (np.maximum(values, 0) + strength)[:, None]) for strength in STRENGTHS]


def _safe_std(x: np.ndarray) -> np.ndarray:
    std = x.std(axis=0)
    return np.where(std > 1e-12, std, 1.0)


def _varies(y: np.ndarray) -> np.ndarray:
    return y.std(axis=0) > _CONSTANT * np.maximum(np.abs(y).max(axis=0), _CONSTANT)


def _episode_sums(rows: Rows, prediction: np.ndarray) -> np.ndarray:
    """(episodes, 7, targets): count, and sums of truth, prediction, their squares, their product, squared error.

    Sums are about the truth's mean, so that squares of a target far from zero keep their digits.
    """
    centre = rows.y.mean(axis=0)
    y, p = rows.y - centre, prediction - centre
    terms = np.stack([np.ones_like(y), y, p, y * y, p * p, y * p, np.square(y - p)], axis=1)
    return np.stack([terms[rows.episode == number].sum(axis=0) for number in np.unique(rows.episode)])


def _statistics(sums: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """R2, r and MSE, stacked, from sums (7, ..., targets); `variance` (targets,) is the unit of the MSE."""
    count, y, p, yy, pp, yp, residual = sums
    spread, predicted, together = yy - y**2 / count, pp - p**2 / count, yp - y * p / count
    product = spread * predicted
    r = together / np.sqrt(np.where(product > 0, product, np.inf))
    return np.stack([1 - residual / np.where(spread > 0, spread, np.inf), r, residual / count / variance])
