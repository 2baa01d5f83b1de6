"""A run on a Ray cluster of simulated nodes that lose a worker or a node, or gain one: `python -m` it with a case.

In a process of its own, because a process is in one cluster at a time. Prints nothing; the record and the checkpoints
are in the folder.
"""

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.trainers.helpers import FileRecord, tiny_config
from trainers import ray_train
from trainers.loop import Progress
from trainers.tracker import NullTracker


class SlowRecord(FileRecord):
    """Waits a little at each step, so that there is a middle of the run in which to break something."""

    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        threading.Event().wait(0.1)


def make_tracker(path: Path) -> NullTracker:
    with (path.parent / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return SlowRecord(path)


def main(case: str, folder: Path) -> None:
    os.environ |= {"LEWM_SHARED_HOME": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    ray_train.RESIZE_SECONDS = 5.0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1)] if case != "gain" else []
    ray.init(address=cluster.address, log_to_driver=False)
    happened = threading.Event()

    def on_progress(line: Progress) -> None:
        if line.step < 12 or happened.is_set():
            return
        happened.set()
        if case == "worker":
            os.kill(int((folder / "pids").read_text().split()[-1]), signal.SIGKILL)
        elif case == "node":
            cluster.remove_node(nodes[0])
        else:
            cluster.add_node(num_cpus=1)

    config = tiny_config(
        folder / "data",
        workers=2 if case == "worker" else "1..2",
        batch_size=9,
        log_every=1,
        checkpoint_every=10,
        validate_every=1000,
        stop_step=300 if case == "gain" else 80,
    )
    (folder / "run").mkdir()
    summary = ray_train.train_on_ray(
        config,
        folder / "run",
        make_tracker=partial(make_tracker, folder / "record.jsonl"),
        max_failures=5,
        on_progress=on_progress,
    )
    assert happened.is_set()
    assert summary.steps == config.stop_step
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
