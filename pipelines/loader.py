"""The streaming loader: batches of windows on the device, in an order that is a pure function and resumes in O(1).

An epoch is a permutation of the split's windows (`pipelines.order`). Global batch s takes positions [sG, (s+1)G) of it;
the windows left over at the end are dropped, others in each epoch. Rank r of W takes items [rG//W, (r+1)G//W) of each
global batch. So every rank has the same number of steps, and what a global batch holds depends on neither ranks nor
threads. Where a run stands is two numbers, epoch and step, which count batches delivered, not batches prefetched.

Threads fill `prefetch` batches ahead (`pipelines.prefetch`); there are no processes. Memory is prefetch + 2 batches,
whatever the dataset. On a CPU the threads share the cores with training. Frames are decoded when they are needed, or
come from a tier that holds them decoded (`pipelines.tiers`), with the same batches.

    with Loader(Dataset.open(path), WindowSpec(history=1, stack=3), batch_size=256, seed=0) as loader:
        for batch in loader: ...
"""

import hashlib
import logging
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch

from pipelines.batch import Batch, BatchShape
from pipelines.episodes import EpisodeTable
from pipelines.fill import Filler
from pipelines.lookahead import Lookahead
from pipelines.order import WindowOrder
from pipelines.prefetch import Prefetcher
from pipelines.source import Filled, WindowSource
from pipelines.staging import Slot
from pipelines.tiers import Tier, open_source
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
from shards.split import Split

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """How batches are made; nothing here changes which windows they hold, but for damaged ones."""

    threads: int = 2
    """Decode threads a rank."""
    prefetch: int = 2
    """Batches filled ahead."""
    damaged: Literal["raise", "skip"] = "raise"
    """What a damaged episode does: stop with an error, or have its damaged windows replaced, counted and logged."""
    max_damaged: int = 10
    """With `skip`: more damaged episodes than this are an error."""
    tier: Tier = "stream"
    """Where frames come from: decoded when needed, mapped from a cache of decoded frames, resident on the device (which
    may be the CPU), or the best of these that fits (auto)."""

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("prefetch", 1), ("max_damaged", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"loader {name} is {getattr(self, name)}; use at least {least}")
        if self.damaged not in ("raise", "skip"):
            raise ValueError(f"loader damaged is {self.damaged!r}; use 'raise' or 'skip'")
        if self.tier not in get_args(Tier):
            raise ValueError(f"loader tier is {self.tier!r}; use {', '.join(map(repr, get_args(Tier)))}")


@dataclass(frozen=True, slots=True)
class LoaderMetrics:
    """This rank's totals since the loader was made, over delivered batches.

    `tier` that the windows come from, "" before the first; `frames` delivered, of which `cache_hits` were there
    decoded; `bytes` of members read from shards; `seconds` from the first request to the latest batch, of which the
    consumer waited `wait_seconds` (decoding ahead for a tier is in neither); `skipped` windows that were damaged and
    replaced, of `damaged_episodes`; `dropped` windows that the finished epochs left over (of the whole split, not only
    of this rank).
    """

    tier: str
    windows: int
    frames: int
    cache_hits: int
    bytes: int
    seconds: float
    wait_seconds: float
    skipped: int
    damaged_episodes: int
    dropped: int

    @property
    def wait_share(self) -> float:
        """Share of the time that the consumer's thread waited for a batch. On CUDA that is the host's wait: the stream
        may wait longer for the copy, which the host does not see (`lewm bench train` measures the step with it)."""
        return self.wait_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def windows_per_second(self) -> float:
        return self.windows / self.seconds if self.seconds > 0 else 0.0

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


