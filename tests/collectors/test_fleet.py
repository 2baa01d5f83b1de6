"""The fleet: the same dataset for any number of workers, restarts that collect what is missing, refusals."""

import fcntl
from dataclasses import replace

import pytest

from collectors.config import CollectConfig
from collectors.envs.base import EnvConfig
from collectors.fleet import UNIT, CollectionFailed, collect
from collectors.policies import ExpertConfig, named_policy
from shards.dataset import Dataset
from shards.verify import verify

CONFIG = CollectConfig(
    env=EnvConfig(name="dmc/cartpole-swingup", size=32),
    policy=named_policy("mixed"),
    episodes=UNIT + 3,
    steps=10,
    random_start=0.5,
)


def test_any_number_of_workers_and_restarts_give_one_dataset(ray_local, tmp_path):
    lines = []
    whole = collect(CONFIG, tmp_path / "whole", workers=2, on_progress=lines.append)
    assert whole.episodes == CONFIG.episodes
    assert whole.existing == 0
    assert whole.frames == CONFIG.episodes * 11
    assert [line.episodes for line in lines] == sorted(line.episodes for line in lines)
    assert lines[-1].episodes == CONFIG.episodes
    assert verify(tmp_path / "whole").ok

    # A first attempt that stopped after three episodes, and a crash that left torn files behind.
    parts = tmp_path / "parts"
    collect(replace(CONFIG, episodes=3), parts, workers=1)
    (parts / "shards" / "torn.tar.0123abcd.tmp").write_bytes(b"torn")
    resumed = collect(CONFIG, parts, workers=1)
    assert resumed.existing == 3
    assert resumed.digest == whole.digest
    assert verify(parts).ok
    assert not list(parts.glob("shards/*.tmp"))

    again = collect(CONFIG, parts, workers=1)
    assert (again.existing, again.frames, again.digest) == (CONFIG.episodes, 0, whole.digest)
    assert len(Dataset.open(parts)) == CONFIG.episodes


def test_another_collection_in_the_directory_is_refused(ray_local, tmp_path):
    collect(replace(CONFIG, episodes=1, steps=2), tmp_path, workers=1)
    with pytest.raises(ValueError, match="another collection"):
        collect(replace(CONFIG, episodes=1, steps=3), tmp_path, workers=1)
    with pytest.raises(ValueError, match="another collection"):
        collect(replace(CONFIG, episodes=1, steps=2, seed=1), tmp_path, workers=1)


def test_a_directory_in_use_is_refused(gl, tmp_path):
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="in use"):
            collect(CONFIG, tmp_path, workers=1)


def test_mistakes_are_named(gl, tmp_path):
    with pytest.raises(ValueError, match="workers"):
        collect(CONFIG, tmp_path, workers=0)
    with pytest.raises(ValueError, match="dmc/walker-walk"):
        collect(replace(CONFIG, env=EnvConfig(name="dmc/walker-wolk")), tmp_path, workers=1)


def test_an_actor_that_fails_says_why_and_loses_nothing(ray_local, tmp_path):
    bad = replace(CONFIG, env=EnvConfig(name="dmc/walker-walk", size=32), policy=ExpertConfig(), episodes=2)
    with pytest.raises(CollectionFailed, match="no scripted expert"):
        collect(bad, tmp_path, workers=1)
    assert not list(tmp_path.glob("shards/*.tar"))
