"""`lewm doctor`: what works on this machine, and how to mend what does not."""

from dataclasses import dataclass

from infra.cli.common import Common
from infra.console import print_json, print_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Check this machine and say how to mend it. Exit code 1 if anything fails."""


def run(args: Args) -> int:
    from infra.doctor import examine

    rows = examine(args.find_home())
    failed = [row for row in rows if row.status == "fail"]
    if args.json:
        print_json({"ok": not failed, "rows": rows})
    else:
        shown = [(row.name, row.status, row.found) for row in rows]
        print_table("This machine", ("what", "status", "found"), shown, justify="left")
        for row in rows:
            if row.fix:
                print(f"{row.name}: {row.fix}")
    return 1 if failed else 0
