"""`lewm shards ls|verify|preview|stats|index|merge|import|push`: look at datasets, make, join and copy them."""

import os
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infra.cli.common import Common, Verb, absolute, location
from infra.console import Bar, print_json, print_table, progress, say
from shards.codec import Encoding
from shards.episode import Observability

Directory = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
Location = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY|URI")]


@dataclass(frozen=True, kw_only=True, slots=True)
class LsArgs(Common):
    """List the datasets below the home's data directory, or the shards of one dataset."""

    directory: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DIRECTORY|URI]")] = None
    """A dataset directory, or the s3:// or gs:// URI of one."""


def ls(args: LsArgs) -> None:
    from shards.dataset import Dataset

    if args.directory is None:
        home = args.find_home()
        found = [Dataset.open(path.parent) for path in sorted(home.data.glob("*/manifest.json"))]
        rows = [_dataset_row(dataset) for dataset in found]
        if args.json:
            print_json(rows)
        elif not rows:
            print(f"no dataset below {home.data}; `lewm collect` makes one", file=sys.stderr)
        else:
            print_table(f"Datasets below {home.data}", tuple(rows[0]), [_text(row) for row in rows])
        return
    manifest = Dataset.open(location(args.directory)).manifest
    rows = [asdict(shard) for shard in manifest.shards]
    if args.json:
        print_json(rows)
    else:
        shown = [{key: value for key, value in row.items() if "sha256" not in key} for row in rows]
        print_table(str(args.directory), tuple(shown[0]), [_text(row) for row in shown])


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyArgs:
    """Check every byte of a dataset: tars, indexes and manifest. Exit code 1 when anything is wrong."""

    directory: Location
    """Dataset directory, or the s3:// or gs:// URI of one."""
    threads: int = len(os.sched_getaffinity(0))
    """Files checked at once."""
    json: bool = False
    """Print one JSON value on standard output."""


def verify(args: VerifyArgs) -> int:
    from shards.verify import verify

    with _Progress("verify", "bytes") as bar:
        report = verify(location(args.directory), args.threads, bar.update)
    if args.json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        for problem in report.problems:
            print(problem)
        count = len(report.problems)
        print(f"{args.directory}: {'every byte checks' if report.ok else f'{count} problem(s)'}")
    return 0 if report.ok else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsArgs:
    """Show what a dataset holds: provenance, splits, state columns with their statistics, returns."""

    directory: Location
    """Dataset directory, or the s3:// or gs:// URI of one."""
    json: bool = False
    """Print one JSON value on standard output."""


def stats(args: StatsArgs) -> None:
    from shards.dataset import Dataset

    dataset = Dataset.open(location(args.directory))
    returns = []
    with progress("stats", len(dataset), "episodes") as bar:
        for index in range(len(dataset)):
            returns.append(float(dataset.reward(index).sum()))
            bar.update(index + 1)
    statistics = dataset.manifest.statistics
    columns = [
        {
            "column": column.name,
            "unit": column.unit,
            "kind": column.kind,
            "observable": column.observable,
            "mean": float(statistics.state_mean[index]),
            "std": float(statistics.state_std[index]),
        }
        for index, column in enumerate(dataset.columns)
    ]
    summary = _dataset_row(dataset) | {
        "dt": dataset.manifest.common.dt,
        "action_repeat": dataset.manifest.common.action_repeat,
        "camera": dataset.manifest.common.camera,
        "versions": dict(dataset.manifest.common.versions),
        "return_min": min(returns),
        "return_mean": sum(returns) / len(returns),
        "return_max": max(returns),
    }
    if args.json:
        print_json(summary | {"columns": columns, "digest": dataset.digest})
        return
    print_table(dataset.location, ("what", "value"), [(key, str(value)) for key, value in summary.items()])
    if columns:
        print_table("Physical state", tuple(columns[0]), [_text(column) for column in columns])


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewArgs:
    """Draw episodes: a contact sheet of frames with reward and state curves (PNG), and a clip (GIF or WebP)."""

    directory: Location
    """Dataset directory, or the s3:// or gs:// URI of one."""
    episodes: tuple[int, ...] = ()
    """Numbers of the episodes, in order of their keys; unless given, --count of them, evenly spread."""
    count: int = 4
    """How many episodes to draw when none is named."""
    frames: int = 10
    """Frames of each episode on the contact sheet."""
    clip: Literal["gif", "webp", "none"] = "gif"
    """Format of the clip."""
    out: Path | None = None
    """Directory for preview.png and preview.gif; the working directory unless given."""
    json: bool = False
    """Print one JSON value on standard output."""


def preview(args: PreviewArgs) -> None:
    from infra.preview import choose, contact_sheet, save_clip
    from shards.dataset import Dataset

    dataset = Dataset.open(location(args.directory))
    numbers = choose(dataset, args.episodes, args.count)
    out = absolute(args.out or ".")
    out.mkdir(parents=True, exist_ok=True)
    episodes = [dataset.read_episode(number) for number in numbers]
    written = [out / "preview.png"]
    contact_sheet(numbers, episodes, args.frames).save(written[0])
    if args.clip != "none":
        written.append(out / f"preview.{args.clip}")
        save_clip(numbers, episodes, written[1])
    if args.json:
        print_json({"episodes": [dataset.keys[number] for number in numbers], "files": written})
    else:
        print("\n".join(str(path) for path in written))


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexArgs:
    """Make foreign WebDataset tars a dataset: index every tar in DIRECTORY/shards that has no index, in place.

    One sample is one episode: <key>.00000.jpg (or .npy) and so on, <key>.action.npy, and optionally <key>.reward.npy
    and <key>.state.npy.
    """

    directory: Directory
    """Dataset directory; the tars are in its directory `shards`."""
    environment: str
    """Name of the environment, such as lab/pusher."""
    dt: float
    """Seconds a step."""
    action_repeat: int = 1
    """Control steps a step."""
    camera: str = "unknown"
    """Name of the camera."""
    observable: Observability = "hidden"
    """From how much of the view the state columns can be read."""
    json: bool = False
    """Print one JSON value on standard output."""


