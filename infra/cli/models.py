"""`lewm models ls|show|promote`: the registry."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from infra.cli.common import Common, Verb
from infra.console import print_json, print_table

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
    print_table(f"{found.name} version {found.version}", ("what", "value"), _pairs(asdict(found)))


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


VERBS = {"ls": Verb(LsArgs, ls), "show": Verb(ShowArgs, show), "promote": Verb(PromoteArgs, promote)}


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, ", ".join(value) if isinstance(value, tuple) else str(value)) for key, value in values.items()]
