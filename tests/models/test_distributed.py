"""Two and three Gloo ranks compute the loss and gradients of one process on the global batch, BatchNorm included."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig, RegularizerConfig
from models.predictors import PredictorConfig
from models.regularizers import random_directions

BATCH = 7


def build(kind: str) -> tuple[LeWM, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = LeWMConfig(
        image_size=16,
        latent_dim=4,
        stack=1,
        encoder=EncoderConfig(width=4, hidden=8),
        predictor=PredictorConfig(hidden=8),
        regularizer=RegularizerConfig(kind="kl" if kind == "kl" else "sigreg", weight=0.5),
    )
    model = LeWM(config, 1).double()
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (BATCH, 2, 1, 16, 16, 3), generator=generator, dtype=torch.uint8)
    action = torch.randn(BATCH, 1, 1, generator=generator, dtype=torch.float64)
    directions = random_directions(4, 16, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float64)
    return model, frames, action, directions


def rank_main(rank: int, world: int, kind: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    model, frames, action, directions = build(kind)
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    parallel = DistributedDataParallel(model)
    losses = parallel(frames[mine], action[mine], directions)
    losses.total.backward()
    total = losses.total.detach().clone()
    dist.all_reduce(total)
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save(
            {"total": total / world, "gradients": gradients, "buffers": dict(model.named_buffers())},
            f"{folder}/result.pt",
        )
    dist.destroy_process_group()


@pytest.mark.parametrize(("world", "kind"), [(2, "sigreg"), (3, "kl")])
def test_ranks_equal_one_process(world: int, kind: str, tmp_path: Path):
    spawn(rank_main, args=(world, kind, str(tmp_path)), nprocs=world)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    model, frames, action, directions = build(kind)
    losses = model(frames, action, directions)
    losses.total.backward()
    torch.testing.assert_close(result["total"], losses.total.detach(), rtol=1e-9, atol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result["gradients"][name], parameter.grad, rtol=1e-9, atol=1e-9)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(result["buffers"][name], buffer, rtol=1e-9, atol=1e-9)