def index(args: IndexArgs) -> None:
    from shards.foreign import ForeignConfig, index_tar, unindexed
    from shards.manifest import assemble

    directory = absolute(args.directory)
    tars = unindexed(directory)
    if not tars and not (directory / "shards").is_dir():
        raise ValueError(f"{directory} has no directory `shards` with tars in it; make it, and move or link them there")
    config = ForeignConfig(args.environment, args.dt, args.action_repeat, args.camera, args.observable)
    with progress("index", len(tars), "tars") as bar:
        for done, tar in enumerate(tars):
            index_tar(tar, config, lambda read, done=done, tar=tar: bar.update(done, f"{tar.name}: {read} episodes"))
            bar.update(done + 1)
    assemble(directory)
    _show(directory, args.json)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeArgs:
    """Join datasets into a new one without rewriting a tar: by hard links, or copies on another file system."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY...")]
    """Datasets to join, two or more."""
    out: Path
    """Directory of the new dataset."""
    json: bool = False
    """Print one JSON value on standard output."""


def merge(args: MergeArgs) -> None:
    from shards.merge import merge

    out = absolute(args.out)
    with _Progress("merge", "shards") as bar:
        merge([absolute(source) for source in args.sources], out, bar.update)
    _show(out, args.json)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportArgs:
    """Import a LeWM dataset in HDF5, as stable-worldmodel writes it. Run the same command again to go on."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The HDF5 file: columns pixels, action and others, one row a step, with ep_len and ep_offset."""
    out: Path
    """Directory of the new dataset."""
    environment: str
    """Name of the environment, such as lewm/pusht."""
    dt: float
    """Seconds a step."""
    action_repeat: int = 1
    """Control steps a step."""
    camera: str = "unknown"
    """Name of the camera."""
    states: tuple[str, ...] = ("state", "proprio")
    """Columns to take as physical state."""
    observable: Observability = "hidden"
    """From how much of the view the state columns can be read."""
    encoding: Encoding = "jpeg"
    """jpeg (quality 95) or raw."""
    shard_episodes: int = 50
    """Episodes a shard: what a killed import repeats at most."""
    json: bool = False
    """Print one JSON value on standard output."""


def import_(args: ImportArgs) -> None:
    from shards.hdf5 import ImportConfig, import_hdf5

    out = absolute(args.out)
    config = ImportConfig(
        environment=args.environment,
        dt=args.dt,
        action_repeat=args.action_repeat,
        camera=args.camera,
        states=args.states,
        observable=args.observable,
        encoding=args.encoding,
        shard_episodes=args.shard_episodes,
    )
    try:
        with _Progress("import", "episodes") as bar:
            import_hdf5(absolute(args.source), out, config, bar.update)
    except KeyboardInterrupt:
        say(f"what is complete is in {out}; the same command goes on from there")
        raise
    _show(out, args.json)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushArgs:
    """Copy a dataset to a bucket, the manifest last. Run the same command again to go on."""

    directory: Directory
    """Dataset directory."""
    uri: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URI")]
    """s3:// or gs:// URI of the copy; endpoint and credentials are those of the environment (AWS_...)."""
    json: bool = False
    """Print one JSON value on standard output."""


def push(args: PushArgs) -> None:
    from shards.push import push

    with _Progress("push", "files") as bar:
        sent = push(absolute(args.directory), args.uri, bar.update)
    if args.json:
        print_json({"uri": args.uri, "bytes_sent": sent})
    else:
        print(f"{args.uri}: {sent / 1e6:.1f} MB sent")


VERBS = {
    "ls": Verb(LsArgs, ls),
    "verify": Verb(VerifyArgs, verify),
    "preview": Verb(PreviewArgs, preview),
    "stats": Verb(StatsArgs, stats),
    "index": Verb(IndexArgs, index),
    "merge": Verb(MergeArgs, merge),
    "import": Verb(ImportArgs, import_),
    "push": Verb(PushArgs, push),
}


class _Progress(ExitStack):
    """A progress bar whose total becomes known with its first update."""

    def __init__(self, name: str, unit: str) -> None:
        super().__init__()
        self._name, self._unit = name, unit
        self._bar: Bar | None = None

    def update(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self.enter_context(progress(self._name, total, self._unit))
        self._bar.update(done)


def _show(directory: Path, as_json: bool) -> None:
    """A dataset that was just made."""
    from shards.dataset import Dataset

    row = _dataset_row(Dataset.open(directory))
    if as_json:
        print_json(row)
    else:
        print_table(str(directory), ("what", "value"), [(key, str(value)) for key, value in row.items()])


def _dataset_row(dataset: Any) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "name": dataset.location.rstrip("/").rsplit("/", 1)[-1],
        "environment": dataset.environment,
        "episodes": manifest.n_episodes,
        "frames": manifest.n_frames,
        "size": dataset.size,
        "train/validation/test": "/".join(str(count) for count in manifest.splits.values()),
        "MB": round(sum(shard.tar_bytes + shard.index_bytes for shard in manifest.shards) / 1e6, 1),
        "digest": dataset.digest[:12],
    }


def _text(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
