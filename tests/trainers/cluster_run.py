"""A run on a Ray cluster of simulated nodes in which something fails, or a node joins: `python -m` it with a case and
a folder.

In a process of its own, because a process is in one cluster at a time. Prints nothing; the record of every step, the
MLflow store and the checkpoints are in the folder.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray._private import utils
from ray.cluster_utils import Cluster

from infra.home import Home
from infra.tracking import MlflowTracker
from tests.infra.mlflow_server import MlflowServer
from tests.trainers.helpers import FileRecord, tiny_config
from trainers import ray_train
from trainers.loop import Progress


class Record(FileRecord):
    """Every step in a file and in MLflow. Waits a little, so that the run has a middle to break something in, and
    at step `alone_until`, where one rank is alone, for Ray to put an end to that."""

    def __init__(self, path: Path, mlflow: MlflowTracker, alone_until: int) -> None:
        super().__init__(path)
        self.mlflow, self.alone_until = mlflow, alone_until

    def log_metrics(self, metrics: Any, step: int) -> None:
        super().log_metrics(metrics, step)
        self.mlflow.log_metrics(metrics, step)
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        threading.Event().wait(600 if alone and step == self.alone_until else 0.1)

    def flush(self) -> None:
        self.mlflow.flush()

    def close(self) -> None:
        self.mlflow.close()


def make_record(folder: Path, tracking_uri: str, run_id: str, alone_until: int) -> Record:
    with (folder / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    mlflow = MlflowTracker.resume(tracking_uri, run_id, folder / "run")
    return Record(folder / "record.jsonl", mlflow, alone_until)


def main(case: str, folder: Path) -> None:
    os.environ |= {"LEWM_SHARED_HOME": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    ray_train.RESIZE_SECONDS = 5.0
    home = Home(folder / "home")
    home.path.mkdir()
    server = MlflowServer(home)
    if case == "mlflow":
        server.start()
    tracking_uri = server.url if case == "mlflow" else f"sqlite:///{home.database}"
    created = MlflowTracker.create(tracking_uri, home.artifacts, experiment="lewm/faults", name=case)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1)] if case != "gain" else []
    ray.init(address=cluster.address, log_to_driver=False)
    # A node that joins is started by another thread, where no handler can be set: that of the first node ends them all.
    utils.set_sigterm_handler = lambda handler: None

    def kill_worker() -> None:
        os.kill(int((folder / "pids").read_text().split()[-1]), signal.SIGKILL)

    def storage_fails() -> None:
        (folder / "run").rename(folder / "run-away")
        (folder / "run").touch()

    def storage_is_back() -> None:
        (folder / "run").unlink()
        (folder / "run-away").rename(folder / "run")

    # What happens when the run has come to a step.
    events: dict[int, Callable[[], object]] = {
        "worker": {12: kill_worker},
        "node": {12: lambda: cluster.remove_node(nodes[0])},
        "gain": {12: lambda: cluster.add_node(num_cpus=1)},
        "mlflow": {12: server.stop, 24: kill_worker, 40: server.start},
        "storage": {12: storage_fails, 40: storage_is_back},
    }[case]

    def on_progress(line: Progress) -> None:
        for step in [step for step in events if step <= line.step]:
            events[step]()
            del events[step]

    config = tiny_config(
        folder / "data",
        workers="1..2" if case in ("node", "gain") else 2,
        batch_size=9,
        log_every=1,
        checkpoint_every=10,
        validate_every=1000,
        keep_checkpoints=99,
        stop_step=80,
    )
    (folder / "run").mkdir()
    summary = ray_train.train_on_ray(
        config,
        folder / "run",
        make_tracker=partial(make_record, folder, tracking_uri, created.run_id, 40 if case == "gain" else -1),
        max_failures=5,
        on_progress=on_progress,
    )
    assert not events
    assert summary.steps == config.stop_step
    ray.shutdown()
    cluster.shutdown()
    server.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
