"""The loader over a bucket gives the batches that it gives over a directory."""

import pytest
import torch

from pipelines.loader import Loader
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
