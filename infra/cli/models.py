"""`lewm models ls|show|promote`: the registry."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from infra.cli.common import Common
from infra.console import print_json, print_table

Name = Annotated[str, tyro.conf.Positional]


class _Ls:
    """list registered models and their versions"""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Args(Common):
        """List registered models and their versions, with aliases and validation scores."""

    @staticmethod
    def run(args: "_Ls.Args") -> None:
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


class _Show:
    """show one version of a model"""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Args(Common):
        """Show one version of a registered model."""

        name: Name
        """Model name, such as lewm-cartpole-swingup."""
        version: str = "champion"
        """Version number or alias."""

    @staticmethod
    def run(args: "_Show.Args") -> None:
        from infra import registry

        found = registry.describe(args.name, args.version, args.find_home().tracking_uri_to_read())
        if args.json:
            print_json(found)
            return
        print_table(f"{found.name} version {found.version}", ("what", "value"), _pairs(asdict(found)))


class _Promote:
    """move the alias champion to a better version"""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Args(Common):
        """Move the alias `champion` to a version that beats the present one on the same dataset. Exit code 1 if not."""

        name: Name
        """Model name, such as lewm-cartpole-swingup."""
        version: Annotated[str, tyro.conf.Positional]
        """Version number."""
        force: bool = False
        """Move it whatever the scores."""

    @staticmethod
    def run(args: "_Promote.Args") -> int:
        from infra import registry

        uri = args.find_home().tracking_uri_to_read()
        result = registry.promote(args.name, args.version, uri, force=args.force)
        if args.json:
            print_json(result)
        else:
            moved = "is now the champion" if result.moved else "does not become the champion"
            print(f"{result.name} version {result.version} {moved}: {result.reason}")
        return 0 if result.moved else 1


VERBS: dict[str, Any] = {"ls": _Ls, "show": _Show, "promote": _Promote}


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, ", ".join(value) if isinstance(value, tuple) else str(value)) for key, value in values.items()]
