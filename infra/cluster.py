"""Ray nodes on this machine: started, found again and stopped. A cluster of several machines is one `up` on each.

A node is `ray start --block` in a session of its own. What identifies it is a mark in its environment, which all its
processes inherit, so `down` ends all of them and nobody else's (`ray stop` would end every Ray on the machine). What is
known of a node is a file in a directory of this user alone, beside Ray's own files and logs.

Whoever can reach a Ray cluster can run code on it. So nodes listen on loopback unless told otherwise, and every one of
them asks for the token in ~/.ray/auth_token (or $RAY_AUTH_TOKEN_PATH, or $RAY_AUTH_TOKEN), which all machines share.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.ports import LOOPBACK, any_free, is_free
from infra.rayclient import check, check_port, direct, is_loopback, token, use_token
from shards.atomic import write_atomically

PORT, DASHBOARD_PORT = 6379, 8265
MARK = "LEWM_CLUSTER_NODE"
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, it makes a Ray process on Linux keep 127.0.0.1 as its address too."""
_START_SECONDS, _STOP_SECONDS = 120.0, 20.0


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node that `up` started on this machine. `address` is what other nodes and drivers connect to."""

    mark: str
    pid: int
    head: bool
    host: str
    address: str
    dashboard: str


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as the cluster sees it."""

    ip: str
    head: bool
    alive: bool
    cpus: float
    gpus: float
    memory_gb: float


class ClusterError(RuntimeError):
    """A node did not start, or a cluster refused; the message is one line."""


