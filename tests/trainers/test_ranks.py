"""`fit` on 1, 2 and 3 Gloo ranks sees the same global batches and takes the same steps. 3 does not divide the batch."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.helpers import make_dataset
from tests.trainers.helpers import FileRecord, losses_by_step, processes, random_config, weights
from trainers.checkpoint import LocalSink, load_checkpoint
from trainers.config import OptimConfig, TrainConfig
from trainers.loop import fit
from trainers.tracker import NullTracker

WORLDS = (1, 2, 3)


def configs(data: Path) -> dict[str, TrainConfig]:
    config = random_config(data, validate_every=100, checkpoint_every=100, batch_size=8)
    model = replace(config.model, predictor=replace(config.model.predictor, dropout=0.0))
    config = replace(config, model=model)
    return {
        "exact": replace(config, precision="float64", stop_step=4),
        "float32": replace(config, stop_step=20, batch_size=32, optim=OptimConfig(lr=5e-4, warmup_steps=5)),
    }


def rank_main(rank: int, world: int, data: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    for name, config in configs(Path(data)).items():
        run = Path(folder) / f"{name}-{world}"
        run.mkdir(exist_ok=True)
        tracker = FileRecord(run / "record.jsonl") if rank == 0 else NullTracker()
        fit(config, sink=LocalSink(run, 1), tracker=tracker, device=torch.device("cpu"), rank=rank)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_dataset(folder / "data", n=24, steps=20)
    processes()
    for world in WORLDS:
        start_processes(rank_main, (world, str(folder / "data"), str(folder)), nprocs=world, start_method="forkserver")
    return folder


@pytest.mark.parametrize("world", WORLDS[1:])
def test_losses_and_gradients_are_those_of_one_process(runs, world):
    one, many = losses_by_step(runs / "exact-1/record.jsonl"), losses_by_step(runs / f"exact-{world}/record.jsonl")
    assert sorted(one) == sorted(many) == [1, 2, 3, 4]
    for step, losses in one.items():
        assert many[step] == pytest.approx(losses, rel=1e-9, abs=1e-9)
    expected, found = (
        load_checkpoint(runs / f"exact-{n}/checkpoints/step_000000004").optimizer["state"] for n in (1, world)
    )
    # AdamW's first moment is the mean of the gradients, the latest with the most weight.
    assert max(float(state["exp_avg"].abs().max()) for state in expected.values()) > 1e-3
    for index, state in expected.items():
        torch.testing.assert_close(found[index]["exp_avg"], state["exp_avg"], rtol=1e-9, atol=1e-9)
    for name, tensor in weights(runs / "exact-1").items():
        torch.testing.assert_close(weights(runs / f"exact-{world}")[name], tensor, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_twenty_steps_in_float32_stay_close(runs, world):
    one, many = losses_by_step(runs / "float32-1/record.jsonl"), losses_by_step(runs / f"float32-{world}/record.jsonl")
    assert len(one) == len(many) == 20
    for step, losses in one.items():
        assert many[step] == pytest.approx(losses, rel=1e-3), step
    assert one[20] != pytest.approx(one[1], rel=1e-2)


def test_every_rank_finds_the_same_state_to_go_on_from(runs):
    """The loader's position, and what the schedule needs, do not know the number of ranks."""
    states = [load_checkpoint(runs / f"exact-{n}/checkpoints/step_000000004").state for n in WORLDS]
    assert states[0]["loader"] == states[1]["loader"] == states[2]["loader"]
    assert [state["ranks"] for state in states] == [1, 2, 3]


def test_held_out_figures_do_not_know_the_number_of_ranks(runs):
    one, *more = (load_checkpoint(runs / f"exact-{n}/checkpoints/step_000000004").state["metrics"] for n in WORLDS)
    assert {"val/prediction", "val/latents/sigreg", "val/rollout/error_8"} <= one.keys()
    for found in more:
        assert found == pytest.approx(one, rel=1e-5)
