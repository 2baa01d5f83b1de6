"""Rows of the tables in `docs/results` from a run's scorecards, one function a table.

A table holds the rows of several runs: writing a run's rows again replaces its own and leaves the others. Every row
says which run it is of, with task, preset, seed and training steps, and where it comes from (`bench.common`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.bench.common import update_csv
from trainers.evaluation.control import ControlScorecard
from trainers.evaluation.planning import PlanningScore
from trainers.evaluation.scorecard import ProbeScorecard, Source
from trainers.evaluation.surprise import SurpriseScorecard
from trainers.rundir import Run

Row = dict[str, Any]
_BASELINES: tuple[Source, ...] = ("random_encoder", "pixel_pca", "true_state")


def write(path: Path, run: Run, step: int, rows: list[Row]) -> None:
    """Put a run's rows into the table at `path`; `step` is that of the checkpoint that they are of."""
    config = run.config
    about: Row = {
        "run": run.record.name,
        "environment": run.record.environment,
        "preset": config.preset,
        "seed": config.seed,
        "training_steps": step,
    }
    update_csv(path, [about | row for row in rows], "run")


def probe_rows(card: ProbeScorecard) -> list[Row]:
    """A row a kind of probe, window and quantity, the baselines' R2 beside it."""
    found = []
    for result in card.results:
        if result.source != "lewm":
            continue
        beside = [card.scores(source, result.probe, result.window) for source in _BASELINES]
        for index, score in enumerate(result.scores):
            row: Row = {
                "probe": result.probe,
                "latents": result.window,
                "quantity": score.target,
                "observable": score.observable,
                "r2": score.r2,
                "r2_low": score.low,
                "r2_high": score.high,
                "r": score.r,
                "mse": score.mse,
            }
            row |= {f"r2_{name}": each[index].r2 for name, each in zip(_BASELINES, beside, strict=True)}
            row |= {"held_out_episodes": card.n_held_out, "split": card.episodes}
            found.append(row | {"effective_rank": card.effective_rank, "latent_dim": card.latent_dim})
    return found


def surprise_rows(card: SurpriseScorecard) -> list[Row]:
    """A row an event and score."""
    frames = {(each.event, each.size): each.frames for each in card.records}
    return [
        {
            "event": each.event,
            "size": each.size,
            "score": each.score,
            "auroc": each.detection.auroc,
            "auroc_low": each.detection.low,
            "auroc_high": each.detection.high,
            "detected": each.detection.detected,
            "delay": each.detection.delay,
            "false_alarms": each.detection.false_alarms,
            "frames": frames[each.event, each.size],
            "episodes": card.n_episodes,
            "split": card.episodes,
        }
        for each in card.scores
    ]


def planning_rows(score: PlanningScore) -> list[Row]:
    """One row."""
    return [
        {
            "planner": score.planner,
            "goals": score.goals,
            "split": score.episodes,
            "decisions": score.decisions,
            "start_distance": score.start_distance,
            "random_distance": score.random_distance,
            "planned_distance": score.planned_distance,
            "random_progress": score.random_progress,
            "planned_progress": score.planned_progress,
            "seconds_per_solve": score.seconds_per_solve,
        }
    ]


def control_rows(card: ControlScorecard) -> list[Row]:
    """A row a contender."""
    return [
        {
            "contender": each.name,
            "episodes": each.episodes,
            "decisions": card.decisions,
            "return_mean": each.mean,
            "return_low": each.low,
            "return_high": each.high,
            "success": each.success,
            "success_low": each.success_low,
            "success_high": each.success_high,
            "planning_seconds": each.planning_seconds,
            "dagger_episodes": card.dagger_episodes,
        }
        for each in card.scores
    ]


def validation_rows(run: Run, step: int) -> list[Row]:
    """A row a metric of the last validation, as the checkpoint holds them."""
    state = json.loads((run.path / "checkpoints" / f"step_{step:09d}" / "state.json").read_text())
    return [{"metric": name, "value": float(value)} for name, value in sorted(state.get("metrics", {}).items())]


def stage_rows(seconds: Mapping[str, float], device: str) -> list[Row]:
    """A row a stage of `lewm run`, and one for all."""
    return [
        {"device": device, "stage": stage, "seconds": each}
        for stage, each in {**seconds, "all": sum(seconds.values())}.items()
    ]
