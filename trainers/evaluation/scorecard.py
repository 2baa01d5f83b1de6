"""Scorecards: what an evaluation measured, as typed data, JSON in the run directory and metrics in the record."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.atomic import write_atomically
from trainers.evaluation.planning import PlanningScore
from trainers.evaluation.probes import ProbeScore


@dataclass(frozen=True, slots=True)
class ProbeScorecard:
    """Linear probes of one model: the model's latents, its random initialisation and the pixels' PCA.

    `latent` is probed from one latent, `window` from three. `r2_mean_validation` is the mean R2 over observable columns
    of `window` on the validation split alone: what the alias `champion` is decided by.
    """

    episodes: str
    n_train: int
    n_held_out: int
    latent: tuple[ProbeScore, ...]
    window: tuple[ProbeScore, ...]
    random_encoder: tuple[ProbeScore, ...]
    pixel_pca: tuple[ProbeScore, ...]
    r2_mean: float
    r2_mean_validation: float
    effective_rank: float
    latent_dim: int

    def metrics(self) -> dict[str, float]:
        """Metric names of the design: `probe/linear/<w1|w3>/<column>/r2`, baselines beside them."""
        named = {
            "probe/linear/w1": self.latent,
            "probe/linear/w3": self.window,
            "probe_random_encoder/linear/w1": self.random_encoder,
            "probe_pixel_pca/linear/w1": self.pixel_pca,
        }
        metrics = {
            f"{prefix}/{_metric(score.target)}/r2": score.r2 for prefix, scores in named.items() for score in scores
        }
        return metrics | {
            "probe/linear/w3/r2_mean": self.r2_mean,
            "val/probe/linear/w3/r2_mean": self.r2_mean_validation,
            "probe/effective_rank": self.effective_rank,
        }


def planning_metrics(score: PlanningScore) -> dict[str, float]:
    """`plan/...` metrics of a planning score."""
    return {f"plan/{name}": float(value) for name, value in asdict(score).items() if isinstance(value, int | float)}


def write_scorecard(run: Path, kind: str, scorecard: ProbeScorecard | PlanningScore) -> Path:
    """`run/scorecards/<kind>.json`, written atomically."""
    path = run / "scorecards" / f"{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(asdict(scorecard), indent=2) + "\n").encode())
    return path


def mean_r2(scores: tuple[ProbeScore, ...]) -> float:
    """Mean R2 over the columns declared observable."""
    observable = [score.r2 for score in scores if score.observable != "hidden"]
    return sum(observable) / len(observable) if observable else float("nan")


def _metric(target: str) -> str:
    """MLflow allows no parentheses in a metric's name: sin(pole_angle) becomes pole_angle_sin."""
    if target.startswith(("sin(", "cos(")):
        return f"{target[4:-1]}_{target[:3]}"
    return target
