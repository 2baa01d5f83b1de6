"""Two and three Gloo ranks compute the loss and gradients of one process on the global batch, BatchNorm included."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.objective import RegularizerConfig, directions
from models.predictors import PredictorConfig

BATCH = 7
CASES = ("kl", "kl_diagonal", "sigreg", "subspace", "mixture", "transformer")


def build(case: str) -> tuple[LeWM, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "encoder": EncoderConfig(width=4, hidden=8),
        "predictor": PredictorConfig(hidden=8, memory=3),
        "regularizer": RegularizerConfig(
            kind="sigreg" if case == "transformer" else case,  # pyright: ignore[reportArgumentType]
            weight=0.5,
            shrinkage=0.1,
            directions=16,
            subspaces=2,
        ),
    }
    if case == "transformer":
        shape["encoder"] = EncoderConfig(kind="vit", width=6, hidden=8, patch=8, depth=1, head_hidden=8)
        shape["predictor"] = PredictorConfig(
            kind="transformer", hidden=8, depth=2, heads=2, head_dim=4, head_hidden=8, dropout=0.0
        )
    config = LeWMConfig(image_size=16, latent_dim=4, history=2, stack=1, rollout_weight=0.5, **shape)
    model = LeWM(config, 1).double()
    for name, parameter in model.named_parameters():
        if "modulation" in name or "memory.out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (BATCH, 3, 1, 16, 16, 3), generator=generator, dtype=torch.uint8)
    action = torch.randn(BATCH, 2, 1, generator=generator, dtype=torch.float64)
    drawn = directions(config.regularizer, 4, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float64)
    return model, frames, action, drawn


def rank_main(rank: int, world: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for case in CASES:
        model, frames, action, drawn = build(case)
        # The wrapper averages gradients for as long as it lives.
        parallel = DistributedDataParallel(model)
        losses = parallel(frames[mine], action[mine], drawn)
        losses.total.backward()
        total = losses.total.detach().clone()
        dist.all_reduce(total)
        if rank == 0:
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            torch.save(
                {"total": total / world, "gradients": gradients, "buffers": dict(model.named_buffers())},
                f"{folder}/{case}.pt",
            )
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world: int, tmp_path: Path):
    spawn(rank_main, args=(world, str(tmp_path)), nprocs=world)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    for case in CASES:
        result = torch.load(tmp_path / f"{case}.pt", weights_only=True)
        model, frames, action, drawn = build(case)
        losses = model(frames, action, drawn)
        losses.total.backward()
        close(result["total"], losses.total.detach())
        assert any(parameter.grad.abs().max() > 1e-3 for parameter in model.parameters() if parameter.grad is not None)
        for name, parameter in model.named_parameters():
            close(result["gradients"][name], parameter.grad)
        for name, buffer in model.named_buffers():
            close(result["buffers"][name], buffer)
