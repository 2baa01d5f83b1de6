"""A collection on a Ray cluster of two simulated nodes with a core each: `python -m` it with a folder.

In a process of its own, because a process is in one cluster at a time. Prints nothing; the dataset is in the folder,
and for each actor a file `<node>-<rank>`.
"""

import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import collectors.supervisor
from collectors.fleet import collect
from collectors.recorder import Recorder
from tests.collectors.helpers import CONFIG


def noted(folder: Path) -> type:
    """A recorder that leaves a file with where it runs. A class of a function travels to the actors by value."""

    class NotedRecorder(Recorder):
        def prepare(self, rank):
            (folder / f"{ray.get_runtime_context().get_node_id()}-{rank}").touch()
            super().prepare(rank)

    return NotedRecorder


def main(folder: Path) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    (folder / "actors").mkdir()
    collectors.supervisor.Recorder = noted(folder / "actors")
    collect(CONFIG, folder / "data", workers=2, address=cluster.address)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
