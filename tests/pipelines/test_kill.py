"""A consumer that is killed and resumes sees exactly the windows that it would have seen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from tests.helpers import make_dataset

SPEC = WindowSpec(history=1, stack=2)
BATCH, STEPS = 6, 60

CONSUMER = """
import json, os, sys
from pathlib import Path
from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from shards.dataset import Dataset

data, log, stop, seed, threads, locality = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
done = log.read_text().splitlines() if log.exists() else []
loader = Loader(Dataset.open(data), WindowSpec(history=1, stack=2), split=None, batch_size=6, seed=seed,
                config=LoaderConfig(threads=threads, prefetch=3), locality=locality)
if done:
    loader.load_state_dict(json.loads(done[-1])["state"])
with log.open("a") as file:
    for step in range(len(done), stop):
        batch = next(loader)
        windows = list(zip(batch.episode.tolist(), batch.start.tolist()))
        file.write(json.dumps({"windows": windows, "state": loader.state_dict()}) + "\\n")
        file.flush()
print("waiting", flush=True)
sys.stdin.read()
"""


def consume(arguments, kill):
    """Run a consumer up to its stop step, and kill it there with its decode threads at work."""
    command = [sys.executable, "-c", CONSUMER, *map(str, arguments)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            if kill:
                process.kill()
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert said == "waiting\n", errors
    assert process.returncode == (-9 if kill else 0), errors


def run_killed_and_whole(path, seed):
    """Windows that a consumer killed at a random step and resumed saw, and those of an uninterrupted loader."""
    rng = np.random.default_rng(seed)
    dataset = make_dataset(path / "data", 8, steps=(3, 14), size=8, shard_episodes=3, seed=seed % 5)
    threads, locality = int(rng.integers(1, 4)), int(rng.integers(0, 3))
    with Loader(
        dataset, SPEC, split=None, batch_size=BATCH, seed=seed, config=LoaderConfig(threads=1), locality=locality
    ) as loader:
        batches = [next(loader) for _ in range(STEPS)]
        whole = [list(zip(b.episode.tolist(), b.start.tolist(), strict=True)) for b in batches]
    log = path / "log.jsonl"
    killed_at = int(rng.integers(1, STEPS))
    consume([dataset.path, log, killed_at, seed, threads, locality], kill=True)
    consume([dataset.path, log, STEPS, seed, threads, locality], kill=False)
    seen = [[tuple(window) for window in json.loads(line)["windows"]] for line in log.read_text().splitlines()]
    return seen, whole


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_consumer_sees_the_windows_of_an_uninterrupted_one(tmp_path, seed):
    seen, whole = run_killed_and_whole(tmp_path, seed)
    assert seen == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 55))
def test_fifty_killed_consumers_see_the_windows_of_an_uninterrupted_one(tmp_path, seed):
    seen, whole = run_killed_and_whole(tmp_path, seed)
    assert seen == whole
