"""The non-linear probe: a small network from frozen features to all targets at once.

Two hidden layers, AdamW, early stopping on a slice of the training episodes; each target takes the moment at which its
own error on that slice was least. Seeded: the same features give the same scores on one machine. Float32, and on a CPU
one thread: steps this small only wait for a second one. A step costs 256 rows, whatever the dataset's size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainers.evaluation.probes import ProbeData, ProbeFit


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPProbeConfig:
    """How the network is fitted."""

    hidden: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    batch_size: int = 256
    steps: int = 3000
    """At most."""
    check_every: int = 50
    """Steps between looks at the slice."""
    patience: int = 8
    """Looks without a better error of any target after which fitting ends."""
    slice_of: int = 8
    """Every so-many-th training episode is for early stopping."""


def mlp_probe(
    data: ProbeData,
    config: MLPProbeConfig | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    bootstraps: int = 500,
) -> ProbeFit:
    """Fit on most of the training episodes, stop by the others, score on the held-out ones."""
    config, device = config or MLPProbeConfig(), device or torch.device("cpu")
    stopping = torch.from_numpy(data.train.episode % config.slice_of == config.slice_of - 1)
    if stopping.all() or not stopping.any():
        episodes = len(np.unique(data.train.episode))
        raise ValueError(f"{episodes} training episodes are too few to stop early on every {config.slice_of}th")
    scaled = data.standardised()
    x, y, x_test = (torch.from_numpy(each).float().to(device) for each in (scaled.x, scaled.y, scaled.x_test))
    with _one_thread():
        prediction = _fit(x[~stopping], y[~stopping], x[stopping], y[stopping], x_test, config, seed)
    return data.fit(prediction.double().cpu().numpy() * scaled.y_std + scaled.y_mean, bootstraps=bootstraps)


def _fit(
    x: Tensor, y: Tensor, stop_x: Tensor, stop_y: Tensor, x_test: Tensor, config: MLPProbeConfig, seed: int
) -> Tensor:
    """Predictions of `x_test`, each target by the network as it was best for that target on the slice."""
    generator = torch.Generator().manual_seed(seed)
    network = _network(x.shape[1], config.hidden, y.shape[1], generator).to(x.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    best = torch.full((y.shape[1],), torch.inf, device=x.device)
    prediction = torch.zeros(len(x_test), y.shape[1], device=x.device)
    since = 0
    for step, batch in zip(range(1, config.steps + 1), _batches(len(x), config.batch_size, generator), strict=False):
        optimiser.zero_grad(set_to_none=True)
        (network(x[batch]) - y[batch]).square().mean().backward()
        optimiser.step()
        if step % config.check_every:
            continue
        with torch.no_grad():
            error = (network(stop_x) - stop_y).square().mean(dim=0)
            better = error < best
            best = torch.where(better, error, best)
            prediction = torch.where(better, network(x_test), prediction)
        since = 0 if better.any() else since + 1
        if since == config.patience:
            break
    return prediction


def _batches(rows: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers, all rows in every round, without end."""
    while True:
        yield from torch.randperm(rows, generator=generator).split(size)


def _network(features: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """features -> hidden -> hidden -> outputs, initialised from `generator` alone."""
    layers = [nn.Linear(features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
