"""Losses and diagnostics on held-out windows, while training goes on.

Beside the losses of the training windows, longer windows show what a small loss does not: whether imagination from one
latent stays better than assuming that nothing moves, whether it finds its own future among those of other windows, and
whether the latents' paths become straight. All of it costs about as much as a few training steps.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from models.collectives import world_size
from models.diagnostics import effective_rank, error_by_horizon, gaussianity, retrieval, straightness
from models.lewm import LeWM
from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
from trainers.config import TrainConfig
from trainers.learner import autocast
from trainers.rundir import window_spec

HORIZONS = (1, 2, 4, 8)
"""Predictions ahead at which imagination is compared with what happened."""
_WINDOWS = 64
"""Longer windows, that is, candidates of the retrieval."""
_TINY = 1e-12


@torch.no_grad()
def validate(model: LeWM, config: TrainConfig, dataset: Dataset, batches: int = 8) -> dict[str, float]:
    """Mean losses over the same few batches of held-out windows, and diagnostics; empty without such windows.

    In evaluation mode and in the precision of training. Every rank computes all of it, so that no collective runs in
    evaluation mode on a different number of ranks.
    """
    training = model.training
    model.eval()
    try:
        return _losses(model, config, dataset, batches) | _rollouts(model, config, dataset)
    finally:
        model.train(training)


def _losses(model: LeWM, config: TrainConfig, dataset: Dataset, batches: int) -> dict[str, float]:
    errors: list[Tensor] = []
    copies: list[Tensor] = []
    firsts: list[Tensor] = []
    spec = window_spec(config.model)
    for z_BJD, action_BHK in _latents(model, config, dataset, spec, config.batch_size, batches):
        with autocast(config, z_BJD.device):
            predicted = model.predict(z_BJD[:, :-1], action_BHK)
        target = z_BJD[:, 1:].double()
        errors.append((predicted.double() - target).square().mean())
        copies.append((target - z_BJD[:, :-1].double()).square().mean())
        firsts.append(z_BJD[:, 0].float())
    if not errors:
        return {}
    error, copy, z_ND = float(torch.stack(errors).mean()), float(torch.stack(copies).mean()), torch.cat(firsts)
    statistic, null = gaussianity(z_ND)
    return {
        "val/prediction": error,
        "val/prediction_over_copy": error / max(copy, _TINY),
        "val/latents/effective_rank": effective_rank(z_ND) if z_ND.isfinite().all() else math.nan,
        # The statistic counts items over all ranks, and each of them has all of these.
        "val/latents/sigreg": statistic / world_size(),
        "val/latents/sigreg_null": null,
    }


def _rollouts(model: LeWM, config: TrainConfig, dataset: Dataset) -> dict[str, float]:
    """Rollouts from one latent over the longest of `HORIZONS` that held-out episodes have room for."""
    spec = window_spec(config.model)
    lengths = dataset.lengths[dataset.indices("validation")]
    longer = [replace(spec, history=horizon) for horizon in HORIZONS]
    longer = [each for each in longer if each.counts(lengths).sum()]
    if not longer:
        return {}
    metrics: dict[str, float] = {}
    for z_BJD, action_BHK in _latents(model, config, dataset, longer[-1], _WINDOWS, 1):
        with autocast(config, z_BJD.device):
            imagined_BHD = model.rollout(z_BJD[:, 0], action_BHK)
        imagined, real = imagined_BHD.double(), z_BJD[:, 1:].double()
        errors_2H = error_by_horizon(imagined, real, z_BJD[:, 0].double())
        for each in longer:
            error, copy = errors_2H[:, each.history - 1].tolist()
            metrics[f"val/rollout/error_{each.history}"] = error
            metrics[f"val/rollout/error_{each.history}_over_copy"] = error / max(copy, _TINY)
        share, rank = retrieval(imagined[:, -1], real[:, -1])
        metrics |= {"val/rollout/retrieval_top1": share, "val/rollout/retrieval_mean_rank": rank}
        if z_BJD.shape[1] > 2:
            metrics["val/latents/straightness"] = straightness(z_BJD)
    return metrics


def _latents(
    model: LeWM, config: TrainConfig, dataset: Dataset, spec: WindowSpec, batch_size: int, batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents (B, H+1, D) and raw action blocks (B, H, K) of held-out windows, the same ones every time."""
    available = int(spec.counts(dataset.lengths[dataset.indices("validation")]).sum())
    if available == 0:
        return
    device, dtype = model.pixel_mean.device, model.pixel_mean.dtype
    index = torch.as_tensor(spec.observation_index, device=device)
    loader_config = LoaderConfig(threads=config.decode_threads, prefetch=1)
    with Loader(
        dataset,
        spec,
        split="validation",
        batch_size=min(batch_size, available),
        seed=0,
        device=device,
        config=loader_config,
    ) as loader:
        for _, batch in zip(range(min(batches, loader.steps_per_epoch)), loader, strict=False):
            with autocast(config, device):
                z_BJD = model.encode(batch.frames[:, index])
            yield z_BJD, batch.action.to(dtype)
