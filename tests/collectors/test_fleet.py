"""The fleet: the same dataset for any number of workers, restarts that collect what is missing, refusals."""

import fcntl
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest

from collectors import fleet
from collectors.config import load_collect_config
from collectors.envs import EnvConfig
from collectors.fleet import COLLECTION, ActorConfig, CollectionFailed, collect
from collectors.locks import check_shared, join_writers, locked
from collectors.policies import ExpertConfig, NoiseConfig
from collectors.recorder import Recorder
from collectors.supervisor import Unit
from shards.dataset import Dataset
from shards.verify import verify
from tests.collectors.helpers import CONFIG, UNIT, record_here


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


def test_a_node_with_another_directory_is_named(ray_local, tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()

    class ElsewhereRecorder(Recorder):
        def __init__(self, config, out, word):
            super().__init__(config, tmp_path / "theirs", word)

    monkeypatch.setattr("collectors.supervisor.Recorder", ElsewhereRecorder)
    with pytest.raises(ValueError, match=f"node {socket.gethostname()} has another directory at .*--out"):
        collect(CONFIG, tmp_path / "ours", workers=1)
    with locked(tmp_path / "theirs"), pytest.raises(ValueError, match="has another directory"):
        collect(CONFIG, tmp_path / "ours", workers=1)
    assert not list(tmp_path.rglob("*.tar"))


def test_the_word_of_a_lock_outlives_a_collector_that_is_refused(tmp_path):
    with locked(tmp_path) as word:
        with pytest.raises(ValueError, match="in use"), locked(tmp_path):
            pass
        check_shared(tmp_path, word)
    with locked(tmp_path), pytest.raises(ValueError, match="another directory"):
        check_shared(tmp_path, word)


def test_episodes_that_were_committed_and_are_not_there_are_no_success(ray_local, tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"

    class LosingRecorder(Recorder):
        def start(self):
            started = super().start()
            self._out = theirs
            return started

    record_here(replace(CONFIG, episodes=3), tmp_path / "ours")
    monkeypatch.setattr("collectors.supervisor.Recorder", LosingRecorder)
    with pytest.raises(CollectionFailed, match=r"holds 3 episodes, and actors committed 19: .*share"):
        collect(CONFIG, tmp_path / "ours", workers=1)
    assert len(Dataset.open(tmp_path / "ours")) == 3


def test_more_episodes_than_asked_for_are_named(gl, tmp_path):
    record_here(replace(CONFIG, episodes=3), tmp_path)
    with pytest.raises(ValueError, match="up to number 2, more than the 2 asked for: give --episodes 3 or more"):
        collect(replace(CONFIG, episodes=2), tmp_path, workers=1)


def test_what_no_node_has_is_not_waited_for(ray_local, tmp_path):
    with pytest.raises(ValueError, match=r"no node has the 1 cores and 1000 GPUs .*nodes have 2 and"):
        collect(CONFIG, tmp_path, workers=1, actor=ActorConfig(gpus=1000))
    with pytest.raises(ValueError, match="no node has the 64 cores"):
        collect(CONFIG, tmp_path, workers=1, actor=ActorConfig(cpus=64))
    assert not list(tmp_path.glob("*.json"))


def test_a_default_that_is_written_out_changes_no_key(gl):
    env = EnvConfig(name="dmc/cartpole-swingup", size=32, camera="fixed", action_repeat=2)
    plain, spec = fleet._checked(replace(CONFIG, env=env, steps=500))
    assert plain == replace(CONFIG, steps=None)
    assert spec.max_steps == 500
    other = replace(CONFIG, env=replace(env, camera="lookatcart", action_repeat=4), steps=499)
    assert fleet._checked(other)[0] == other


class Counted(list[Any]):
    """A list that counts how often somebody goes through it."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()


def test_units_are_found_in_one_pass():
    names = Counted(["p-00000000-00", "p-00000008-00", "p-00000008-01", "p-more-00000008-07", "another"])
    missing = Counted([1, 2, 7, 15, 16, 17, 800])
    units, parts = fleet._units("p", names, missing)
    assert units == [
        Unit("p-00000000", (1, 2, 7)),
        Unit("p-00000008", (15,)),
        Unit("p-00000016", (16, 17)),
        Unit("p-00000800", (800,)),
    ]
    assert [parts.get(unit.stem, 0) for unit in units] == [1, 2, 0, 0]
    assert (names.times, missing.times) == (1, 1)


def test_the_rate_leaves_out_the_start_of_ray(ray_local, tmp_path, monkeypatch):
    began, seen = [], []

    def start_slowly(*args, **keywords):
        threading.Event().wait(0.5)
        began.append(time.perf_counter())

    monkeypatch.setattr(fleet, "ensure_ray", start_slowly)
    summary = collect(
        replace(CONFIG, episodes=1, steps=2),
        tmp_path,
        workers=1,
        on_progress=lambda _: seen.append(time.perf_counter()),
    )
    assert 0 < summary.seconds <= seen[-1] - began[0]
    assert summary.frames_per_second == summary.frames / summary.seconds


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
