"""The actors: interrupted, replaced when they die, get stuck or grow old, and told their place on their node."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.envs import make_env
from collectors.fleet import ActorConfig, CollectionFailed, collect
from collectors.locks import locked
from collectors.recorder import Committed, Recorded, Recorder
from collectors.supervisor import Supervisor, Unit
from shards.dataset import Dataset
from shards.verify import verify
from tests.collectors.helpers import CONFIG, UNIT, digest_here, keys


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C counts also where these tests are a background job of a shell, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(at: int, signals: int) -> type:
    """A recorder that, in the middle of episode `at`, has the driver interrupted `signals` times.

    After the first time it goes on when it is told to stop; after a second it does not.
    """
    driver = os.getpid()

    class Interrupting(Recorder):
        def record(self, shard, number):
            if number == at:
                assert self._env is not None
                step = self._env.step

                def last(action):
                    os.kill(driver, signal.SIGINT)
                    self._interrupted.wait()
                    if signals > 1:
                        os.kill(driver, signal.SIGINT)
                        threading.Event().wait()
                    return step(action)

                self._env.step = last
            return super().record(shard, number)

    return Interrupting


def test_an_interruption_keeps_every_complete_episode_and_waits_for_no_other(
    ray_local, interruptible, tmp_path, monkeypatch
):
    config = replace(CONFIG, episodes=20 * UNIT, steps=4)
    monkeypatch.setattr("collectors.supervisor.Recorder", interrupting(UNIT + 3, signals=1))
    with pytest.raises(KeyboardInterrupt):
        collect(config, tmp_path, workers=1)
    # The second unit was not done: it is a shard of three. The fourth episode had begun, and is not one.
    assert list(Dataset.open(tmp_path).keys) == keys(config, range(UNIT + 3))
    assert verify(tmp_path).ok
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_interruption_waits_for_nothing(ray_local, interruptible, tmp_path, monkeypatch):
    config = replace(CONFIG, episodes=20 * UNIT, steps=4)
    monkeypatch.setattr("collectors.supervisor.Recorder", interrupting(UNIT + 3, signals=2))
    with pytest.raises(KeyboardInterrupt):
        collect(config, tmp_path, workers=1)
    assert list(Dataset.open(tmp_path).keys) == keys(config, range(UNIT))
    assert verify(tmp_path).ok
    assert not list(tmp_path.rglob("*.tmp"))


def drive(monkeypatch, tmp_path: Path, recorder: type, *, units: int, workers: int, stuck_seconds: float) -> Supervisor:
    """A supervisor that had actors of this class do units of one episode each."""
    monkeypatch.setattr("collectors.supervisor.Recorder", recorder)
    with locked(tmp_path) as word:
        supervisor = Supervisor(
            CONFIG,
            tmp_path,
            [Unit(f"unit-{number}", (number,)) for number in range(units)],
            {},
            word=word,
            workers=workers,
            actor=ActorConfig(stuck_seconds=stuck_seconds),
            local=True,
            on_commit=lambda counts: None,
        )
        supervisor.run()
    assert supervisor.counts.episodes == units
    return supervisor


def idle() -> Any:
    """A recorder that simulates nothing. A class of a function travels to the actors by value."""

    class Idle(Recorder):
        def prepare(self, rank):
            pass

        def record(self, shard, number):
            return Recorded(frames=1, retries=0, renderers=0)

        def commit(self):
            return Committed(1, 0)

    return Idle


@pytest.mark.parametrize(("nodes", "ranks"), [(1, ["0", "1"]), (2, ["0", "0"])])
def test_actors_are_counted_on_their_node(ray_local, tmp_path, monkeypatch, nodes, ranks):
    """The second starts while the first prepares, so that both are there at once."""

    class Ranked(idle()):
        def start(self):
            (tmp_path / f"started-{os.getpid()}").touch()
            started = super().start()
            return replace(started, node=str(os.getpid())) if nodes == 2 else started

        def prepare(self, rank):
            (tmp_path / f"rank-{rank}-{os.getpid()}").touch()
            while len(list(tmp_path.glob("started-*"))) < 2:
                time.sleep(0.05)

    supervisor = drive(monkeypatch, tmp_path, Ranked, units=2, workers=2, stuck_seconds=600)
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("rank-*")) == ranks
    assert {each.host for each in supervisor.counts.actors} == {socket.gethostname()}


def test_a_node_that_cannot_prepare_is_named(ray_local, tmp_path, monkeypatch):
    class BlindRecorder(Recorder):
        def prepare(self, rank):
            raise OSError("no OpenGL backend renders")

    monkeypatch.setattr("collectors.supervisor.Recorder", BlindRecorder)
    with pytest.raises(CollectionFailed, match=f"^node {socket.gethostname()}: OSError: no OpenGL"):
        collect(CONFIG, tmp_path, workers=1, address="auto")  # that is the Ray of these tests
    with pytest.raises(CollectionFailed, match=r"^OSError: no OpenGL"):
        collect(CONFIG, tmp_path, workers=1)


def faulty(marks: Path, fault: Callable[[Any], None], at: int, times: int) -> type:
    """A recorder that calls `fault` before it records episode `at`, the first `times` times in all processes."""

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
    assert summary.digest == digest_here(config, tmp_path / "sound")
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


def test_what_to_change_when_a_worker_is_stuck_is_named(ray_local, tmp_path, monkeypatch):
    class StuckRecorder(Recorder):
        def prepare(self, rank):
            threading.Event().wait()

    monkeypatch.setattr("collectors.supervisor.Recorder", StuckRecorder)
    with pytest.raises(
        CollectionFailed, match=r"preparing stood still for more than the 0.5 s of --actor.stuck-seconds"
    ):
        collect(CONFIG, tmp_path, workers=1, actor=ActorConfig(stuck_seconds=0.5, max_lost=0))


def test_a_long_episode_is_not_stuck(ray_local, tmp_path, monkeypatch):
    """Its steps count: it ends only when the driver has asked twice when the last one was."""

    class Long(idle()):
        def __init__(self, config, out, word):
            super().__init__(config, out, word)
            self.asked, self.done = 0, threading.Event()

        def idle_seconds(self):
            self.asked += 1
            if self.asked == 2:
                self.done.set()
            return 0.0

        def record(self, shard, number):
            self.done.wait()
            return super().record(shard, number)

    assert drive(monkeypatch, tmp_path, Long, units=1, workers=1, stuck_seconds=2).counts.lost == 0


def test_every_step_of_an_episode_is_a_sign_of_life(gl, tmp_path):
    recorder = Recorder(CONFIG, tmp_path, "word")
    recorder.prepare(0)
    began = time.monotonic()
    recorder.record("unit-00", 0)
    assert recorder.idle_seconds() < time.monotonic() - began
    recorder.commit()


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
