"""Scorecards: what an evaluation measured, as typed data, JSON in the run directory and metrics in the record."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from shards.atomic import write_atomically
from trainers.evaluation.planning import PlanningScore
from trainers.evaluation.probes import ProbeScore

Probe = Literal["linear", "mlp"]
Source = Literal["lewm", "random_encoder", "pixel_pca", "true_state"]
Scorecard = TypeVar("Scorecard")

THRESHOLD = 0.92
"""R2 that the LeWorldModel article claims for linear probes."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe of one source of features, from `window` of them: scores of all targets."""

    source: Source
    probe: Probe
    window: int
    scores: tuple[ProbeScore, ...]


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """Whether every column declared observable is read with an R2 above `threshold`.

    What one frame shows is read from one latent, what takes several frames from three. `sure` counts the columns whose
    interval lies above the threshold whole. Columns that do not vary in the data are left out, and named in `constant`.
    """

    probe: Probe
    threshold: float
    met: bool
    columns: int
    passed: int
    sure: int
    worst: str
    worst_r2: float
    constant: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeScorecard:
    """Linear and MLP probes of one model, its random initialisation, the pixels' PCA and the true state.

    `window_spacing` is how many frames the latents of a window are apart. `r2_mean` is the mean over observable columns
    of the linear probe from three latents; `r2_mean_validation` the same on the validation split alone: what the alias
    `champion` is decided by.
    """

    episodes: str
    n_train: int
    n_held_out: int
    window_spacing: int
    results: tuple[ProbeResult, ...]
    verdicts: tuple[ProbeVerdict, ...]
    r2_mean: float
    r2_mean_validation: float
    effective_rank: float
    latent_dim: int

    def scores(self, source: Source, probe: Probe = "linear", window: int = 1) -> tuple[ProbeScore, ...]:
        """The scores of all targets by one probe."""
        return next(
            each.scores for each in self.results if (each.source, each.probe, each.window) == (source, probe, window)
        )

    def metrics(self) -> dict[str, float]:
        """`probe/<linear|mlp>/<w1|w3>/<r2|r|mse>/<column>`, R2 of baselines beside them.

        The column comes last because MLflow's page groups charts by what stands before the last slash.
        """
        metrics: dict[str, float] = {}
        for each in self.results:
            head = "probe" if each.source == "lewm" else f"probe_{each.source}"
            for score in each.scores:
                group, column = f"{head}/{each.probe}/w{each.window}", _metric(score.target)
                metrics[f"{group}/r2/{column}"] = score.r2
                if each.source == "lewm":
                    metrics |= {f"{group}/r/{column}": score.r, f"{group}/mse/{column}": score.mse}
        metrics |= {f"probe/{each.probe}/columns_above_threshold": float(each.passed) for each in self.verdicts}
        return metrics | {
            "probe/linear/w3/r2_mean": self.r2_mean,
            "val/probe/linear/w3/r2_mean": self.r2_mean_validation,
            "probe/effective_rank": self.effective_rank,
        }


def verdict(results: Iterable[ProbeResult], probe: Probe, threshold: float = THRESHOLD) -> ProbeVerdict:
    """The verdict over the columns declared observable."""
    ours = {each.window: each.scores for each in results if (each.source, each.probe) == ("lewm", probe)}
    deciding = [
        one if one.observable == "one_frame" else three
        for one, three in zip(ours[1], ours[3], strict=True)
        if one.observable != "hidden"
    ]
    judged = [score for score in deciding if not math.isnan(score.r2)]
    worst = min(judged, key=lambda score: score.r2, default=None)
    passed = sum(score.r2 > threshold for score in judged)
    return ProbeVerdict(
        probe=probe,
        threshold=threshold,
        met=bool(judged) and passed == len(judged),
        columns=len(judged),
        passed=passed,
        sure=sum(score.low > threshold for score in judged),
        worst=worst.target if worst else "",
        worst_r2=worst.r2 if worst else float("nan"),
        constant=tuple(score.target for score in deciding if math.isnan(score.r2)),
    )


def planning_metrics(score: PlanningScore) -> dict[str, float]:
    """`plan/...` metrics of a planning score."""
    return {f"plan/{name}": float(value) for name, value in asdict(score).items() if isinstance(value, int | float)}


def write_scorecard(run: Path, kind: str, scorecard: Any) -> Path:
    """`run/scorecards/<kind>.json` of a scorecard, a dataclass, written atomically."""
    path = run / "scorecards" / f"{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(asdict(scorecard), indent=2) + "\n").encode())
    return path


def read_scorecard(run: Path, kind: str, expected: type[Scorecard]) -> Scorecard | None:
    """What `write_scorecard` wrote, None where it did not; ValueError for one that this program does not understand."""
    path = run / "scorecards" / f"{kind}.json"
    if not path.is_file():
        return None
    try:
        return TypeAdapter(expected).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} is of another version ({first['msg']}): run `lewm {kind}` again") from error


def mean_r2(scores: Iterable[ProbeScore]) -> float:
    """Mean R2 over the columns declared observable that vary in the data."""
    observable = [score.r2 for score in scores if score.observable != "hidden" and not math.isnan(score.r2)]
    return sum(observable) / len(observable) if observable else float("nan")


def _metric(target: str) -> str:
    """MLflow allows no parentheses in a metric's name: sin(pole_angle) becomes pole_angle_sin."""
    if target.startswith(("sin(", "cos(")):
        return f"{target[4:-1]}_{target[:3]}"
    return target
