"""The loader over a bucket gives the batches that it gives over a directory."""

import time

import pytest
import torch

from pipelines.episodes import EpisodeTable
from pipelines.loader import Loader, LoaderConfig
from pipelines.order import WindowOrder
from pipelines.windows import WindowSpec
from shards import mirror
from shards.dataset import Dataset
from shards.push import push
from tests.helpers import make_dataset
from tests.remote import BUCKET, bucket_server


@pytest.mark.parametrize("gigabytes", ["1", "0"])
def test_batches_are_those_of_the_local_copy(tmp_path, monkeypatch, gigabytes):
    local = make_dataset(tmp_path / "local", n=12, size=16, shard_episodes=3)
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LEWM_CACHE_GB", gigabytes)
    mirror._remote_of.cache_clear()
    with bucket_server(monkeypatch):
        uri = f"s3://{BUCKET}/loader"
        push(local.path, uri)
        spec = WindowSpec(history=2, stack=2)
        with (
            Loader(local, spec, split=None, batch_size=8, seed=3) as here,
            Loader(Dataset.open(uri), spec, split=None, batch_size=8, seed=3) as there,
        ):
            for _ in range(here.steps_per_epoch):
                ours, theirs = next(here), next(there)
                assert torch.equal(ours.frames, theirs.frames)
                assert torch.equal(ours.action, theirs.action)
                assert torch.equal(ours.episode, theirs.episode)
    assert bool(list((tmp_path / "cache").rglob("*.tar"))) == (gigabytes == "1")


def test_the_next_shards_are_fetched_while_those_before_are_read(tmp_path, monkeypatch):
    local = make_dataset(tmp_path / "local", n=12, size=16, shard_episodes=3)
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))
    mirror._remote_of.cache_clear()
    with bucket_server(monkeypatch) as proxy:
        uri = f"s3://{BUCKET}/ahead"
        push(local.path, uri)
        dataset, spec = Dataset.open(uri), WindowSpec(history=2, stack=2)
        table = EpisodeTable(dataset, None)
        config = LoaderConfig(threads=1, prefetch=1)
        with Loader(dataset, spec, split=None, batch_size=4, seed=3, locality=1, config=config) as loader:
            order = WindowOrder(
                table.lengths, spec, digest=table.digest, split="None", seed=3, locality=1, shards=table.shards()
            )
            assert order.group(0, 0) == (0, 4)
            first, second, third = (_names(table, order.shards_of(0, group)) for group in range(3))
            next(loader)
            assert order.group(0, 12) == (0, 4), "what is filled ahead is of the first shard, too"
            fetched = [tmp_path / "cache" / "datasets" / dataset.path.name / "shards" / name for name in first + second]
            deadline = time.monotonic() + 60
            while not all(path.exists() for path in fetched):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not any(path.endswith(name) for _, path, _ in proxy.requests for name in third if "tar" in name)
        here = Loader(local, spec, split=None, batch_size=4, seed=3, locality=1)
        with here, Loader(Dataset.open(uri), spec, split=None, batch_size=4, seed=3, locality=1) as there:
            for _ in range(here.steps_per_epoch + 2):
                assert torch.equal(next(here).frames, next(there).frames)


def _names(table, shards):
    names = [table.datasets[0].manifest.shards[int(table.datasets[0].shard_numbers[i])].name
             for i in (list(table.shards()).index(shard) for shard in shards)]  # fmt: skip
    return [f"{name}{suffix}" for name in names for suffix in (".tar", ".arrow")]


def test_what_cannot_be_fetched_ahead_is_the_readers_to_say(tmp_path, monkeypatch):
    local = make_dataset(tmp_path / "local", n=12, size=16, shard_episodes=3)
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shards.remote._PAUSE", 0.001)
    mirror._remote_of.cache_clear()
    with bucket_server(monkeypatch) as proxy:
        uri = f"s3://{BUCKET}/lost"
        push(local.path, uri)
        loader = Loader(Dataset.open(uri), WindowSpec(history=1), split=None, batch_size=4, seed=3, locality=1)
        proxy.fault = lambda method, path: "forbid" if path.endswith(".tar") and method == "GET" else None
        with loader, pytest.raises(OSError, match=rf"{uri}/shards/.*\.tar"):
            next(loader)
