"""The fleet: the same dataset for any number of workers, restarts that collect what is missing, refusals."""

import fcntl
from dataclasses import replace
from pathlib import Path

import pytest

from collectors.config import CollectConfig
from collectors.envs import EnvConfig, make_env
from collectors.fleet import UNIT, CollectionFailed, collect
from collectors.locks import join_writers
from collectors.policies import ExpertConfig, NoiseConfig, named_policy
from collectors.rollout import record_episode
from shards.dataset import Dataset
from shards.verify import verify
from shards.writer import ShardWriter

CONFIG = CollectConfig(
    env=EnvConfig(name="dmc/cartpole-swingup", size=32),
    policy=named_policy("mixed"),
    episodes=2 * UNIT + 3,
    steps=10,
    random_start=0.5,
)


def record_here(config: CollectConfig, out: Path) -> None:
    """The episodes of `config` in one shard, recorded in this process and committed under the name the fleet uses."""
    env = make_env(config.env)
    with ShardWriter(out, f"dmc-cartpole-swingup-{config.config8}-{config.seed}-00000000-00") as writer:
        for number in range(config.episodes):
            writer.write(record_episode(env, config, number))
    env.close()


def test_any_number_of_workers_and_restarts_give_one_dataset(ray_local, tmp_path):
    lines = []
    # Three actors for two cores: the last gets one when another has nothing left to do.
    whole = collect(CONFIG, tmp_path / "whole", workers=3, on_progress=lines.append)
    assert whole.episodes == CONFIG.episodes
    assert whole.existing == 0
    assert whole.frames == CONFIG.episodes * 11
    assert [line.episodes for line in lines] == sorted(line.episodes for line in lines)
    assert lines[-1].episodes == CONFIG.episodes
    assert verify(tmp_path / "whole").ok

    # A first attempt that stopped after three episodes, and a crash that left torn files behind.
    parts = tmp_path / "parts"
    record_here(replace(CONFIG, episodes=3), parts)
    (parts / "shards" / "torn.tar.0123abcd.tmp").write_bytes(b"torn")
    resumed = collect(CONFIG, parts, workers=1)
    assert resumed.existing == 3
    assert resumed.digest == whole.digest
    assert verify(parts).ok
    assert not list(parts.glob("shards/*.tmp"))

    again = collect(CONFIG, parts, workers=1)
    assert (again.existing, again.frames, again.digest) == (CONFIG.episodes, 0, whole.digest)
    assert len(Dataset.open(parts)) == CONFIG.episodes


def test_another_collection_in_the_directory_is_refused(gl, tmp_path):
    record_here(replace(CONFIG, episodes=1, steps=2), tmp_path)
    with pytest.raises(ValueError, match="another collection"):
        collect(replace(CONFIG, episodes=1, steps=3), tmp_path, workers=1)
    with pytest.raises(ValueError, match="another collection"):
        collect(replace(CONFIG, episodes=1, steps=2, seed=1), tmp_path, workers=1)


def test_an_interruption_keeps_every_complete_episode(ray_local, tmp_path):
    config = replace(CONFIG, episodes=20 * UNIT, steps=40)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(config, tmp_path, workers=2, on_progress=interrupt)
    kept = len(Dataset.open(tmp_path))
    assert UNIT <= kept < config.episodes
    assert verify(tmp_path).ok


def test_episodes_of_another_simulator_are_not_mixed_in(gl, tmp_path, monkeypatch):
    config = replace(CONFIG, episodes=1, steps=2)
    record_here(config, tmp_path)
    monkeypatch.setattr("mujoco.__version__", "9.9.9")
    with pytest.raises(ValueError, match=r"mujoco 3.*here is .*mujoco 9\.9\.9"):
        collect(replace(config, episodes=2), tmp_path, workers=1)


def test_actors_of_a_killed_collector_are_waited_for(gl, tmp_path, monkeypatch):
    monkeypatch.setattr("collectors.fleet._ORPHAN_SECONDS", 0.1)
    with join_writers(tmp_path), pytest.raises(ValueError, match="still write here"):
        collect(CONFIG, tmp_path, workers=1)
    assert not list(tmp_path.glob("shards/*"))


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
    with pytest.raises(ValueError, match="no camera 'top': choose from fixed, lookatcart"):
        collect(replace(CONFIG, env=EnvConfig(name="dmc/cartpole-swingup", camera="top")), tmp_path, workers=1)
    with pytest.raises(ValueError, match="no scripted expert"):
        collect(replace(CONFIG, env=EnvConfig(name="dmc/walker-walk"), policy=ExpertConfig()), tmp_path, workers=1)
    assert not list(tmp_path.iterdir())


def test_physics_that_diverges_names_the_episode_and_loses_nothing(ray_local, tmp_path):
    """Of the random configurations of this long chain many are unstable, which is what makes it a good example."""
    config = replace(
        CONFIG, env=EnvConfig(name="dmc/swimmer-swimmer15", size=32), policy=NoiseConfig(), random_start=1.0, steps=30
    )
    with pytest.raises(CollectionFailed, match=r"episode \d+ of dmc/swimmer-swimmer15 .*random start.*PhysicsError"):
        collect(config, tmp_path, workers=1)
    assert not list(tmp_path.glob("shards/*.tar"))
