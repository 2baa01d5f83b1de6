"""`lewm train`: train a model as a Ray Train job."""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from infra.cli import parse_args
from infra.cli.common import Common, absolute, location, pick_device
from infra.cli.errors import Failed
from infra.cli.signals import sigterm_interrupts
from infra.console import print_json, print_table, progress, say, training_note
from infra.home import Home, find_run
from trainers.config import TrainConfig, load_train_config, train_preset

if TYPE_CHECKING:
    from infra.registry import Promotion
    from infra.workflows import Trained


def _preset(name: str) -> TrainConfig:
    """A preset whose dataset the command line has still to give."""
    return replace(train_preset(name, ""), data=tyro.MISSING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Train a model on a dataset. A run of the same name that was interrupted goes on where it stood."""

    name: str = ""
    """Name of the run; made from task, preset and time unless given."""
    resume: str = ""
    """Run to go on with, by name or directory: its configuration is taken, but for what else is given here."""
    address: str | None = None
    """Ray cluster to train on; a local Ray is started unless given."""
    retries: int | None = None
    """Times that a failed job is restarted from its latest checkpoint: 0 unless given, 100 with a range of workers,
    whose comings and goings count."""
    from_config: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Configuration of another run (its config.json) to start from, instead of a preset."""
    register: bool = True
    """Register the trained model as a new version of lewm-<task>."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: _preset("tiny"))


def parse(program: str, words: list[str]) -> Args:
    """The preset or the file decides the defaults, so they are read before everything else."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset")
    first.add_argument("--from", dest="source", type=Path)
    first.add_argument("--resume", default="")
    first.add_argument("--home", type=Path)
    try:
        known, _ = first.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if known.preset and (known.source or known.resume):
        other = f"--from {known.source}" if known.source else f"--resume {known.resume}"
        raise ValueError(f"give --preset {known.preset} or {other}, not both: either decides the whole configuration")
    if known.resume:
        if known.source is not None:
            raise ValueError(f"give --resume {known.resume} or --from {known.source}, not both")
        base = find_run(known.resume, Home.find(known.home)).config
    else:
        base = (
            load_train_config(absolute(known.source)) if known.source is not None else _preset(known.preset or "tiny")
        )
    args: Args = parse_args(Args, program, words, default=Args(config=base))
    return replace(args, config=replace(args.config, data=location(args.config.data)))


def run(args: Args) -> None:
    from collectors.cluster import ensure_ray
    from infra import workflows
    from infra.cluster import prepare_driver
    from shards.dataset import Dataset
    from trainers.ray_train import TrainingDiverged, TrainingFailed

    config = replace(args.config, device=pick_device(args.config.device))
    environment = Dataset.open(config.data).environment
    home, name = args.find_home(), args.name or workflows.default_run_name(environment, config.preset)
    if args.resume:
        run = find_run(args.resume, home)
        if args.name not in ("", run.path.name):
            raise ValueError(f"--resume {args.resume} goes on with {run.path.name}: leave --name {args.name} out")
        home, name = Home(run.path.parent.parent), run.path.name
    elastic = config.worker_range[0] < config.worker_range[1]
    retries = args.retries if args.retries is not None else 100 * elastic
    prepare_driver(args.address)
    ensure_ray(args.address)
    say(f"training {name} for {config.stop_step:,} steps of {config.batch_size} windows")
    with progress("train", config.stop_step, "steps") as bar, sigterm_interrupts():
        try:
            trained = workflows.train(
                config,
                home,
                name=name,
                tracking_uri=home.tracking_uri,
                max_failures=retries,
                on_progress=lambda line: bar.update(line.step, training_note(line.metrics)),
            )
        except ConnectionError as error:
            raise Failed(str(error)) from error  # it may pass, so that a job tries again
        except TrainingDiverged as error:
            # Another attempt would diverge again: as bad input, it is not for a job to try.
            raise ValueError(f"run {name}: {error}") from error
        except TrainingFailed as error:
            raise Failed(f"run {name}: {error}; what was saved is in {home.runs / name}") from error
        except KeyboardInterrupt:
            say(f"what was saved is in {home.runs / name}; `lewm train --resume {name}` goes on from there")
            raise
    model = _register(trained, home) if args.register else None
    summary = trained.summary
    if args.json:
        print_json({"run": str(trained.run.path), "run_id": trained.run_id, "summary": summary, "model": model})
        return
    rows = [
        ("steps", f"{summary.steps:,}"),
        ("steps/s", f"{summary.steps_per_second:.1f}"),
        ("samples/s", f"{summary.samples_per_second:,.0f}"),
        ("waiting for data", f"{summary.data_wait_share:.1%}"),
        *((name, f"{value:.4g}") for name, value in summary.metrics.items() if name.startswith("val/")),
    ]
    if model is not None:
        rows.append(("model", f"{model.name} version {model.version}{', the champion' if model.moved else ''}"))
    print_table(f"Run {name}", ("what", "value"), rows)
    say(f"next: lewm probe {name}")


def _register(trained: "Trained", home: Home) -> "Promotion":
    """What was trained as a version of its task's model."""
    from mlflow.exceptions import MlflowException

    from infra import workflows

    try:
        tracker = workflows.record_of(trained.run, home)
        try:
            return workflows.register_model(trained.run, tracker, again=False)
        finally:
            tracker.close()
    except (MlflowException, OSError) as error:
        name = trained.run.path.name
        why = " ".join(str(error).split())
        raise Failed(f"run {name} is trained, but not registered: {why}; `lewm models register {name}`") from error
