"""Chaos: actors and the driver are killed at random moments, and the dataset ends as if nobody had been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collectors.config import CollectConfig
from collectors.envs import EnvConfig
from shards.dataset import Dataset
from shards.verify import verify
from tests.collectors.helpers import digest_here, keys

_DRIVER = """
import sys
from pathlib import Path
from collectors.config import CollectConfig
from collectors.envs import EnvConfig
from collectors.fleet import ActorConfig, collect
config = CollectConfig(env=EnvConfig(name="dmc/cartpole-swingup", size=32), episodes=int(sys.argv[2]), steps=150)
collect(config, Path(sys.argv[1]), workers=2, actor=ActorConfig(max_lost=1000))
"""


def test_kills_at_random_moments_lose_and_double_nothing(gl, tmp_path):
    torment(tmp_path / "data", ["actor", "driver", "actor"], episodes=48, seed=0)


@pytest.mark.slow
def test_many_kills_at_random_moments_lose_and_double_nothing(gl, tmp_path):
    torment(tmp_path / "data", ["actor", "actor", "driver", "actor"] * 6, episodes=600, seed=1)


def torment(out: Path, kills: list[str], episodes: int, seed: int) -> None:
    """Collect `episodes`, killing what `kills` says one after another, each at a random moment while actors write."""
    rng = random.Random(seed)
    driver = start(out, episodes)
    try:
        for victim in kills:
            target = driver.pid
            wait_until(lambda: len(writers(out) - {driver.pid}) > 0, driver)  # noqa: B023
            before = len(list(out.glob("shards/*")))
            wait_until(lambda: len(list(out.glob("shards/*"))) != before, driver)  # noqa: B023
            time.sleep(rng.uniform(0, 0.5))  # any moment of a unit
            if victim == "actor":
                alive = sorted(writers(out) - {driver.pid})
                if not alive:
                    continue
                target = rng.choice(alive)
            assert driver.poll() is None, "the collection ended before all kills: give it more episodes"
            os.kill(target, signal.SIGKILL)
            if victim == "driver":
                driver.wait()
                driver = start(out, episodes)
        assert driver.wait(timeout=600) == 0
    finally:
        driver.kill()
        driver.wait()
    report = verify(out)
    assert report.ok, report.problems
    assert not report.leftovers
    config = CollectConfig(env=EnvConfig(name="dmc/cartpole-swingup", size=32), episodes=episodes, steps=150)
    assert list(Dataset.open(out).keys) == keys(config, range(episodes))
    assert Dataset.open(out).digest == digest_here(config, out.with_name("undisturbed"))


def start(out: Path, episodes: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", _DRIVER, str(out), str(episodes)])


def writers(out: Path) -> set[int]:
    """Processes that have the lock of writers open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(out / ".writers"):
                found.add(int(link.parts[2]))
        except OSError:  # it ended meanwhile
            continue
    return found


def wait_until(condition, driver) -> None:
    while not condition():
        assert driver.poll() is None, "the collection ended before all kills: give it more episodes"
        time.sleep(0.02)