def up(
    *,
    join: str = "",
    host: str = "",
    port: int = PORT,
    dashboard_port: int = DASHBOARD_PORT,
    cpus: int | None = None,
    gpus: int | None = None,
) -> LocalNode:
    """Start the head of a cluster, or with `join` (HOST:PORT of a head) a further node of one.

    `host` is this machine's address for the others; loopback unless given, or with `join` the one that leads to the
    head. ValueError when a port is taken or the head does not answer, ClusterError when Ray does not start.
    """
    if join:
        token()
        check_port(join, "Ray head")
        head_host = join.rpartition(":")[0].strip("[]")
        host = host or _address_towards(head_host)
    else:
        host = host or LOOPBACK
        running = next((node for node in local_nodes() if node.head), None)
        if running is not None:
            raise ValueError(f"a cluster runs here already, at {running.address}: `lewm cluster down` ends it")
        for wanted in (port, dashboard_port):
            if not is_free(wanted):
                raise ValueError(f"port {wanted} is taken: choose another with --port or --dashboard-port")
        token(make=True)
    mark = secrets.token_hex(4)
    words = [sys.executable, "-m", "infra.raynode" if is_loopback(host) else "ray.scripts.scripts", "start", "--block"]
    words += ["--node-ip-address", host, "--temp-dir", str(_directory() / mark), "--disable-usage-stats"]
    words += ["--log-style", "record", "--log-color", "false"]
    # The agent runs jobs and reads logs. Without a port of its own it does neither beside another Ray of this machine.
    words += ["--dashboard-agent-listen-port", str(any_free())]
    words += [] if cpus is None else ["--num-cpus", str(cpus)]
    words += [] if gpus is None else ["--num-gpus", str(gpus)]
    if join:
        words += ["--address", join]
    else:
        words += ["--head", "--port", str(port), "--dashboard-host", host, "--dashboard-port", str(dashboard_port)]
        words += ["--ray-client-server-port", str(any_free())]
    address = join or f"{host}:{port}"
    dashboard = "" if join else f"http://{host}:{dashboard_port}"
    with (_directory() / f"{mark}.log").open("wb") as log:
        process = subprocess.Popen(
            words,
            env=_environment(mark),
            cwd=_directory(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    node = LocalNode(mark, process.pid, not join, host, address, dashboard)
    write_atomically(_directory() / f"{mark}.json", json.dumps(asdict(node)).encode())
    try:
        _wait_until_up(node, process)
    except BaseException:
        stop(node)
        raise
    finally:
        process.poll()
        process.returncode = process.returncode or 0  # a node outlives who started it, and Popen would complain
    return node


def local_nodes() -> list[LocalNode]:
    """The nodes of this machine that run. What is left of others is removed."""
    nodes = []
    for path in sorted(_directory().glob("*.json")):
        node = LocalNode(**json.loads(path.read_text()))
        if _processes(node.mark):
            nodes.append(node)
        else:
            _forget(node)
    return sorted(nodes, key=lambda node: not node.head)


def stop(node: LocalNode) -> None:
    """End all processes of a node: asked first, then killed. Raises ClusterError should any be left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = _processes(node.mark)
        # `ray start --block` ends the others in their order; of a node that lost it, all are told.
        for pid in [node.pid] if node.pid in found and number == signal.SIGTERM else found:
            _tell(pid, number)
        until = time.monotonic() + _STOP_SECONDS
        while _processes(node.mark) and time.monotonic() < until:
            time.sleep(0.1)
    if left := _processes(node.mark):
        raise ClusterError(f"processes {', '.join(map(str, left))} of the node do not end")
    _forget(node)


def nodes_of(dashboard: str) -> list[NodeState]:
    """Every node that the cluster with this dashboard knows, the head first. ConnectionError as `check` raises it."""
    check(dashboard)
    from ray.util.state import list_nodes

    with direct(dashboard):
        found: list[Any] = list_nodes(address=dashboard, limit=10_000, timeout=30)
    states = [
        NodeState(
            ip=str(node.node_ip),
            head=bool(node.is_head_node),
            alive=node.state == "ALIVE",
            cpus=float((node.resources_total or {}).get("CPU", 0)),
            gpus=float((node.resources_total or {}).get("GPU", 0)),
            memory_gb=float((node.resources_total or {}).get("memory", 0)) / 1e9,
        )
        for node in found
    ]
    return sorted(states, key=lambda state: (not state.head, not state.alive, state.ip))


def dashboard_of(address: str | None) -> str:
    """The dashboard (and Jobs API) that an address means: a URL, HOST:PORT, or without one what is set or runs here.

    ValueError when nothing is given, set or running.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _http(os.environ.get("RAY_ADDRESS", ""))
    if not address:
        head = next((node for node in local_nodes() if node.head), None)
        if head is None:
            raise ValueError("no cluster runs here: give --address http://HOST:8265, or start one: `lewm cluster up`")
        return head.dashboard
    if "://" not in address:
        address = f"http://{address}"
    if not re.fullmatch(r"https?://(\[[^]\s]+\]|[^/:@\[\]\s]+)(:\d+)?/?", address):
        raise ValueError(f"{address} is not the address of a dashboard: give http://HOST:8265")
    return address.rstrip("/")


def prepare_driver(address: str | None) -> None:
    """Before Ray is imported: what a driver on this machine needs to connect to HOST:PORT of a cluster."""
    if address is None:
        return
    use_token()
    if any(node.address == address and is_loopback(node.host) for node in local_nodes()):
        os.environ.setdefault(LOOPBACK_ONLY, "0")


def _environment(mark: str) -> dict[str, str]:
    """Of the node's processes. The programs of this virtual environment come first: jobs call `python`."""
    root = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        MARK: mark,
        "RAY_AUTH_MODE": "token",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
    }
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        environment.pop(name, None)
    return environment


def _wait_until_up(node: LocalNode, process: subprocess.Popen[bytes]) -> None:
    """Until the dashboard answers (a head) or Ray says that it has joined."""
    log = _directory() / f"{node.mark}.log"
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ClusterError(f"Ray did not start: {_reason(log)}")
        if "will now block" in log.read_text(errors="replace"):
            if not node.head:
                return
            try:
                check(node.dashboard)
                return
            except ConnectionError:
                pass
        time.sleep(0.2)
    raise ClusterError(f"Ray did not start within {_START_SECONDS:.0f} s: {_reason(log)}")


def _reason(log: Path) -> str:
    """The line of a log that says most: an error, else the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|panic|failed", line, re.IGNORECASE)]
    line = (errors or lines or ["it said nothing"])[-1]
    return re.sub(r"\x1b\[\d*m|^\S+ \S+\s+\w+ \w+\.py:\d+ -- ", "", line)[:300]


def _processes(mark: str) -> list[int]:
    """Processes of this user with a node's mark in their environment, zombies aside."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _tell(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _forget(node: LocalNode) -> None:
    shutil.rmtree(_directory() / node.mark, ignore_errors=True)
    for suffix in (".log", ".json"):
        (_directory() / f"{node.mark}{suffix}").unlink(missing_ok=True)


def _directory() -> Path:
    """Where nodes are noted: short, because Ray puts sockets there, whose names may have 107 characters."""
    default = Path(tempfile.gettempdir()) / f"lewm-{os.getuid()}"
    path = Path(os.environ.get("LEWM_CLUSTER_DIR") or default)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or path.is_symlink() or status.st_mode & 0o022:
        raise ValueError(f"{path} is not this user's alone: set LEWM_CLUSTER_DIR to a short path that is")
    return path


def _address_towards(host: str) -> str:
    """This machine's address as `host` sees it."""
    family, *_, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return probe.getsockname()[0]


def _http(address: str) -> str:
    return address if address.startswith(("http://", "https://")) else ""


def describe(node: LocalNode) -> dict[str, Any]:
    """A node as `--json` shows it."""
    return {key: value for key, value in asdict(node).items() if key != "mark"}
