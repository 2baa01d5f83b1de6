"""A dataset's index without its shards: what starting an epoch over very many episodes takes.

`python -m infra.bench.synthetic DIR` opens the dataset in DIR, takes the first and the last windows of an epoch, and
prints what that took, as JSON. It is a process of its own, so that its memory is that of the work alone.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.episodes import EpisodeTable
from pipelines.order import WindowOrder
from pipelines.windows import WindowSpec
from shards.atomic import write_atomically
from shards.dataset import Dataset
from shards.index import FORMAT_VERSION, ipc_bytes
from shards.manifest import EPISODES, EPISODES_SCHEMA, MANIFEST, Common, Manifest, to_bytes
from shards.split import SPLITS, split_of
from shards.statistics import Statistics
from shards.writer import ShardInfo

SHARD_EPISODES = 1000


def write_index(path: Path, episodes: int, steps: int) -> None:
    """Write the manifest and `episodes.arrow` of a dataset of `episodes` episodes of `steps` steps, and no shard."""
    keys = [f"dmc-walker-walk-00000000-0-{number:08d}" for number in range(episodes)]
    columns = {
        "key": keys,
        "shard": np.arange(episodes) // SHARD_EPISODES,
        "row": np.arange(episodes) % SHARD_EPISODES,
        "length": np.full(episodes, steps),
        "split": [SPLITS.index(split_of(key)) for key in keys],
    }
    batch = pa.record_batch([pa.array(columns[f.name], f.type) for f in EPISODES_SCHEMA], schema=EPISODES_SCHEMA)
    data = ipc_bytes(batch)
    held = [min(SHARD_EPISODES, episodes - first) for first in range(0, episodes, SHARD_EPISODES)]
    shards = tuple(
        ShardInfo(f"part-{n:08d}", 1024, "0" * 64, 1024, "0" * 64, count, count * steps) for n, count in enumerate(held)
    )
    counts = np.bincount(columns["split"], minlength=len(SPLITS)).tolist()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest="0" * 64,
        common=Common("dmc/walker-walk", "side", 64, "fast", 2, 0.05, 6, "jpeg-q95-444", (), {}),
        n_episodes=episodes,
        n_steps=episodes * steps,
        n_frames=episodes * (steps + 1),
        splits=dict(zip(SPLITS, counts, strict=True)),
        statistics_from="train",
        statistics=Statistics(np.zeros(3), np.ones(3), np.zeros(6), np.ones(6), np.zeros(0), np.ones(0)),
        episodes_bytes=len(data),
        episodes_sha256=hashlib.sha256(data).hexdigest(),
        shards=shards,
    )
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / EPISODES, data)
    write_atomically(path / MANIFEST, to_bytes(manifest))


def start_epoch(path: Path, locality: int = 0) -> dict[str, float]:
    """Open a dataset and find the first and last 256 windows of an epoch: {episodes, windows, seconds, anon_bytes}."""
    before, began = _anonymous_bytes(), time.perf_counter()
    table = EpisodeTable(Dataset.open(path), None)
    shards = table.shards() if locality else None
    spec = WindowSpec(history=1, stack=3)
    order = WindowOrder(
        table.lengths, spec, digest=table.digest, split="None", seed=0, locality=locality, shards=shards
    )
    order.window(3, np.arange(256))
    order.window(3, np.arange(order.total - 256, order.total))
    seconds = time.perf_counter() - began
    return {
        "episodes": len(table.lengths),
        "windows": order.total,
        "seconds": seconds,
        "anon_bytes": _anonymous_bytes() - before,
    }


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10


if __name__ == "__main__":
    print(json.dumps(start_epoch(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
