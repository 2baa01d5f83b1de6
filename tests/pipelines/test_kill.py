"""A consumer that is killed and resumes sees exactly the windows that it would have seen."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from tests.helpers import make_dataset

SPEC = WindowSpec(history=1, stack=2)
BATCH, STEPS, KILLS = 6, 240, 3

CONSUMER = """
import json, os, sys
from pathlib import Path
from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from shards.dataset import Dataset

data, log, stop, seed, threads, locality = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
if log.exists():  # a line that was being written counts for nothing
    os.truncate(log, log.read_bytes().rfind(b"\\n") + 1)
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
        print(step, flush=True)
"""


def consume(arguments, kill_after=None, delay=0.0):
    """Run a consumer; SIGKILL it in the middle of its work, `delay` seconds after it has told of a step."""
    command = [sys.executable, "-c", CONSUMER, *map(str, arguments)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if kill_after is not None:
                for line in process.stdout:
                    if int(line) >= kill_after:
                        break
                time.sleep(delay)
                process.kill()
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL), errors


def run_killed_and_whole(path, seed):
    """Windows seen by a consumer that is killed at work and resumed, again and again, and by an uninterrupted one."""
    rng = np.random.default_rng(seed)
    dataset = make_dataset(path / "data", 8, steps=(3, 14), size=8, shard_episodes=3, seed=seed % 5)
    threads, locality = int(rng.integers(1, 4)), int(rng.integers(0, 3))
    with Loader(
        dataset, SPEC, split=None, batch_size=BATCH, seed=seed, config=LoaderConfig(threads=1), locality=locality
    ) as loader:
        batches = [next(loader) for _ in range(STEPS)]
        whole = [list(zip(b.episode.tolist(), b.start.tolist(), strict=True)) for b in batches]
    log = path / "log.jsonl"
    arguments = [dataset.path, log, STEPS, seed, threads, locality]
    for kill_after in np.sort(rng.integers(0, STEPS // 2, KILLS)).tolist():
        consume(arguments, kill_after, float(rng.uniform(0, 0.003)))
    consume(arguments)
    seen = [[tuple(window) for window in json.loads(line)["windows"]] for line in log.read_text().splitlines()]
    return seen, whole


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_consumer_sees_the_windows_of_an_uninterrupted_one(tmp_path, seed):
    seen, whole = run_killed_and_whole(tmp_path, seed)
    assert seen == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 19))
def test_fifty_kills_change_nothing(tmp_path, seed):
    seen, whole = run_killed_and_whole(tmp_path, seed)
    assert seen == whole
