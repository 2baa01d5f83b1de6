"""The one training loop: batches in, losses down, checkpoints out. It knows neither Ray nor MLflow.

After a step come the rare events that are due: validation, log, checkpoint. Everything random is a function of the
configuration's seed and the step, or restored from the checkpoint, as is the number of threads, so a CPU run that is
killed and resumed goes on bit for bit.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from models import objective
from models.collectives import world_size as ranks
from models.diagnostics import covariance_spectrum, effective_rank
from models.lewm import LeWM, LeWMConfig, Losses
from pipelines.batch import Batch
from pipelines.loader import Loader, LoaderConfig
from shards.dataset import Dataset
from trainers.background import BackgroundWriter
from trainers.checkpoint import CheckpointSink, TrainState, load_checkpoint
from trainers.config import TrainConfig, check_resumable, config_json, load_train_config
from trainers.learner import Learner
from trainers.rundir import window_spec
from trainers.throughput import Meter, matmul_ceiling, step_flops
from trainers.tracker import Tracker
from trainers.validation import validate


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
    return model.to(device, torch.float64 if config.precision == "float64" else torch.float32)


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

    Called by every rank of an initialised process group, or by one process without. Rank 0 writes checkpoints, beside
    training, and metrics; `after_checkpoint(step, metrics)` runs on every rank when a checkpoint is on its way. Raises
    `Diverged` when the loss is not finite: it is looked at, on all ranks, where the loop waits for the device anyway,
    and always before a checkpoint, so that every checkpoint is from before.
    """
    torch.set_num_threads(_threads(config))
    dataset = Dataset.open(config.data)
    learner = Learner(config, build_model(config, dataset, device), rank)
    loader = _loader(config, dataset, device, rank)
    step = _resume(config, sink, learner, loader)
    meter = _meter(config, learner.model)

    first_step, began, wait_before = step, time.perf_counter(), loader.metrics().wait_seconds
    meter.start(step, wait_before)
    latest: dict[str, float] = {}
    with loader, BackgroundWriter(sink) as writer:
        batches: Iterator[Batch] = iter(loader)
        while step < config.stop_step:
            batch = next(batches)
            losses, grad_norm = learner.step(batch.frames, batch.action, step)
            step += 1

            last = step == config.stop_step
            every = (config.log_every, config.validate_every, config.checkpoint_every)
            log, check, save = (last or step % interval == 0 for interval in every)
            check = check or save  # the best checkpoint is told by what was measured at its step
            if not (log or check or save):
                continue
            learner.check_finite()
            fresh = _step_metrics(losses, grad_norm, learner.lr) | meter.read(step, loader.metrics().wait_seconds)
            if check:
                fresh |= _diagnostics(losses.z_BJD, config) | validate(learner.model, config, dataset)
            latest |= fresh
            if rank == 0:
                tracker.log_metrics(fresh, step)
                if on_progress is not None:
                    on_progress(Progress(step, config.stop_step, latest))
            if save:
                if rank == 0:
                    tracker.flush()
                    writer.submit(_train_state(step, learner, loader, fresh), config_json(config))
                if after_checkpoint is not None:
                    after_checkpoint(step, latest)
            meter.start(step, loader.metrics().wait_seconds)
        seconds = time.perf_counter() - began
        waited = loader.metrics().wait_seconds - wait_before
    rate = (step - first_step) / seconds
    return FitSummary(step, seconds, rate, rate * config.batch_size, waited / seconds, latest)


def null_value(config: LeWMConfig, batch_size: int) -> float:
    """What the regularizer is worth on standard normal latents of the same number."""
    return objective.null_value(
        config.regularizer, windows=batch_size, observations=config.history + 1, dim=config.latent_dim
    )


def _threads(config: TrainConfig) -> int:
    available = len(os.sched_getaffinity(0))
    return config.threads or max(1, available // config.worker_range[1])


def _meter(config: TrainConfig, model: LeWM) -> Meter:
    device = model.pixel_mean.device
    dtype = getattr(torch, config.precision)
    flops = step_flops(model, config.batch_size) / ranks()
    return Meter(config.batch_size, flops, matmul_ceiling(device, dtype), config.stop_step, device)


def _loader(config: TrainConfig, dataset: Dataset, device: torch.device, rank: int) -> Loader:
    return Loader(
        dataset,
        window_spec(config.model),
        split="train",
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=ranks(),
        device=device,
        config=LoaderConfig(threads=config.decode_threads, prefetch=config.prefetch, tier=config.tier),
        locality=config.locality,
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


def _train_state(step: int, learner: Learner, loader: Loader, metrics: dict[str, float]) -> TrainState:
    state = {
        "loader": loader.state_dict(),
        "threads": torch.get_num_threads(),
        "ranks": ranks(),
        "metrics": {name: value for name, value in metrics.items() if name.startswith("val/")},
    }
    return TrainState(step, learner.model.state_dict(), learner.optimizer.state_dict(), state).on_host()


def _resume(config: TrainConfig, sink: CheckpointSink, learner: Learner, loader: Loader) -> int:
    """Load the sink's latest checkpoint into model, optimizer and loader; the step to go on from.

    ValueError where this run would not go on as that one did: another dataset or configuration, or another number of
    threads than that run had, where one was asked for.
    """
    latest = sink.latest()
    if ranks() > 1:
        agreed = [latest]
        # A shared file system may show one rank a checkpoint before it shows it to another.
        dist.broadcast_object_list(agreed)
        latest = agreed[0]
    if latest is None:
        return 0
    check_resumable(load_train_config(latest / "config.json"), config, str(latest))
    checkpoint = load_checkpoint(latest)
    threads, same_ranks = checkpoint.state["threads"], checkpoint.state.get("ranks", 1) == ranks()
    if learner.device.type == "cpu" and same_ranks:
        if config.threads not in (0, threads):
            raise ValueError(
                f"{latest} was trained with {threads} torch threads, --threads is {config.threads}: "
                f"sums would round differently. Leave it out, or give --threads {threads}"
            )
        torch.set_num_threads(threads)
    learner.model.load_state_dict(dict(checkpoint.model))
    learner.optimizer.load_state_dict(dict(checkpoint.optimizer))
    loader.load_state_dict(checkpoint.state["loader"])
    return checkpoint.step
