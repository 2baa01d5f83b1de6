"""`lewm collect ENV`: record episodes of a task into shards."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from collectors.config import CollectConfig
from collectors.envs.base import EnvConfig, Quality
from collectors.fleet import CollectionFailed, Progress, collect
from collectors.policies import named_policy
from infra.cli.common import Common, absolute
from infra.cli.errors import Failed
from infra.console import print_json, print_table, progress, say
from shards.codec import Encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Record episodes of a task into shards with Ray actors. Run the same command again to go on."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = ""
    """Environment, such as dmc/cartpole-swingup."""
    list: bool = False
    """Show every environment with its action size and cameras."""
    episodes: int = 100
    """Episodes that the dataset is to hold."""
    policy: Literal["random", "noise", "expert", "mixed"] = "random"
    """Behaviour: uniform random, coloured noise, the scripted expert, or gentle noise mixed with noisy experts."""
    random_start: float = 0.0
    """Share of episodes that begin in a random configuration."""
    size: int = 64
    """Side of the frames in pixels."""
    steps: int | None = None
    """Decisions an episode; the environment's own length unless given."""
    action_repeat: int | None = None
    """Control steps a decision; 2 for dm_control unless given."""
    camera: str | None = None
    """Camera; the environment's default unless given."""
    quality: Quality = "fast"
    """fast: no shadows, multisampling or reflections. full: the simulator's own look."""
    encoding: Encoding = "jpeg"
    """jpeg (quality 95) or raw."""
    seed: int = 0
    """Seed of the dataset."""
    workers: int = len(os.sched_getaffinity(0))
    """Ray actors, one core each."""
    address: str | None = None
    """Ray cluster; a local Ray is started unless given."""
    out: Path | None = None
    """Dataset directory; <home>/data/<task>-<seed> unless given."""


def run(args: Args) -> None:
    if args.list:
        _print_environments(args.json)
        return
    if not args.env:
        raise ValueError("name an environment, such as dmc/cartpole-swingup; `lewm collect --list` shows all")
    config = CollectConfig(
        env=EnvConfig(
            name=args.env,
            size=args.size,
            camera=args.camera,
            quality=args.quality,
            action_repeat=args.action_repeat,
        ),
        policy=named_policy(args.policy),
        episodes=args.episodes,
        seed=args.seed,
        steps=args.steps,
        random_start=args.random_start,
        encoding=args.encoding,
    )
    out = absolute(args.out) if args.out else args.find_home().data / f"{args.env.split('/')[-1]}-{args.seed}"
    with progress("collect", config.episodes, "episodes") as bar:
        try:
            summary = collect(
                config,
                out,
                workers=args.workers,
                address=args.address,
                on_progress=lambda line: bar.update(line.episodes, collection_note(line)),
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
        ("digest", summary.digest[:12]),
    ]
    print_table(summary.path, ("what", "value"), rows)


def collection_note(line: Progress) -> str:
    """Rate and volume, in one line."""
    return f"{line.frames_per_second:,.0f} frames/s  {line.bytes / 1e6:.0f} MB"


def _print_environments(as_json: bool) -> None:
    from collectors.envs import list_environments

    entries = list_environments()
    if as_json:
        print_json(entries)
        return
    rows = [(entry.name, str(entry.action_size), ", ".join(entry.cameras)) for entry in entries]
    print_table("Environments", ("name", "action size", "cameras"), rows)
