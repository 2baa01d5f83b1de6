"""`lewm bench collect`: collection against the simulators' own render calls and against its floor, which is to render.

Every contender is a process held to one core with one rendering thread, alive throughout; they take turns, one at work
at a time. `own calls` steps through the episodes that `record` records and keeps the frames of dm_control's
`physics.render` or Meta-World's `env.render` in memory: it writes nothing. `record` is what an actor of `lewm collect`
does, into shards. `record, full` has the same picture quality as the own calls, so that the ratio of `record` is not
mistaken for faster code alone. `render only` times the calls of the renderer and nothing else. `N processes` are N at
`record`, one core each, at once. `lewm collect, N actors` is the command itself on the same machine, once, with Ray and
the start of its actors in its time. Takes about a quarter of an hour with the defaults.
"""

import math
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from infra.bench.common import take_turns, write_csv
from infra.console import print_json, print_table, say

OURS, FULL, RENDER, OWN = "record", "record, full", "render only", "own calls"
_COMMAND_SECONDS = 30.0
"""How long the whole command is given to record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Measure collection against the simulators' own render calls, and its scaling."""

    envs: tuple[str, ...] = ("dmc/walker-walk", "metaworld/pick-place-v3")
    """Environments."""
    sizes: tuple[int, ...] = (64, 224)
    """Sides of the frames in pixels."""
    steps: int = 100
    """Decisions an episode."""
    episodes: int = 4
    """Episodes a turn of what is fast; the own calls and full quality record one."""
    turns: int = 5
    """Turns of every contender."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes of the scaling measurement, one core each."""
    json: bool = False
    """Print one JSON value on standard output."""
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        if not 1 <= self.workers <= cores:
            raise ValueError(f"workers must be between 1 and the {cores} cores at hand, not {self.workers}")
        for name in ("steps", "episodes", "turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: frames/s, and how many times the `against` that is, turn by turn."""

    env: str
    size: int
    contender: str
    frames_per_second: float
    low: float
    high: float
    turns: int
    against: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is told to do."""

    contender: str
    env: str
    size: int
    steps: int
    episodes: int


def run(args: Args) -> None:
    rows: list[Row] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        cores = sorted(os.sched_getaffinity(0))[: args.workers]
        workers = [stack.enter_context(Worker(core, Path(scratch))) for core in cores]
        for env in args.envs:
            for size in args.sizes:
                say(f"{env} at {size} px")
                # In one process dm_control would draw into whatever context was current last, which is then ours.
                with Worker(cores[0], Path(scratch)) as own:
                    rows += measure(args, workers, own, env, size)
    # Only now, because it starts a Ray beside this process, which would disturb what is measured.
    for row in [row for row in rows if row.contender == scaled(args.workers)]:
        say(f"lewm collect {row.env} at {row.size} px")
        rows.append(command(args, row))
    rows.sort(key=lambda row: (args.envs.index(row.env), args.sizes.index(row.size)))
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json(rows)
        return
    table = []
    for row in rows:
        rate, between = f"{row.frames_per_second:,.0f}", f"{row.low:,.0f}-{row.high:,.0f}"
        table.append((row.env, str(row.size), row.contender, rate, between, f"{row.ratio:.2f}x {row.against}"))
    print_table("Collection", ("environment", "px", "what", "frames/s", "range", "ratio"), table)


def measure(args: Args, workers: "list[Worker]", own: "Worker", env: str, size: int) -> list[Row]:
    """The rows of one environment at one size; `own` is the process of the simulator's own calls."""

    def job(contender: str) -> Job:
        slow = contender in (OWN, FULL)
        return Job(contender, env, size, args.steps, 1 if slow else args.episodes)

    def alone(contender: str) -> Callable[[], float]:
        return lambda: (own if contender == OWN else workers[0]).do(job(contender))

    contenders = {name: alone(name) for name in (OWN, OURS, FULL, RENDER)}
    contenders[scaled(len(workers))] = lambda: together(workers, job(OURS))
    for worker in workers:  # loads simulators and shaders
        worker.do(Job(OURS, env, size, 2, 1))
    for name in (FULL, RENDER):
        workers[0].do(Job(name, env, size, 2, 1))
    own.do(Job(OWN, env, size, 2, 1))
    figures = take_turns(contenders, args.turns)
    against = {name: OURS if name == scaled(len(workers)) else OWN for name in figures}
    return [
        Row(
            env,
            size,
            name,
            each.rate,
            each.low,
            each.high,
            each.turns,
            against[name],
            each.over(figures[against[name]]),
        )
        for name, each in figures.items()
    ]


def scaled(workers: int) -> str:
    """The name of the contender of so many processes."""
    return f"{workers} process{'es' * (workers > 1)}"


def command(args: Args, processes: Row) -> Row:
    """What `lewm collect` reaches where bare processes reached so much, with as many actors, its start included."""
    from collectors.config import CollectConfig
    from collectors.envs import EnvConfig
    from collectors.fleet import collect

    episodes = math.ceil(_COMMAND_SECONDS * processes.frames_per_second / (args.steps + 1))
    config = CollectConfig(env=EnvConfig(name=processes.env, size=processes.size), steps=args.steps, episodes=episodes)
    with tempfile.TemporaryDirectory() as out:
        rate = collect(config, Path(out), workers=args.workers).frames_per_second
    name = f"lewm collect, {args.workers} actor{'s' * (args.workers > 1)}"
    ratio = rate / processes.frames_per_second
    return Row(processes.env, processes.size, name, rate, rate, rate, 1, processes.contender, ratio)


def together(workers: "list[Worker]", job: Job) -> float:
    """Frames/s of all workers at the same job at once, until the last has ended."""
    began = time.perf_counter()
    for worker in workers:
        worker.send(job)
    for worker in workers:
        worker.receive()
    return len(workers) * job.episodes * (job.steps + 1) / (time.perf_counter() - began)


class Worker:
    """A process held to one core."""

    def __init__(self, core: int, scratch: Path) -> None:
        from collectors.gl import choose_backend, gl_environment

        os.environ.update(gl_environment(choose_backend()) | {"OMP_NUM_THREADS": "1"})  # for the process to inherit
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, core, scratch / str(core)), daemon=True)
        self._process.start()
        theirs.close()

    def do(self, job: Job) -> float:
        """Frames/s of a job."""
        self.send(job)
        return self.receive()

    def send(self, job: Job) -> None:
        self._pipe.send(job)

    def receive(self) -> float:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a process of the benchmark died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe: Connection, core: int, scratch: Path) -> None:
    os.sched_setaffinity(0, {core})
    recorder = _Recorder(scratch)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(recorder.rate(job))
        except Exception as error:
            pipe.send(f"{job.contender} of {job.env}: {type(error).__name__}: {error}")


