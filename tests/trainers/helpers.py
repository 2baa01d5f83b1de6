"""What the tests of training share: a small configuration, and a record of metrics that survives its process."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from models.encoders import EncoderConfig
from models.lewm import LeWMConfig
from models.objective import RegularizerConfig
from models.predictors import PredictorConfig
from trainers.checkpoint import LocalSink
from trainers.config import OptimConfig, TrainConfig
from trainers.loop import fit
from trainers.tracker import NullTracker


def processes() -> ForkServerContext:
    """Processes that start with torch imported, forked from a server that has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainers.helpers"])
    return context


class FileRecord(NullTracker):
    """Appends (step, ranks, metrics) to a file, a line each; kills its process with SIGKILL at step `kill_at`."""

    def __init__(self, path: Path, kill_at: int = -1) -> None:
        self.path, self.kill_at = path, kill_at

    def log_metrics(self, metrics: Any, step: int) -> None:
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        with self.path.open("a") as file:
            file.write(json.dumps([step, ranks, dict(metrics)]) + "\n")
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def recorded(path: Path) -> list[tuple[int, int, dict[str, float]]]:
    """What a `FileRecord` holds."""
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def losses_by_step(path: Path) -> dict[int, tuple[float, float]]:
    """Both losses at every step; a step that was taken twice must have given the same ones twice."""
    found: dict[int, tuple[float, float]] = {}
    for step, _, metrics in recorded(path):
        losses = (metrics["train/prediction"], metrics["train/regularizer"])
        assert found.setdefault(step, losses) == losses, step
    return found


def tiny_config(data: Path, **changes: Any) -> TrainConfig:
    """A configuration that takes milliseconds a step on 16 px frames."""
    model = LeWMConfig(
        image_size=16,
        latent_dim=8,
        frame_skip=2,
        stack=2,
        encoder=EncoderConfig(width=4, hidden=16),
        predictor=PredictorConfig(hidden=16),
    )
    base = TrainConfig(
        data=str(data),
        model=model,
        batch_size=8,
        stop_step=30,
        threads=1,
        log_every=5,
        validate_every=10,
        checkpoint_every=10,
        optim=OptimConfig(warmup_steps=5),
    )
    return replace(base, **changes)


def random_config(data: Path, **changes: Any) -> TrainConfig:
    """One whose steps draw random numbers, for projections and dropout, with every step recorded."""
    model = LeWMConfig(
        image_size=16,
        latent_dim=8,
        history=2,
        stack=1,
        encoder=EncoderConfig(kind="vit", width=6, hidden=8, patch=8, depth=1, head_hidden=8),
        predictor=PredictorConfig(
            kind="transformer", hidden=8, depth=1, heads=2, head_dim=4, head_hidden=8, dropout=0.1
        ),
        regularizer=RegularizerConfig(kind="sigreg", directions=16),
    )
    return tiny_config(data, **({"model": model, "log_every": 1, "checkpoint_every": 5} | changes))


def train(config: TrainConfig, folder: Path, kill_at: int = -1) -> None:
    """Train `config` in `folder`, with the record beside its checkpoints."""
    folder.mkdir(exist_ok=True)
    fit(
        config,
        sink=LocalSink(folder, config.keep_checkpoints),
        tracker=FileRecord(folder / "record.jsonl", kill_at),
        device=torch.device("cpu"),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint."""
    latest = LocalSink(folder, 1).latest()
    assert latest is not None
    return load_file(latest / "model.safetensors")
