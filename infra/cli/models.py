"""`lewm models ls|show|register|promote|load|import|export`: the registry, and the authors' published weights."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infra.cli.common import Common, Verb, absolute, location
from infra.console import print_json, print_table, say
from infra.tracking import without_password

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True, slots=True)
class LsArgs(Common):
    """List registered models and their versions, with aliases and validation scores."""


def ls(args: LsArgs) -> None:
    from infra import registry

    uri = args.find_home().tracking_uri_to_read()
    found = [version for name in registry.model_names(uri) for version in registry.versions(name, uri)]
    if args.json:
        print_json(found)
        return
    print_table(
        "Registered models",
        ("model", "version", "aliases", "run", "preset", "dataset", "validation R2"),
        [
            (
                each.name,
                each.version,
                ", ".join(each.aliases),
                each.run,
                each.preset,
                each.dataset_digest[:12],
                "" if each.score is None else f"{each.score:.4f}",
            )
            for each in found
        ],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowArgs(Common):
    """Show one version of a registered model."""

    name: Name
    """Model name, such as lewm-cartpole-swingup."""
    version: str = "champion"
    """Version number or alias."""


def show(args: ShowArgs) -> None:
    from infra import registry

    found = registry.describe(args.name, args.version, args.find_home().tracking_uri_to_read())
    if args.json:
        print_json(found)
        return
    values = {key: value for key, value in asdict(found).items() if key != "card"}
    print_table(f"{found.name} version {found.version}", ("what", "value"), _pairs(values), justify="left")
    if found.card:
        print(found.card)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisterArgs(Common):
    """Register a run's newest checkpoint as a new version of its task's model. Training does so when it is done."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""


def register(args: RegisterArgs) -> None:
    from infra import workflows
    from infra.home import find_run

    home = args.find_home()
    run = find_run(args.run, home)
    tracker = workflows.record_of(run, home)
    try:
        result = workflows.register_model(run, tracker)
    finally:
        tracker.close()
    if args.json:
        print_json(result)
    else:
        champion = "the champion" if result.moved else f"not the champion: {result.reason}"
        print(f"{result.name} version {result.version}, {champion}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteArgs(Common):
    """Move the alias `champion` to a version that beats the present one on the same dataset. Exit code 1 if not."""

    name: Name
    """Model name, such as lewm-cartpole-swingup."""
    version: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VERSION")]
    """Version number."""
    force: bool = False
    """Move it whatever the scores."""


def promote(args: PromoteArgs) -> int:
    from infra import registry

    uri = args.find_home().tracking_uri_to_read()
    result = registry.promote(args.name, args.version, uri, force=args.force)
    if args.json:
        print_json(result)
    else:
        moved = "is now the champion" if result.moved else "does not become the champion"
        print(f"{result.name} version {result.version} {moved}: {result.reason}")
    return 0 if result.moved else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadArgs(Common):
    """Load a registered model with plain MLflow, run it, and say how to use it; --to puts its files somewhere."""

    name: Name
    """Model name, such as lewm-cartpole-swingup."""
    version: str = "champion"
    """Version number or alias."""
    to: Path | None = None
    """Directory that the version's files are to be in: program, weights, configuration, model card."""


def load(args: LoadArgs) -> None:
    from infra import registry

    to = absolute(args.to) if args.to else None
    tracking_uri = args.find_home().tracking_uri_to_read()
    found = registry.load(args.name, args.version, tracking_uri, to)
    if args.json:
        print_json(found)
        return
    rows = [*found.inputs.items(), *((f"-> {name}", shape) for name, shape in found.outputs.items())]
    print_table(f"{found.uri}, {found.parameters / 1e6:.2f}M parameters", ("what", "shape"), rows, justify="left")
    tracking = "" if to else f'mlflow.set_tracking_uri("{without_password(tracking_uri)}")\n'
    print(f'import mlflow\n{tracking}model = mlflow.pytorch.load_model("{found.uri}")')


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportArgs(Common):
    """Make a run of published LeWM weights, strictly and without unpickling code."""

    config: Path
    """The published config.json."""
    weights: Path
    """The published weights.pt."""
    name: str
    """Name of the run."""
    frame_skip: int = 5
    """Actions in a block, which the published files do not say."""
    data: str = ""
    """Dataset whose action statistics the model takes; without one it takes standardised actions."""


def import_weights(args: ImportArgs) -> None:
    from infra.official import import_run

    data = location(args.data) if args.data else ""
    run = import_run(
        args.find_home().runs / args.name,
        config=absolute(args.config),
        weights=absolute(args.weights),
        frame_skip=args.frame_skip,
        data=data,
    )
    if not data:
        say("no --data: the model takes actions that are standardised already")
    if args.json:
        print_json({"run": str(run.path)})
    else:
        print(run.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportArgs(Common):
    """Write a run's weights as the authors' code reads them: weights.pt and config.json."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, run name, or models:/NAME@alias."""
    to: Path
    """Directory to write."""
    transformers: Literal[4, 5] = 4
    """Version of transformers whose names the encoder gets."""


def export_weights(args: ExportArgs) -> None:
    from infra.home import find_run
    from infra.official import export_run

    to = absolute(args.to)
    export_run(find_run(args.run, args.find_home()), to, transformers=args.transformers)
    if args.json:
        print_json({"weights": str(to / "weights.pt"), "config": str(to / "config.json")})
    else:
        print(to)


VERBS = {
    "ls": Verb(LsArgs, ls),
    "show": Verb(ShowArgs, show),
    "register": Verb(RegisterArgs, register),
    "promote": Verb(PromoteArgs, promote),
    "load": Verb(LoadArgs, load),
    "import": Verb(ImportArgs, import_weights),
    "export": Verb(ExportArgs, export_weights),
}


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, ", ".join(value) if isinstance(value, tuple) else str(value)) for key, value in values.items()]