class Loader:
    """An endless iterator of `Batch` over epochs, for rank `rank` of `world_size`.

    A batch's tensors stay valid until the next but one is asked for: after batches 0 and 1, asking for batch 2 allows
    batch 0 to be overwritten, also where a view of it is still held. Clone what must live longer. On CUDA the tensors
    belong to the stream that is current when batches are asked for; use them on it, or order other streams after it.

    `datasets` are joined in the order given. `split` None takes all episodes. `batch_size` is that of the global batch.
    `locality` L > 0 keeps the windows of about L shards together, for data that is fetched by the shard; the order then
    also depends on which episodes share a shard.
    ValueError for arguments that do not fit the data; DamagedEpisodeError (a ValueError) from `next` where a frame
    cannot be read, unless `config.damaged` is "skip". Not for use by several threads at once. `close` ends its threads;
    so does leaving it as a context manager, or dropping the last reference to it.
    """

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        spec: WindowSpec,
        *,
        split: Split | None = "train",
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        config: LoaderConfig | None = None,
        with_state: bool = False,
        locality: int = 0,
    ) -> None:
        self.config = config if config is not None else LoaderConfig()
        self.batch_size, self._seed, self._device = batch_size, seed, torch.device(device)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}: ranks count from 0")
        if batch_size < world_size:
            raise ValueError(f"a global batch of {batch_size} leaves ranks of {world_size} empty; use a larger one")
        if locality < 0:
            raise ValueError(f"locality {locality}: use a number of shards, or 0 to shuffle over all")
        self._table = table = EpisodeTable(datasets, split)
        shards = table.shards() if locality else None
        self._order = WindowOrder(
            table.lengths, spec, digest=table.digest, split=str(split), seed=seed, locality=locality, shards=shards
        )
        if self._order.total < batch_size:
            raise ValueError(
                f"the {split or 'whole'} split has {self._order.total} windows in {len(table.lengths)} episodes, fewer "
                f"than a batch of {batch_size}: collect more or longer episodes, or use a smaller batch"
            )
        self._identity: dict[str, Any] = {
            "digest": table.digest,
            "spec": asdict(spec),
            "seed": seed,
            "split": split,
            "batch_size": batch_size,
            "locality": locality,
            "layout": None if shards is None else hashlib.sha256(shards.tobytes()).hexdigest(),
        }
        self._first, self._end = (r * batch_size // world_size for r in (rank, rank + 1))
        state_size = table.state_size if with_state else 0
        self._shape = BatchShape(spec, self._end - self._first, table.size, table.action_size, state_size)
        self._source: WindowSource | None = None
        self._delivered = 0
        self._lookahead = Lookahead(table, self._order) if locality else None
        self._prefetcher: Prefetcher[Slot, Filled] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._held: deque[Slot] = deque()
        self._closed = False
        self._failure: ValueError | None = None
        self._windows = self._bytes = self._cache_hits = self._skipped = self._dropped = 0
        self._tier = ""
        self._wait_seconds = 0.0
        self._first_request = self._latest_batch = 0.0
        self._damaged_episodes: set[str] = set()

    @property
    def total(self) -> int:
        """Windows of the split."""
        return self._order.total

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, the same on every rank."""
        return self._order.total // self.batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """Windows left over by the last, partial global batch."""
        return self._order.total % self.batch_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise RuntimeError("the loader is closed")
        if self._failure is not None:
            raise self._failure
        source = self._source or self._open_source()
        began = time.perf_counter()
        if self._first_request == 0:
            self._first_request = began
        if self._prefetcher is None:
            self._prefetcher = self._start(source)
        if len(self._held) == 2:
            oldest = self._held.popleft()
            oldest.release()
            self._prefetcher.give_back(oldest)
        number, slot, reports = self._prefetcher.take()
        frames, action, state = slot.receive()
        self._held.append(slot)
        self._latest_batch = time.perf_counter()
        self._wait_seconds += self._latest_batch - began
        self._count(reports)
        epoch, step = divmod(number, self.steps_per_epoch)
        if self._lookahead is not None:
            self._lookahead.reach(epoch, step * self.batch_size)
        episode, start = (torch.from_numpy(ids.copy()) for ids in (slot.episode, slot.start))
        return Batch(frames, action, state, episode, start, epoch, step)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, as JSON types: what the order depends on, and {epoch, step}.

        The former are {digest, spec, seed, split, batch_size, locality, layout}; `layout` is a hash of which episodes
        share a shard, None without locality, where it does not matter. `epoch` and `step` are those of the next batch
        to be delivered. It fits any rank of any world size.
        """
        epoch, step = divmod(self._delivered, self.steps_per_epoch)
        return {**self._identity, "spec": dict(self._identity["spec"]), "epoch": epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`: the next batch is the one that would have come next. O(1), at any time.

        ValueError, which shows the difference, for a state of another dataset, window, seed, split or batch size.
        """
        if missing := {*self._identity, "epoch", "step"} - state.keys():
            raise ValueError(f"not a loader's state: {', '.join(sorted(missing))} missing")
        if differences := [
            f"{name} is {state[name]!r} there and {value!r} here"
            for name, value in self._identity.items()
            if state[name] != value
        ]:
            raise ValueError(f"the state is of another run and cannot be resumed from: {'; '.join(differences)}")
        epoch, step = state["epoch"], state["step"]
        if not (type(epoch) is int and type(step) is int and epoch >= 0 and 0 <= step < self.steps_per_epoch):
            raise ValueError(f"epoch {epoch!r}, step {step!r} do not exist: epochs have {self.steps_per_epoch} steps")
        self._stop()
        self._failure = None
        self._delivered = epoch * self.steps_per_epoch + step

    def metrics(self) -> LoaderMetrics:
        """Totals so far; also after `close`."""
        return LoaderMetrics(
            tier=self._tier,
            windows=self._windows,
            frames=self._windows * self._shape.frames[1],
            cache_hits=self._cache_hits,
            bytes=self._bytes,
            seconds=self._latest_batch - self._first_request,
            wait_seconds=self._wait_seconds,
            skipped=self._skipped,
            damaged_episodes=len(self._damaged_episodes),
            dropped=self._dropped,
        )

    def close(self) -> None:
        """End the threads, after the rows they are at, and close the shards. Batches already delivered stay valid."""
        self._closed = True
        self._stop()
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_source(self) -> WindowSource:
        self._source = open_source(
            self.config.tier,
            self._table,
            self._order.spec,
            self._device,
            with_state=self._shape.state_size > 0,
            threads=self.config.threads,
        )
        self._tier = self._source.tier
        return self._source

    def _start(self, source: WindowSource) -> Prefetcher[Slot, Filled]:
        filler = Filler(
            self._table,
            self._order,
            source,
            batch_size=self.batch_size,
            first=self._first,
            end=self._end,
            skip=self.config.damaged == "skip",
        )
        prefetcher = Prefetcher(
            source.slots(self._shape, self._device, self.config.prefetch + 2),
            filler.fill,
            lambda slot: slot.send(),
            first=self._delivered,
            rows=self._shape.rows,
            threads=self.config.threads,
        )
        self._finalizer = weakref.finalize(self, prefetcher.stop)
        return prefetcher

    def _stop(self) -> None:
        if self._lookahead is not None:
            self._lookahead.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._prefetcher is not None:
            self._prefetcher.stop()
            self._prefetcher.join()
            self._prefetcher = None
        self._held.clear()

    def _count(self, reports: Sequence[Filled]) -> None:
        """Count a delivered batch; ValueError when it brought one damaged episode too many."""
        damaged = [error for report in reports for _, error in report.damaged]
        for error in damaged:
            if error.episode not in self._damaged_episodes:
                self._damaged_episodes.add(error.episode)
                _log.warning("skipping damaged windows: %s", error)
            if len(self._damaged_episodes) > self.config.max_damaged:
                self._failure = ValueError(
                    f"{len(self._damaged_episodes)} damaged episodes, over the limit of {self.config.max_damaged} "
                    f"(max_damaged); the latest: {error}"
                )
                raise self._failure from error
        self._windows += self._shape.rows
        self._bytes += sum(report.bytes for report in reports)
        self._cache_hits += sum(report.cached for report in reports)
        self._skipped += len(damaged)
        self._delivered += 1
        if self._delivered % self.steps_per_epoch == 0:
            self._dropped += self.dropped_per_epoch
