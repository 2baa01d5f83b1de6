"""The fleet: the same dataset for any number of workers, restarts that collect what is missing, refusals."""

import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.config import CollectConfig, load_collect_config
from collectors.envs import EnvConfig, make_env
from collectors.fleet import COLLECTION, UNIT, ActorConfig, CollectionFailed, collect
from collectors.locks import join_writers
from collectors.policies import ExpertConfig, NoiseConfig, named_policy
from collectors.recorder import Recorder
from collectors.rollout import record_episode
from shards.dataset import Dataset
from shards.manifest import assemble
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
    with pytest.raises(ValueError, match=r"no .*expert"):
        collect(replace(CONFIG, env=EnvConfig(name="dmc/humanoid-walk"), policy=ExpertConfig()), tmp_path, workers=1)
    assert not list(tmp_path.iterdir())


def test_physics_that_diverges_names_the_episode_and_loses_nothing(ray_local, tmp_path):
    """Of the random configurations of this long chain many are unstable, which is what makes it a good example."""
    config = replace(
        CONFIG, env=EnvConfig(name="dmc/swimmer-swimmer15", size=32), policy=NoiseConfig(), random_start=1.0, steps=30
    )
    with pytest.raises(CollectionFailed, match=r"episode \d+ of dmc/swimmer-swimmer15 .*random start.*PhysicsError"):
        collect(config, tmp_path / "failed", workers=1)
    assert not list(tmp_path.rglob("*.tmp"))

    skipped = collect(replace(config, episodes=UNIT), tmp_path / "skip", workers=1, actor=ActorConfig(skip_failed=True))
    assert skipped.skipped
    assert skipped.episodes + len(skipped.skipped) == UNIT
    assert verify(tmp_path / "skip").ok
    holes = json.loads((tmp_path / "skip" / COLLECTION).read_text())["skipped"]
    assert {int(number) for number in holes} == set(skipped.skipped)


def faulty(marks: Path, fault: Callable[[Any], None], at: int, times: int) -> type:
    """A recorder that calls `fault` before it records episode `at`, the first `times` times in all processes.

    A class of a function travels to the actors by value.
    """

    class Faulty(Recorder):
        def record(self, shard, number):
            done = len(list(marks.iterdir()))
            if number == at and done < times:
                (marks / str(done)).touch()
                fault(self)
            return super().record(shard, number)

    return Faulty


def run_with(monkeypatch, tmp_path, fault, times=1, actor=None):
    """A small collection with faults at episode 2; its summary, and the same one's without faults."""
    config = replace(CONFIG, episodes=UNIT + 1, steps=4)
    (tmp_path / "marks").mkdir()
    monkeypatch.setattr("collectors.supervisor.Recorder", faulty(tmp_path / "marks", fault, 2, times))
    summary = collect(config, tmp_path / "data", workers=1, actor=actor)
    sound = tmp_path / "sound"
    record_here(config, sound)
    assemble(sound)
    assert summary.digest == Dataset.open(sound).digest
    assert verify(tmp_path / "data").ok
    assert not list((tmp_path / "data").rglob("*.tmp"))
    return summary


def test_a_worker_that_dies_is_replaced_and_its_unit_done_again(ray_local, tmp_path, monkeypatch):
    def die(recorder):
        os.kill(os.getpid(), signal.SIGKILL)

    summary = run_with(monkeypatch, tmp_path, die)
    assert summary.lost == 1
    (tmp_path / "again").mkdir()
    with pytest.raises(CollectionFailed, match="1 actors were lost"):
        run_with(monkeypatch, tmp_path / "again", die, actor=ActorConfig(max_lost=0))


def test_a_worker_that_is_stuck_is_replaced(ray_local, tmp_path, monkeypatch):
    def hang(recorder):
        threading.Event().wait()

    # The limit is for loading the simulator too, which takes seconds.
    assert run_with(monkeypatch, tmp_path, hang, actor=ActorConfig(stuck_seconds=12)).lost == 1


def test_workers_grow_old(ray_local, tmp_path, monkeypatch):
    assert run_with(monkeypatch, tmp_path, print, actor=ActorConfig(recycle=2)).recycled == 1


@pytest.mark.parametrize("whole_process", [False, True])
def test_a_renderer_that_goes_bad_is_replaced(ray_local, tmp_path, monkeypatch, whole_process):
    def break_renderer(recorder):
        def black():
            return np.zeros((32, 32, 3), np.uint8)

        recorder._env.render = black
        if whole_process:

            def broken(config):
                env = make_env(config)
                env.render = black
                return env

            import collectors.recorder

            collectors.recorder.make_env = broken

    summary = run_with(monkeypatch, tmp_path, break_renderer)
    assert summary.renderers == 1
    assert summary.retries == 1


def test_a_full_disk_is_named_and_leaves_a_sound_dataset(ray_local, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        config = replace(CONFIG, encoding="raw", episodes=2 * UNIT)
        record_here(replace(config, episodes=1), disk / "data")
        with pytest.raises(CollectionFailed, match="No space left"):
            collect(config, disk / "data", workers=1)
        assert verify(disk / "data").ok
        assert len(Dataset.open(disk / "data")) >= 1
        assert not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_directory_is_named(gl, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a read-only file system here")
    try:
        with pytest.raises(OSError, match="Read-only"):
            collect(CONFIG, disk / "data", workers=1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_collection_can_be_repeated_from_its_file(tmp_path):
    path = tmp_path / COLLECTION
    path.write_text(json.dumps({"config": asdict(CONFIG), "skipped": {}}))
    assert load_collect_config(path) == CONFIG
    assert load_collect_config(path).config8 == CONFIG.config8
    path.write_text(json.dumps({"config": asdict(CONFIG) | {"episodes": 0}}))
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        load_collect_config(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"no collection\.json"):
        load_collect_config(path)