class _Recorder:
    """Does jobs in its process, with one environment for each contender, task and size."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._envs, self._shards, self._number = scratch, {}, 0, 0

    def rate(self, job: Job) -> float:
        from collectors.config import CollectConfig
        from collectors.envs import EnvConfig, make_env

        quality = "full" if job.contender == FULL else "fast"
        env_config = EnvConfig(name=job.env, size=job.size, quality=quality)
        config = CollectConfig(env=env_config, steps=job.steps)
        place = (job.contender, job.env, job.size)
        if place not in self._envs:
            env = make_env(env_config)
            self._envs[place] = (env, _own_call(env, job) if job.contender == OWN else None)
        env, own = self._envs[place]
        first, self._number = self._number, self._number + job.episodes
        numbers = range(first, first + job.episodes)
        if job.contender in (OURS, FULL):
            return self._collect(env, config, numbers)
        seconds = sum(_play(env, own or env.render, config, number, own is None) for number in numbers)
        return job.episodes * (job.steps + 1) / seconds

    def _collect(self, env: Any, config: Any, numbers: range) -> float:
        from collectors.rollout import record_episode
        from shards.writer import ShardWriter

        began, frames = time.perf_counter(), 0
        self._shards += 1
        with ShardWriter(self._scratch, f"bench-{self._shards:05d}") as writer:
            for number in numbers:
                episode = record_episode(env, config, number)
                writer.write(episode)
                frames += len(episode.frames)
        return frames / (time.perf_counter() - began)


def _play(env: Any, render: Callable[[], Any], config: Any, number: int, render_only: bool) -> float:
    """Seconds of an episode, its frames kept in memory; of the render calls alone if asked."""
    import numpy as np

    from collectors.policies import make_policy
    from collectors.rollout import begin, episode_seed

    seed, frames, rendering = episode_seed(config.seed, number), [], 0.0
    rng = np.random.default_rng([seed, 0])
    policy = make_policy(config.policy, env.spec)
    began = time.perf_counter()
    begin(env, seed, random_start=False)
    policy.reset(env, rng)
    for step in range(config.steps + 1):
        called = time.perf_counter()
        frames.append(render())
        rendering += time.perf_counter() - called
        if step < config.steps:
            env.step(policy.act(env))
    return rendering if render_only else time.perf_counter() - began


def _own_call(env: Any, job: Job) -> Callable[[], Any]:
    """The simulator's own render call, on an environment whose model no renderer of ours has touched."""
    if job.env.startswith("dmc/"):
        del env._physics._make_rendering_contexts  # the environment keeps dm_control from rendering by itself
        return lambda: env._physics.render(job.size, job.size, camera_id=0)
    own_env = env.task
    renderer = own_env.mujoco_renderer
    renderer.width = renderer.height = job.size
    renderer.camera_id = own_env.model.camera("corner2").id
    own_env.model.vis.global_.offwidth = own_env.model.vis.global_.offheight = job.size
    return lambda: renderer.render("rgb_array")  # what env.render calls
