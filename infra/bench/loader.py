"""`lewm bench loader`: windows/s of the loader and its tiers against the decoder alone and against what others do.

Windows hold the frames of two observations of three stacked frames, four distinct frames, as the `article` preset has
them. The floor decodes the JPEG bytes of such windows, which are already in memory, with simplejpeg into one
preallocated batch, with as many threads as the loader has: no loader that decodes can pass it. All contenders take
turns on the same data. `episodes` is the mean number of distinct episodes in a batch: speed that is bought with batches
of few episodes shows there. Peers whose packages are missing are left out and named.

`MB` is the most memory, anonymous and shared, that a contender took beyond what was there, its processes included;
mapped files are not in it. Without `--data` 1,000 episodes of walker-walk are collected at 64 and at 224 px into the
home, which decoded take 8 GB.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from infra.bench.common import take_turns, write_csv
from infra.cli.common import Common, absolute
from infra.console import print_json, print_table, progress, say
from pipelines.windows import WindowSpec
from shards.dataset import Dataset

SPEC = WindowSpec(history=1, stack=3)
FLOOR = "decode only"
SIZES = (64, 224)
EPISODES, STEPS = 1000, 50
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Measure the loader and its tiers against the decoder alone, stock WebDataset and HDF5."""

    data: tuple[Path, ...] = ()
    """Dataset directories; 1,000 episodes of walker-walk at 64 and at 224 px are collected unless given."""
    threads: int = 2
    """Threads of the loader and of the floor; processes of the others."""
    batch: int = 64
    """Windows a batch."""
    seconds: float = 2.0
    """How long a contender runs in a turn."""
    turns: int = 5
    """Turns of every contender."""
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, not {self.seconds}")


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: windows/s, how many times the floor that is, distinct episodes a batch, and the most memory taken
    in any turn. Of the start of an epoch: seconds and megabytes of anonymous memory."""

    size: int
    contender: str
    windows_per_second: float | None = None
    low: float | None = None
    high: float | None = None
    turns: int | None = None
    ratio: float | None = None
    episodes: float | None = None
    seconds: float | None = None
    megabytes: float | None = None


def run(args: Args) -> None:
    paths = [absolute(path) for path in args.data] or _collect(args)
    rows: list[Row] = []
    missing = [name for name in ("h5py", "hdf5plugin") if importlib.util.find_spec(name) is None]
    if missing:
        say(f"left out for want of {', '.join(missing)}: DataLoader over HDF5 (`pip install 'lewm[hdf5]'`)")
    for path in paths:
        dataset = Dataset.open(path)
        say(f"{dataset.environment} at {dataset.size} px, {len(dataset)} episodes")
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(args, dataset, Path(scratch), with_hdf5=not missing)
    rows.append(_epoch_start())
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json({"rows": rows, "left_out": ["HDF5"] if missing else []})
        return
    table = [
        (str(r.size), r.contender, f"{r.windows_per_second:,.0f}", f"{r.low:,.0f}-{r.high:,.0f}", f"{r.ratio:.2f}x",
         "-" if r.episodes is None else f"{r.episodes:.1f}", f"{r.megabytes:,.0f}")
        for r in rows if r.windows_per_second is not None
    ]  # fmt: skip
    print_table("Loading", ("px", "what", "windows/s", "range", "of decode only", "episodes a batch", "MB"), table)
    last = rows[-1]
    say(f"{last.contender}: {last.seconds:.2f} s, {last.megabytes:.0f} MB of anonymous memory")


def measure(args: Args, dataset: Dataset, scratch: Path, *, with_hdf5: bool) -> list[Row]:
    """The rows of one dataset."""
    import torch

    from infra.bench import peers

    seen: dict[str, list[int]] = {}
    most: dict[str, float] = {}

    def windows_of(name: str, open_iterator: Callable[[], Any], *, batched: bool) -> Callable[[], float]:
        def turn() -> float:
            episodes = seen.setdefault(name, [])
            iterator: Iterator[Any] = iter(open_iterator())
            next(iterator)  # what starts up: processes, the first episode
            return _rate(iterator, episodes, args.seconds, batched)

        return turn

    def ours(tier: Any, device: str = "cpu") -> Callable[[], float]:
        return lambda: _ours(args, dataset, tier, device, seen.setdefault(_name(tier, device), []))

    contenders = {FLOOR: lambda: _floor(args, dataset), _name("stream", "cpu"): ours("stream")}
    contenders[_name("memmap", "cpu")] = ours("memmap")
    if torch.cuda.is_available():
        for tier in ("stream", "memmap", "gpu"):
            contenders[_name(tier, "cuda")] = ours(tier, "cuda")
    for visit in (1, 8, 0):
        label = "all windows" if visit == 0 else f"{visit} window{'s' * (visit > 1)}"

        def pipeline(visit: int = visit) -> Any:
            return peers.web_windows(dataset, SPEC, visit, seed=0)

        def one_by_one(pipeline: Callable[[], Any] = pipeline) -> Any:
            return peers.web_loader(pipeline(), args.threads, 0)

        def in_batches(pipeline: Callable[[], Any] = pipeline) -> Any:
            return peers.web_loader(pipeline(), args.threads, args.batch)

        for name, source, batched in (
            (f"WebDataset, {label} a visit", pipeline, False),
            (f"WebLoader, {label} a visit, one by one", one_by_one, False),
            (f"WebLoader, {label} a visit, batched", in_batches, True),
        ):
            if visit == 1 and batched:
                continue  # a batch takes many seconds to decode, beside which its crossing is nothing
            contenders[name] = windows_of(name, source, batched=batched)
    if with_hdf5:
        with progress("write HDF5", len(dataset), "episodes") as bar:
            peers.write_hdf5(dataset, scratch / "frames.h5", bar.update)
        windows = peers.Hdf5Windows(scratch / "frames.h5", dataset.lengths, SPEC)
        name = "DataLoader over HDF5"
        contenders[name] = windows_of(
            name, lambda: peers.hdf5_loader(windows, args.threads, args.batch, seed=len(seen)), batched=True
        )
    with progress("measure", args.turns * len(contenders), "turns") as bar:
        done = 0

        def counted(name: str, turn: Callable[[], float]) -> Callable[[], float]:
            def call() -> float:
                nonlocal done
                with _Memory() as memory:
                    rate = turn()
                most[name] = max(most.get(name, 0.0), memory.most / 1e6)
                done += 1
                bar.update(done, f"{name}: {rate:,.0f} windows/s")
                return rate

            return call

        figures = take_turns({name: counted(name, turn) for name, turn in contenders.items()}, args.turns)
    distinct = {name: _distinct(seen.get(name, []), args.batch) for name in figures}
    return [
        Row(
            dataset.size,
            name,
            each.rate,
            each.low,
            each.high,
            each.turns,
            each.over(figures[FLOOR]),
            distinct[name],
            megabytes=most[name],
        )
        for name, each in figures.items()
    ]


class _Memory(threading.Thread):
    """Looks, five times a second, at the memory of this process and its descendants: `most` bytes over the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ended = 0, threading.Event()

    def __enter__(self) -> "_Memory":
        self._before = _taken(os.getpid())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, _taken(os.getpid()) - self._before)


