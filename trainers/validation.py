"""Losses on held-out windows, while training goes on."""

import torch

from models.lewm import LeWM
from pipelines.loader import Loader, LoaderConfig
from shards.dataset import Dataset
from trainers.config import TrainConfig
from trainers.learner import autocast
from trainers.rundir import window_spec


@torch.no_grad()
def validate(model: LeWM, config: TrainConfig, dataset: Dataset, batches: int = 8) -> dict[str, float]:
    """Mean losses over the same few batches of held-out windows; empty when the validation split has no window.

    In evaluation mode and in the precision of training. Every rank computes all of it, so that no collective runs in
    evaluation mode on a different number of ranks.
    """
    spec = window_spec(config.model)
    available = int(sum(spec.count(int(length)) for length in dataset.lengths[dataset.indices("validation")]))
    if available == 0:
        return {}
    device, dtype = model.pixel_mean.device, model.pixel_mean.dtype
    batch_size = min(config.batch_size, available)
    index = torch.as_tensor(spec.observation_index, device=device)
    errors: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    model.eval()
    loader_config = LoaderConfig(threads=config.decode_threads, prefetch=1)
    with Loader(
        dataset, spec, split="validation", batch_size=batch_size, seed=0, device=device, config=loader_config
    ) as loader:
        for _, batch in zip(range(min(batches, loader.steps_per_epoch)), loader, strict=False):
            with autocast(config, device):
                z_BJD = model.encode(batch.frames[:, index])
                predicted = model.predict(z_BJD[:, :-1], batch.action.to(dtype))
            target = z_BJD[:, 1:].double()
            errors.append((predicted.double() - target).square().mean())
            copies.append((target - z_BJD[:, :-1].double()).square().mean())
    model.train()
    error, copy = float(torch.stack(errors).mean()), float(torch.stack(copies).mean())
    return {"val/prediction": error, "val/prediction_over_copy": error / max(copy, 1e-12)}
