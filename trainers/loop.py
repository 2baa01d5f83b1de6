"""The one training loop: batches in, losses down, checkpoints out. It knows neither Ray nor MLflow.

Rare events (resume, validation, checkpoint, log) come first in an iteration, the step itself last. Everything random
is a function of the configuration's seed and the step, or restored from the checkpoint, so a CPU run that is killed and
resumed with the same number of threads goes on bit for bit.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import objective
from models.collectives import world_size as ranks
from models.diagnostics import covariance_spectrum, effective_rank
from models.lewm import LeWM, LeWMConfig, Losses
from pipelines.batch import Batch
from pipelines.loader import Loader, LoaderConfig
from shards.dataset import Dataset
from trainers.checkpoint import CheckpointSink, TrainState, load_checkpoint
from trainers.config import OptimConfig, TrainConfig, config_json
from trainers.rundir import window_spec
from trainers.throughput import Meter, matmul_ceiling, step_flops
from trainers.tracker import Tracker


class Diverged(RuntimeError):
    """The loss stopped being finite; the last checkpoint is from before it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of progress."""

    step: int
    stop_step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class FitSummary:
    """What a run came to."""

    steps: int
    seconds: float
    steps_per_second: float
    samples_per_second: float
    data_wait_share: float
    metrics: dict[str, float]


def build_model(config: TrainConfig, dataset: Dataset, device: torch.device) -> LeWM:
    """A fresh model, a pure function of the seed, with its buffers filled from the manifest's statistics."""
    if dataset.size != config.model.image_size:
        raise ValueError(
            f"{config.data} holds {dataset.size} px frames, the model takes {config.model.image_size} px: "
            f"collect with --size {config.model.image_size} or set --model.image-size {dataset.size}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LeWM(config.model, dataset.action_size)
    statistics = dataset.manifest.statistics
    model.set_statistics(
        **{
            name: torch.as_tensor(getattr(statistics, name), dtype=torch.float32)
            for name in ("pixel_mean", "pixel_std", "action_mean", "action_std")
        }
    )
    return model.to(device)


def fit(
    config: TrainConfig,
    *,
    sink: CheckpointSink,
    tracker: Tracker,
    device: torch.device,
    rank: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    after_checkpoint: Callable[[int, dict[str, float]], None] | None = None,
) -> FitSummary:
    """Train `config` to its stop step, from the sink's latest checkpoint if there is one.

    Called by every rank of an initialised process group, or by one process without. Rank 0 writes checkpoints and
    metrics; `after_checkpoint(step, metrics)` runs on every rank. Raises `Diverged` when the loss is not finite.
    """
    torch.set_num_threads(_threads(config))
    dataset = Dataset.open(config.data)
    model = build_model(config, dataset, device)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.optim.weight_decay), lr=config.optim.lr, fused=True)
    loader = _loader(config, dataset, "train", device, rank)
    step = _resume(config, sink, model, optimizer, loader)
    trained = DistributedDataParallel(model) if ranks() > 1 else model
    ceiling = matmul_ceiling(device, torch.float32)
    meter = Meter(config.batch_size, step_flops(model, config.batch_size) / ranks(), ceiling, config.stop_step)
    observation_index = torch.as_tensor(window_spec(config.model).observation_index, device=device)

    first_step, began, wait_before = step, time.perf_counter(), loader.metrics().wait_seconds
    meter.start(step, wait_before)
    latest: dict[str, float] = {}
    with loader:
        batches: Iterator[Batch] = iter(loader)
        while step < config.stop_step:
            lr = learning_rate(config.optim, step, config.stop_step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = next(batches)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses: Losses = trained(
                    batch.frames[:, observation_index], batch.action, _directions(config, step, device)
                )
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            optimizer.step()
            step += 1

            last = step == config.stop_step
            fresh: dict[str, float] = {}
            if last or step % config.log_every == 0 or step % config.checkpoint_every == 0:
                _check_finite(losses, grad_norm, step)
                fresh |= _step_metrics(losses, grad_norm, lr) | meter.read(step, loader.metrics().wait_seconds)
            if last or step % config.validate_every == 0:
                fresh |= _diagnostics(losses.z_BJD, config) | validate(model, config, dataset)
                meter.start(step, loader.metrics().wait_seconds)
            latest |= fresh
            if rank == 0 and fresh:
                tracker.log_metrics(fresh, step)
                if on_progress is not None:
                    on_progress(Progress(step, config.stop_step, latest))
            if last or step % config.checkpoint_every == 0:
                if rank == 0:
                    sink.save(_train_state(step, model, optimizer, loader), config_json(config))
                    tracker.flush()
                if after_checkpoint is not None:
                    after_checkpoint(step, latest)
                meter.start(step, loader.metrics().wait_seconds)
        seconds = time.perf_counter() - began
        waited = loader.metrics().wait_seconds - wait_before
    rate = (step - first_step) / seconds
    return FitSummary(step, seconds, rate, rate * config.batch_size, waited / seconds, latest)


def learning_rate(config: OptimConfig, step: int, stop_step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_share * lr` over the schedule; level after it."""
    length = config.schedule_steps or stop_step
    progress = min(1.0, step / length)
    cosine = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * cosine * min(1.0, (step + 1) / max(1, config.warmup_steps))


@torch.no_grad()
def validate(model: LeWM, config: TrainConfig, dataset: Dataset, batches: int = 8) -> dict[str, float]:
    """Mean losses over the same few batches of held-out windows; empty when the validation split has no window.

    Every rank computes all of it, so that no collective runs in evaluation mode on a different number of ranks.
    """
    spec = window_spec(config.model)
    available = int(sum(spec.count(int(length)) for length in dataset.lengths[dataset.indices("validation")]))
    if available == 0:
        return {}
    device = model.pixel_mean.device
    batch_size = min(config.batch_size, available)
    index = torch.as_tensor(spec.observation_index, device=device)
    errors: list[float] = []
    copies: list[float] = []
    model.eval()
    loader_config = LoaderConfig(threads=config.decode_threads, prefetch=1)
    with Loader(
        dataset, spec, split="validation", batch_size=batch_size, seed=0, device=device, config=loader_config
    ) as loader:
        for _, batch in zip(range(min(batches, loader.steps_per_epoch)), loader, strict=False):
            z_BJD = model.encode(batch.frames[:, index])
            error = model.predict(z_BJD[:, :-1], batch.action) - z_BJD[:, 1:]
            errors.append(float(error.square().mean()))
            copies.append(float((z_BJD[:, 1:] - z_BJD[:, :-1]).square().mean()))
    model.train()
    return {
        "val/prediction": sum(errors) / len(errors),
        "val/prediction_over_copy": sum(errors) / max(sum(copies), 1e-12),
    }


def null_value(config: LeWMConfig, batch_size: int) -> float:
    """What the regularizer is worth on standard normal latents of the same number."""
    return objective.null_value(
        config.regularizer, windows=batch_size, observations=config.history + 1, dim=config.latent_dim
    )


def _threads(config: TrainConfig) -> int:
    available = len(os.sched_getaffinity(0))
    return config.threads or max(1, available // config.workers)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _loader(config: TrainConfig, dataset: Dataset, split: Any, device: torch.device, rank: int) -> Loader:
    return Loader(
        dataset,
        window_spec(config.model),
        split=split,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=ranks(),
        device=device,
        config=LoaderConfig(threads=config.decode_threads, prefetch=config.prefetch, tier=config.tier),
        locality=config.locality,
    )


def _directions(config: TrainConfig, step: int, device: torch.device) -> Tensor | None:
    model = config.model
    return objective.directions(
        model.regularizer, model.latent_dim, seed=config.seed, step=step, device=device, dtype=torch.float32
    )


def _step_metrics(losses: Losses, grad_norm: Tensor, lr: float) -> dict[str, float]:
    prediction = losses.prediction.clone()
    if ranks() > 1:
        dist.all_reduce(prediction)
        prediction /= ranks()
    return {
        "train/prediction": float(prediction),
        "train/regularizer": float(losses.regularizer),
        "train/grad_norm": float(grad_norm),
        "train/lr": lr,
    }


def _diagnostics(z_BJD: Tensor, config: TrainConfig) -> dict[str, float]:
    z_ND = z_BJD.flatten(0, 1)
    spectrum = covariance_spectrum(z_ND)
    return {
        "train/effective_rank": effective_rank(z_ND),
        "train/largest_variance": float(spectrum[0]),
        "train/median_variance": float(spectrum[len(spectrum) // 2]),
        "train/regularizer_null": null_value(config.model, config.batch_size),
    }


def _check_finite(losses: Losses, grad_norm: Tensor, step: int) -> None:
    values = {"prediction loss": losses.prediction, "regularizer": losses.regularizer, "gradient norm": grad_norm}
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(
                f"the {name} is {float(value)} at step {step}: the last checkpoint is from before it; "
                f"resume with a lower --optim.lr"
            )


def _train_state(step: int, model: LeWM, optimizer: torch.optim.Optimizer, loader: Loader) -> TrainState:
    state = {"loader": loader.state_dict(), "threads": torch.get_num_threads()}
    return TrainState(step, model.state_dict(), optimizer.state_dict(), state)


def _resume(
    config: TrainConfig, sink: CheckpointSink, model: LeWM, optimizer: torch.optim.Optimizer, loader: Loader
) -> int:
    """Load the sink's latest checkpoint into model, optimizer and loader; the step to go on from."""
    latest = sink.latest()
    if latest is None:
        return 0
    checkpoint = load_checkpoint(latest)
    threads = checkpoint.state["threads"]
    if torch.get_num_threads() != threads and model.pixel_mean.device.type == "cpu":
        raise ValueError(
            f"{latest} was trained with {threads} torch threads, this process has {torch.get_num_threads()}: "
            f"sums would round differently. Resume with --threads {threads}"
        )
    model.load_state_dict(dict(checkpoint.model))
    optimizer.load_state_dict(dict(checkpoint.optimizer))
    loader.load_state_dict(checkpoint.state["loader"])
    return checkpoint.step