def _taken(process: int) -> int:
    """Bytes, anonymous and shared, of a process and its descendants; none of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        children = " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")).split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return own + sum(_taken(int(child)) for child in children)


def _name(tier: str, device: str) -> str:
    return f"lewm, {tier}{' to the GPU' * (device == 'cuda')}"


def _rate(iterator: Iterator[Any], episodes: list[int], seconds: float, batched: bool) -> float:
    """Windows/s of an iterator whose items end in their episodes; an iterator that ends is over."""
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not count:
        item = next(iterator, None)
        if item is None:
            break
        if batched:
            episodes += item[2].tolist()
            count += len(item[2])
        else:
            episodes.append(int(item[2]))
            count += 1
    return count / max(elapsed, time.perf_counter() - began)


def _ours(args: Args, dataset: Dataset, tier: Any, device: str, episodes: list[int]) -> float:
    from pipelines.loader import Loader, LoaderConfig

    config = LoaderConfig(threads=args.threads, prefetch=2, tier=tier)
    with Loader(
        dataset, SPEC, split=None, batch_size=args.batch, seed=len(episodes), device=device, config=config
    ) as loader:
        began = time.perf_counter()
        while time.perf_counter() - began < args.seconds:  # every slot was used, and most episodes opened
            next(loader)
        count, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < args.seconds:
            batch = next(loader)
            if device == "cuda":
                batch.frames[-1, -1, -1, -1, -1].item()  # the batch is there
            episodes += batch.episode.tolist()
            count += args.batch
    return count / elapsed


def _floor(args: Args, dataset: Dataset) -> float:
    """Windows/s of decoding alone: threads that share out the rows of one preallocated batch."""
    import simplejpeg

    rng = np.random.default_rng(0)
    batches = max(2, (16 << 20) // (args.batch * 4 * dataset.size**2 // 2))
    members = [_members(dataset, rng) for _ in range(args.batch * batches)]
    out = np.empty((args.batch, len(SPEC.unique_offsets), dataset.size, dataset.size, 3), np.uint8)
    images = [list(row) for row in out]
    counts = [0] * args.threads
    began = time.perf_counter()

    def work(thread: int) -> None:
        mine = list(range(thread, len(members), args.threads))
        while time.perf_counter() - began < args.seconds:
            for number in mine:
                for data, image in zip(members[number], images[number % args.batch], strict=True):
                    simplejpeg.decode_jpeg(data, "RGB", False, False, 0, 0, 1, image)
                counts[thread] += 1

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(args.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def _members(dataset: Dataset, rng: np.random.Generator) -> list[bytes]:
    """The JPEG bytes of a random window's frames."""
    episode = int(rng.integers(len(dataset)))
    start = SPEC.first_start + int(rng.integers(SPEC.count(int(dataset.lengths[episode]))))
    members = dataset.frame_members(episode)
    found = []
    with open(members.path, "rb") as file:
        for step in start + SPEC.unique_offsets:
            file.seek(int(members.offset[step]))
            found.append(file.read(int(members.size[step])))
    return found


