"""Ray Train around `fit`: process group, restarts, elastic size, a live view. All computing is in `trainers.loop`.

Checkpoints are written by rank 0 straight into the run directory, and every rank finds the latest there, so a run
trained by Ray and one trained by `fit` alone have one layout and resume each other. Several nodes need storage that all
of them see. Progress travels through a small actor, because Ray's reports reach the driver only at the end.

A lost worker or node costs the steps since the latest checkpoint and a restart of all workers (seconds); so does a
change of size, which Ray Train looks for every `RESIZE_SECONDS`. Every size sees the same global batches.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.checkpoint import LocalSink
from trainers.config import TrainConfig
from trainers.learner import Diverged
from trainers.loop import FitSummary, Progress, fit
from trainers.tracker import NullTracker, Tracker

MakeTracker = Callable[[], Tracker]
RESIZE_SECONDS = 60.0


class TrainingFailed(RuntimeError):
    """The Ray Train job ended with an error; the message is the first line of its cause."""


class TrainingDiverged(TrainingFailed):
    """The loss stopped being finite, which it would again."""


class _Board:
    """Holds the newest progress line until the driver asks for it, and at the end the summary, or why there is none."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.end: FitSummary | str | None = None

    def push(self, progress: Progress) -> None:
        self.progress = progress

    def finish(self, end: FitSummary | str) -> None:
        self.end = end

    def read(self) -> tuple[Progress | None, FitSummary | str | None]:
        return self.progress, self.end


def train_on_ray(
    config: TrainConfig,
    run: Path,
    *,
    make_tracker: MakeTracker,
    max_failures: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> FitSummary:
    """Train `config` in `run` as a Ray Train job on the cluster that this process is connected to.

    `make_tracker` is called on rank 0 and must be picklable. A failed worker restarts the job from the latest
    checkpoint, up to `max_failures` times (-1: without end). Raises `TrainingFailed`; a run that diverges is not
    started again, because it would do so again.
    """
    use_gpu = config.device == "cuda" or (config.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
    if len([node for node in ray.nodes() if node["Alive"]]) > 1 and os.environ.get("LEWM_SHARED_HOME") != "1":
        raise ValueError(
            f"{run} is a path of this machine and the cluster has several nodes: put --home on storage that all see, "
            f"and say so with LEWM_SHARED_HOME=1"
        )
    # On this node, whose loss ends the run anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()
    fewest, most = config.worker_range
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"config": config, "run": run, "make_tracker": make_tracker, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu=use_gpu,
            resources_per_worker=_resources(most, use_gpu),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(run.parent),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, on_progress, stop), daemon=True)
    watcher.start()
    try:
        with _interruptible():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(_cause(error)) from error
    finally:
        stop.set()
        watcher.join()
    end = ray.get(board.read.remote())[1]
    if isinstance(end, str):
        raise TrainingDiverged(end)
    assert end is not None
    return end


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as KeyboardInterrupt. Ray Train puts a handler of its own in place, which ends the run and then raises
    SystemExit, and leaves it there when the run is over."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _train_worker(loop: dict[str, Any]) -> None:
    """What each rank runs."""
    config, run, board = loop["config"], loop["run"], loop["board"]
    rank = ray.train.get_context().get_world_rank()
    tracker: Tracker = loop["make_tracker"]() if rank == 0 else NullTracker()
    try:
        summary = fit(
            config,
            sink=LocalSink(run, config.keep_checkpoints),
            tracker=tracker,
            device=torch.device("cpu") if config.device == "cpu" else get_device(),
            rank=rank,
            on_progress=lambda progress: board.push.remote(progress),
            after_checkpoint=lambda step, metrics: ray.train.report({"step": step, **metrics}),
        )
    except Diverged as error:
        # All ranks raise it together. Left to Ray, it would count as a failure that a restart may cure.
        summary = f"Diverged: {error}; {_last_checkpoint(run)}"
    finally:
        tracker.close()
    if rank == 0:
        ray.get(board.finish.remote(summary))


def _last_checkpoint(run: Path) -> str:
    latest = LocalSink(run, 1).latest()
    return f"{latest} is from before it" if latest else "no checkpoint was due before it"


def _watch(board: Any, on_progress: Callable[[Progress], None] | None, stop: threading.Event) -> None:
    """Hand new progress lines to `on_progress` until told to stop."""
    shown = -1
    while not stop.wait(0.5):
        progress, _ = ray.get(board.read.remote())
        if progress is not None and progress.step != shown and on_progress is not None:
            shown = progress.step
            on_progress(progress)


def _resources(workers: int, use_gpu: bool) -> dict[str, float]:
    """What a worker asks for: one GPU if they are used, and as many processors as `workers` of them can
    have on the nodes that are there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(resources.get("CPU", 0)) for resources in nodes]
    each = next((c for c in range(max(cores, default=1), 1, -1) if sum(n // c for n in cores) >= workers), 1)
    return {"CPU": float(each), "GPU": 1.0} if use_gpu else {"CPU": float(each)}


def _cause(error: BaseException) -> str:
    """The innermost exception's type and first line, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else getattr(error, "controller_failure", None)
    inner = inner or getattr(error, "cause", None)
    if isinstance(inner, BaseException):
        return _cause(inner)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
