"""`lewm collect ENV`: record episodes of a task into shards."""

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from collectors.config import CollectConfig, load_collect_config
from collectors.envs.base import EnvConfig, Quality, VariationConfig
from collectors.fleet import ActorConfig, CollectionFailed, collect
from collectors.policies import AnyPolicy, ExpertConfig, PolicyName, named_policy
from infra.cli import parse_args
from infra.cli.common import Common, absolute
from infra.cli.errors import Failed
from infra.cli.signals import Terminated
from infra.cluster import prepare_driver
from infra.console import collection_note, print_json, print_table, progress, say
from shards.codec import Encoding

_SAME_SECONDS = 1.0
"""A second signal this soon is the first once more: who stops a job tells all its processes, and these each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Record episodes of a task into shards with Ray actors. Run the same command again to go on."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = ""
    """Environment, such as dmc/cartpole-swingup."""
    list: bool = False
    """Show every environment with its action size and cameras."""
    episodes: int = 100
    """Episodes that the dataset is to hold."""
    policy: PolicyName | None = None
    """Behaviour: uniform random (unless given), coloured noise, the task's expert, planning on the simulator, or noise
    mixed with noisy experts."""
    noise: float | None = None
    """Coloured noise added to the expert's actions, none unless given; goes with the expert alone."""
    random_start: float = 0.0
    """Share of episodes that begin in a random configuration."""
    size: int = 64
    """Side of the frames in pixels."""
    steps: int | None = None
    """Decisions an episode; the environment's own length unless given."""
    action_repeat: int | None = None
    """Control steps a decision; 2 for dm_control and 1 for Meta-World unless given."""
    camera: str | None = None
    """Camera; the environment's default unless given."""
    quality: Quality = "fast"
    """fast: no shadows, multisampling or reflections. full: the simulator's own look."""
    variation: VariationConfig = field(default_factory=VariationConfig)
    """What differs between episodes besides the task's own start; nothing unless given."""
    encoding: Encoding = "jpeg"
    """jpeg (quality 95) or raw."""
    seed: int = 0
    """Seed of the dataset."""
    workers: int = len(os.sched_getaffinity(0))
    """Ray actors."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """What an actor takes, and when it is replaced."""
    per_actor: bool = False
    """Show what each actor does, and at the end what it did."""
    from_config: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """collection.json of another dataset, to repeat it, but for what else is given here."""
    address: str | None = None
    """Ray cluster; a local Ray is started unless given."""
    out: Path | None = None
    """Dataset directory; <home>/data/<task>-<seed> unless given."""


def parse(program: str, words: list[str]) -> Args:
    """A file given by --from decides the defaults, so it is read before everything else."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--from", dest="source", type=Path)
    try:
        known, _ = first.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if known.source is None:
        return parse_args(Args, program, words)
    config = load_collect_config(absolute(known.source))
    default = Args(
        env=config.env.name,
        episodes=config.episodes,
        random_start=config.random_start,
        size=config.env.size,
        steps=config.steps,
        action_repeat=config.env.action_repeat,
        camera=config.env.camera,
        quality=config.env.quality,
        variation=config.env.variation,
        encoding=config.encoding,
        seed=config.seed,
    )
    return parse_args(Args, program, words, default=default)


def run(args: Args) -> None:
    if args.list:
        _print_environments(args.json)
        return
    config = _config(args)
    prepare_driver(args.address)
    name = config.env.name.split("/")[-1]
    out = absolute(args.out) if args.out else args.find_home().data / f"{name}-{config.seed}"
    with progress("collect", config.episodes, "episodes") as bar, _interruptible():
        try:
            summary = collect(
                config,
                out,
                workers=args.workers,
                address=args.address,
                actor=args.actor,
                on_progress=lambda line: bar.update(line.episodes, collection_note(line, args.per_actor)),
            )
        except CollectionFailed as error:
            raise Failed(str(error)) from error
        except KeyboardInterrupt:
            say(f"what is complete is in {out}; the same command goes on from there")
            raise
    if args.json:
        print_json(summary)
        return
    rows = [
        ("episodes", f"{summary.episodes:,} ({summary.existing:,} were there)"),
        ("frames recorded", f"{summary.frames:,}"),
        ("frames/s", f"{summary.frames_per_second:,.0f}"),
        ("MB written", f"{summary.bytes / 1e6:.1f}"),
        ("episodes tried again", f"{summary.retries:,}"),
        ("renderers replaced", f"{summary.renderers:,}"),
        ("actors lost and replaced", f"{summary.lost:,}"),
        ("digest", summary.digest[:12]),
    ]
    if summary.skipped:
        rows.insert(1, ("episodes that failed", ", ".join(map(str, summary.skipped))))
    print_table(summary.path, ("what", "value"), rows)
    if args.per_actor:
        lines = [(str(each.worker), each.host, f"{each.episodes:,}", f"{each.frames:,}") for each in summary.actors]
        print_table("Actors", ("actor", "host", "episodes", "frames"), lines)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM interrupt alike. The first says what happens now, and what a second would do."""
    first: float | None = None

    def interrupt(number: int, frame: object) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            os.write(2, b"\nstopping: what is complete is committed first; once more, and it is dropped\n")
        elif time.monotonic() - first < _SAME_SECONDS:
            return
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _policy(args: Args) -> AnyPolicy:
    """What --policy says, else the file of --from, with --noise."""
    if args.policy is None and args.from_config is not None:
        policy = load_collect_config(absolute(args.from_config)).policy
    else:
        policy = named_policy(args.policy or "random")
    if args.noise is None:
        return policy
    if not isinstance(policy, ExpertConfig):
        raise ValueError(f"--noise {args.noise:g} goes with --policy expert, not with {policy.kind}")
    return replace(policy, noise=args.noise)


def _config(args: Args) -> CollectConfig:
    if not args.env:
        raise ValueError("name an environment, such as dmc/cartpole-swingup; `lewm collect --list` shows all")
    return CollectConfig(
        env=EnvConfig(
            name=args.env,
            size=args.size,
            camera=args.camera,
            quality=args.quality,
            action_repeat=args.action_repeat,
            variation=args.variation,
        ),
        policy=_policy(args),
        episodes=args.episodes,
        seed=args.seed,
        steps=args.steps,
        random_start=args.random_start,
        encoding=args.encoding,
    )


def _print_environments(as_json: bool) -> None:
    from collectors.envs import list_environments

    entries = list_environments()
    if as_json:
        print_json(entries)
        return
    rows = [(entry.name, str(entry.action_size), ", ".join(entry.cameras)) for entry in entries]
    print_table("Environments", ("name", "action size", "cameras"), rows)
