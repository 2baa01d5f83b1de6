"""`lewm bench train`: steps/s of training, on frames on the device and through the loader, against plain PyTorch.

All contenders train the same model on batches of the same size and take turns in one process. The baseline is what one
would write first: the module in eager PyTorch, under bf16 autocast on a GPU and in float32 on a CPU, with SDPA, fused
AdamW and gradient clipping, and its frames on the device. Ours is the step that `lewm train` takes, with all that it
checks (`trainers.learner`). MFU is the counted FLOPs of a step over a large matrix product's, measured here, in
this precision; `roofline` is the time that FLOPs or memory traffic need at least over the time that a step took.

On a GPU an RTX 3090's steps/s are estimated: at the same share of its roofline, 71 TFLOP/s and 936 GB/s. The traffic is
not measured but bounded: what the backward pass needs is at least written and read once (the upper end of the range),
and is written and read about twice where kernels are not fused (the lower end).

Without `--data` 40 episodes of walker-walk are collected into the home. `--seconds 60` gives thousands of sustained
steps on a GPU.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.bench.common import Figure, take_turns, write_csv
from infra.cli.common import Common, Device, absolute, pick_device
from infra.console import print_json, print_table, progress, say

if TYPE_CHECKING:
    import torch

    from shards.dataset import Dataset
    from trainers.config import TrainConfig

BASELINE, RESIDENT, LOADER = "plain PyTorch, frames on the device", "lewm, frames on the device", "lewm, loader"
EPISODES, STEPS = 40, 250
WARM = 3
RTX_3090 = (71e12, 936e9)
"""FLOP/s in bf16 with float32 sums, and bytes/s, of its data sheet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Measure training against plain PyTorch, on frames that lie on the device and through the loader."""

    preset: str = "tiny"
    """Model preset with its training configuration."""
    data: Path | None = None
    """Dataset directory; walker-walk at the preset's size is collected unless given."""
    device: Device = "auto"
    batch: int = 0
    """Windows a batch; the preset's unless given."""
    threads: int = 0
    """Torch threads; those that torch picks unless given."""
    seconds: float = 5.0
    """How long a contender runs in a turn."""
    turns: int = 3
    """Turns of every contender."""
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        for name, least in (("turns", 1), ("batch", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, not {self.seconds}")


@dataclass(frozen=True, slots=True)
class Row:
    """One contender. `ratio` is to the baseline; `wait_share` the share of time that it waited for data; `memory_gb`
    the peak on a GPU, and on a CPU that of the whole process; `steps` those that were measured."""

    preset: str
    contender: str
    batch: int
    precision: str
    steps_per_second: float
    low: float
    high: float
    samples_per_second: float
    ratio: float
    mfu: float
    roofline: float
    wait_share: float
    memory_gb: float
    steps: int
    tier: str = ""


@dataclass(slots=True)
class _Counted:
    """What a contender's turns came to, besides rates."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    memory_gb: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a step needs, and what this device reaches: FLOPs, least and usual bytes; FLOP/s and bytes/s."""

    flops: float
    least_bytes: float
    usual_bytes: float
    flops_per_second: float
    bytes_per_second: float

    def bound(self, usual: bool, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds that a step takes at least."""
        moved = self.usual_bytes if usual else self.least_bytes
        return max(self.flops / flops_per_second, moved / bytes_per_second)

    def roofline(self, steps_per_second: float, usual: bool = False) -> float:
        """Share of this device's bound that so many steps/s are."""
        return steps_per_second * self.bound(usual, self.flops_per_second, self.bytes_per_second)

    def rtx_3090(self, steps_per_second: float) -> tuple[float, float]:
        """Steps/s of an RTX 3090, estimated at this device's share of the roofline: the lower and the upper end."""
        ends = [self.roofline(steps_per_second, usual) / self.bound(usual, *RTX_3090) for usual in (True, False)]
        return min(ends), max(ends)


def run(args: Args) -> None:
    import torch

    from trainers.config import train_preset

    device = torch.device(pick_device(args.device))
    if args.threads:
        torch.set_num_threads(args.threads)
    config = train_preset(args.preset, "")
    data = absolute(args.data) if args.data else _collect(args, config.model.image_size)
    precision = "bfloat16" if device.type == "cuda" else "float32"
    config = replace(config, data=str(data), batch_size=args.batch or config.batch_size, precision=precision)
    rows, work = measure(args, config, device)
    estimate = work.rtx_3090(rows[-1].steps_per_second) if device.type == "cuda" else None
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json({"rows": rows, "work": work, "rtx_3090_steps_per_second_estimate": estimate})
        return
    table = [
        (row.contender, f"{row.steps_per_second:.2f}", f"{row.low:.2f}-{row.high:.2f}",
         f"{row.samples_per_second:,.0f}", f"{row.ratio:.2f}x", f"{row.mfu:.0%}", f"{row.roofline:.0%}",
         f"{row.wait_share:.1%}", f"{row.memory_gb:.1f}", f"{row.steps:,}")
        for row in rows
    ]  # fmt: skip
    header = ("what", "steps/s", "range", "samples/s", "ratio", "MFU", "roofline", "wait", "GB", "steps")
    print_table(f"Training {args.preset}, batch {config.batch_size}, {precision}", header, table)
    say(f"matrix products reach {work.flops_per_second / 1e12:.3g} TFLOP/s here; a step takes {work.flops:.3g} FLOPs")
    if estimate is not None:
        say(f"an RTX 3090 at the same share: {estimate[0]:.0f} to {estimate[1]:.0f} steps/s (an estimate)")


def measure(args: Args, config: "TrainConfig", device: "torch.device") -> tuple[list[Row], Work]:
    """The rows, baseline first, and what a step needs."""
    from pipelines.loader import Loader, LoaderConfig
    from shards.dataset import Dataset
    from trainers.learner import Learner
    from trainers.loop import build_model
    from trainers.rundir import window_spec

    dataset = Dataset.open(config.data)
    loader = Loader(
        dataset,
        window_spec(config.model),
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        config=LoaderConfig(threads=config.decode_threads, prefetch=config.prefetch, tier=config.tier),
    )
    first = next(loader)
    frames, action = first.frames.clone(), first.action.clone()
    learners = [Learner(config, build_model(config, dataset, device)) for _ in range(2)]
    counted = {name: _Counted() for name in (BASELINE, RESIDENT, LOADER)}

    def resident(step: int) -> None:
        learners[0].step(frames, action, step)
        if (step + 1) % config.log_every == 0:
            learners[0].check_finite()

    def streamed(step: int) -> None:
        batch = next(loader)
        learners[1].step(batch.frames, batch.action, step)
        if (step + 1) % config.log_every == 0:
            learners[1].check_finite()

    steps = {BASELINE: _baseline(config, dataset, device, frames, action), RESIDENT: resident, LOADER: streamed}
    with loader, progress("measure", args.turns * len(steps), "turns") as bar:
        done = 0

        def turn(name: str) -> Callable[[], float]:
            def call() -> float:
                nonlocal done
                waited = loader.metrics().wait_seconds
                rate = _turn(steps[name], counted[name], device, args.seconds)
                counted[name].waited += loader.metrics().wait_seconds - waited
                done += 1
                bar.update(done, f"{name}: {rate:.2f} steps/s")
                return rate

            return call

        figures = take_turns({name: turn(name) for name in steps}, args.turns)
        tier = loader.metrics().tier
    work = _work(config, learners[0].model, device)
    return [_row(args, config, work, figures, counted, name, tier * (name == LOADER)) for name in steps], work


def _row(
    args: Args,
    config: "TrainConfig",
    work: Work,
    figures: dict[str, Figure],
    counted: dict[str, _Counted],
    name: str,
    tier: str,
) -> Row:
    figure, count = figures[name], counted[name]
    return Row(
        preset=args.preset,
        contender=name,
        batch=config.batch_size,
        precision=config.precision,
        steps_per_second=figure.rate,
        low=figure.low,
        high=figure.high,
        samples_per_second=figure.rate * config.batch_size,
        ratio=figure.over(figures[BASELINE]),
        mfu=figure.rate * work.flops / work.flops_per_second,
        roofline=work.roofline(figure.rate),
        wait_share=count.waited / count.seconds,
        memory_gb=count.memory_gb,
        steps=count.steps,
        tier=tier,
    )


def _turn(step: Callable[[int], None], counted: _Counted, device: "torch.device", seconds: float) -> float:
    """Steps/s over `seconds`, after what a first turn compiles and a later one has forgotten in the caches."""
    import torch

    from trainers.throughput import synchronize

    for _ in range(WARM):
        step(counted.steps)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    block = 25 if device.type == "cuda" else 1  # steps between two looks at the clock, which wait for the device
    taken, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        for _ in range(block):
            step(counted.steps + taken)
            taken += 1
        synchronize(device)
    counted.steps += taken
    counted.seconds += elapsed
    counted.memory_gb = (
        torch.cuda.max_memory_allocated(device) / 1e9
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    )
    return taken / elapsed


def _baseline(
    config: "TrainConfig", dataset: "Dataset", device: "torch.device", frames: Any, action: Any
) -> Callable[[int], None]:
    """The same training in plain eager PyTorch."""
    import torch

    from models.objective import directions
    from trainers.loop import build_model
    from trainers.rundir import window_spec

    model = build_model(config, dataset, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay, fused=True
    )
    index = torch.as_tensor(window_spec(config.model).observation_index, device=device)
    shape = (config.model.regularizer, config.model.latent_dim)

    def step(number: int) -> None:
        drawn = directions(*shape, seed=config.seed, step=number, device=device, dtype=torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            losses = model(frames[:, index], action, drawn)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()

    return step


def _work(config: "TrainConfig", model: Any, device: "torch.device") -> Work:
    import torch

    from models.footprint import training_bytes
    from trainers.throughput import matmul_ceiling, step_flops

    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    kept = training_bytes(config.model, model.action_size, batch_size=config.batch_size, dtype=dtype)
    return Work(
        flops=step_flops(model, config.batch_size),
        least_bytes=2 * kept,
        usual_bytes=4 * kept,
        flops_per_second=matmul_ceiling(device, dtype, seconds=1.0),
        bytes_per_second=_copy_bandwidth(device),
    )


def _copy_bandwidth(device: "torch.device", seconds: float = 0.5) -> float:
    """Bytes/s read and written by copying a large tensor: the best of the repeats that fit into `seconds`."""
    import torch

    from trainers.throughput import synchronize

    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def _collect(args: Args, size: int) -> Path:
    import ray

    from collectors.config import CollectConfig
    from collectors.envs.base import EnvConfig
    from collectors.fleet import collect
    from collectors.policies import NoiseConfig

    path = args.find_home().data / f"bench-walker-walk-{size}"
    env = EnvConfig(name="dmc/walker-walk", size=size)
    config = CollectConfig(env=env, policy=NoiseConfig(), episodes=EPISODES, steps=STEPS)
    with progress(f"collect {size} px", EPISODES, "episodes") as bar:
        collect(config, path, workers=2, on_progress=lambda line: bar.update(line.episodes))
    ray.shutdown()  # its processes would take turns too
    return path