def _distinct(episodes: list[int], batch: int) -> float | None:
    """Mean number of distinct episodes in consecutive batches; None where there was not one whole batch."""
    edges = range(0, len(episodes) + 1, batch)
    counts = [len(set(episodes[begin:end])) for begin, end in pairwise(edges)]
    return float(np.mean(counts)) if counts else None


def _epoch_start() -> Row:
    """What starting an epoch over a million episodes takes, in a process of its own."""
    from infra.bench.synthetic import write_index

    say(f"an index of {MILLION:,} episodes")
    with tempfile.TemporaryDirectory() as directory:
        write_index(Path(directory), MILLION, 1003)
        command = [sys.executable, "-m", "infra.bench.synthetic", directory]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    name = f"start of an epoch of {figures['windows']:,} windows in {figures['episodes']:,} episodes"
    return Row(64, name, seconds=figures["seconds"], megabytes=figures["anon_bytes"] / 1e6)


def _collect(args: Args) -> list[Path]:
    import ray

    from collectors.config import CollectConfig
    from collectors.envs.base import EnvConfig
    from collectors.fleet import collect
    from collectors.policies import NoiseConfig

    paths = []
    for size in SIZES:
        path = args.find_home().data / f"bench-walker-walk-{size}-{EPISODES}"
        config = CollectConfig(
            env=EnvConfig(name="dmc/walker-walk", size=size), policy=NoiseConfig(), episodes=EPISODES, steps=STEPS
        )
        with progress(f"collect {size} px", EPISODES, "episodes") as bar:
            collect(config, path, workers=args.threads, on_progress=lambda line, bar=bar: bar.update(line.episodes))
        paths.append(path)
    ray.shutdown()  # its processes would take turns too
    return paths
