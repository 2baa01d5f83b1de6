"""`lewm cluster up|down|status`: a Ray cluster of this machine, or of several."""

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from infra.cli.common import Verb
from infra.cli.errors import Failed
from infra.cluster import (
    DASHBOARD_PORT,
    PORT,
    ClusterError,
    LocalNode,
    dashboard_of,
    describe,
    local_nodes,
    nodes_of,
    stop,
    up,
)
from infra.console import print_json, print_table, say


@dataclass(frozen=True, kw_only=True, slots=True)
class UpArgs:
    """Start a Ray cluster on this machine, or join this machine to one."""

    head: bool = False
    """Start the head of a new cluster; what `up` does unless --join is given."""
    join: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = ""
    """HOST:PORT of the head to join, as `lewm cluster up` printed it there."""
    host: str = ""
    """Address of this machine for the others. Loopback unless given: a cluster of several machines needs it."""
    port: int = PORT
    """Port of the head."""
    dashboard_port: int = DASHBOARD_PORT
    """Port of the head's dashboard, to which jobs are submitted."""
    cpus: int | None = None
    """Cores that this node offers; all unless given."""
    gpus: int | None = None
    """GPUs that this node offers; all unless given."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def run_up(args: UpArgs) -> None:
    if args.head and args.join:
        raise ValueError(f"give --head or --join {args.join}, not both")
    for name in ("port", "dashboard_port"):
        if not 1024 <= getattr(args, name) <= 65535:
            raise ValueError(f"--{name.replace('_', '-')} must be from 1024 to 65535, not {getattr(args, name)}")
    try:
        node = up(
            join=args.join,
            host=args.host,
            port=args.port,
            dashboard_port=args.dashboard_port,
            cpus=args.cpus,
            gpus=args.gpus,
        )
    except ClusterError as error:
        raise Failed(str(error)) from error
    if args.json:
        print_json(describe(node))
    elif node.head:
        print_table("Cluster", ("what", "address"), _addresses(node), justify="left")
    else:
        print(f"{node.host} has joined {node.address}")
    if node.head and node.host.startswith("127."):
        say("this machine alone can reach it; for several, start it with --host and this machine's address")


def _addresses(node: LocalNode) -> list[tuple[str, str]]:
    return [
        ("dashboard, and --address of lewm submit and lewm jobs", node.dashboard),
        ("--address of lewm train and lewm collect, and --join of other nodes", node.address),
        ("token of the cluster, for other machines", "~/.ray/auth_token"),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class DownArgs:
    """Stop every node that `up` started on this machine. Jobs that run there end."""

    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def run_down(args: DownArgs) -> None:
    nodes = local_nodes()
    for node in reversed(nodes):
        try:
            stop(node)
        except ClusterError as error:
            raise Failed(str(error)) from error
    if args.json:
        print_json({"stopped": [describe(node) for node in nodes]})
    else:
        print(f"stopped {len(nodes)} node{'s' * (len(nodes) != 1)}" if nodes else "no cluster runs here")


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusArgs:
    """Show a cluster's nodes with what they offer, and what runs on this machine."""

    address: str | None = None
    """Dashboard, such as http://HOST:8265; the cluster of this machine unless given."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def run_status(args: StatusArgs) -> None:
    local = local_nodes()
    head = next((node for node in local if node.head), None)
    if args.address is None and head is None:
        joined = f"this machine is a node of {local[0].address}; ask there, or give --address" if local else ""
        if args.json:
            print_json({"dashboard": None, "nodes": [], "local": [describe(node) for node in local]})
        else:
            print(joined or "no cluster runs here: `lewm cluster up` starts one")
        return
    dashboard = dashboard_of(args.address or (head.dashboard if head else None))
    nodes = nodes_of(dashboard)
    if args.json:
        found = [asdict(node) for node in nodes]
        print_json({"dashboard": dashboard, "nodes": found, "local": [describe(node) for node in local]})
        return
    rows = [
        (
            node.ip,
            "head" if node.head else "node",
            "alive" if node.alive else "dead",
            f"{node.cpus:g}",
            f"{node.gpus:g}",
            f"{node.memory_gb:.1f}",
        )
        for node in nodes
    ]
    print_table(f"Cluster {dashboard}", ("address", "what", "state", "cores", "GPUs", "memory (GB)"), rows)
    if head is not None and dashboard == head.dashboard:
        print_table("Addresses", ("what", "address"), _addresses(head), justify="left")


VERBS = {
    "up": Verb(UpArgs, run_up),
    "down": Verb(DownArgs, run_down),
    "status": Verb(StatusArgs, run_status),
}
