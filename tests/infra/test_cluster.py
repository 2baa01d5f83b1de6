"""Nodes of a Ray cluster: reachable from this machine alone, with a token, and gone without a trace."""

import json
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from infra import cluster, rayclient
from infra.cli import main
from infra.ports import LOOPBACK, any_free
from tests.infra.cluster_helpers import lewm, place, start_head


@pytest.fixture(scope="module")
def head():
    with place():
        yield start_head()


@pytest.fixture
def alone():
    """A place without a cluster."""
    with place() as path:
        yield path


def listening(pids: list[int]) -> set[str]:
    """Addresses that these processes accept TCP connections on, as /proc has them in hex."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = os.readlink(entry)
            except OSError:
                continue
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                found.add(local.split(":")[0])
    return found


def test_every_socket_of_a_cluster_is_on_loopback(head):
    addresses = listening(cluster._processes(head.mark))
    assert addresses
    mapped = "0000000000000000FFFF00000100007F"
    assert addresses <= {"0100007F", mapped, "00000000000000000000000001000000"}


def test_status_shows_the_node_and_where_to_submit(head):
    found = json.loads(lewm("cluster", "status", "--json").stdout)
    assert found["dashboard"] == head.dashboard
    assert [(node["ip"], node["head"], node["alive"], node["cpus"]) for node in found["nodes"]] == [
        (LOOPBACK, True, True, 1.0)
    ]
    assert found["local"][0]["address"] == head.address
    assert cluster.dashboard_of(None) == head.dashboard


def test_the_token_is_for_this_user_alone_and_is_asked_for(head, monkeypatch, capsys):
    path = Path.home() / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert rayclient.check(head.dashboard)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(ConnectionError, match=r"another token than this machine's.*RAY_AUTH_TOKEN_PATH"):
        rayclient.check(head.dashboard)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path.with_name("none")))
    assert main(["jobs", "ls", "--address", head.dashboard]) == 2
    assert "wants a token, and this machine has none" in capsys.readouterr().err


def test_a_second_head_is_refused(head, capsys):
    assert main(["cluster", "up"]) == 2
    assert f"a cluster runs here already, at {head.address}" in capsys.readouterr().err


def test_nodes_join_and_leave_and_nothing_is_left(alone):
    first = start_head()
    second = cluster.up(join=first.address, cpus=1)
    assert (second.host, second.head) == (LOOPBACK, False)
    nodes = json.loads(lewm("cluster", "status", "--json").stdout)["nodes"]
    assert [node["alive"] for node in nodes] == [True, True]
    assert cluster.local_nodes() == [first, second]
    mapped = "0000000000000000FFFF00000100007F"
    assert listening(cluster._processes(second.mark)) <= {"0100007F", mapped}
    done = lewm("cluster", "down")
    assert (done.returncode, done.stdout) == (0, "stopped 2 nodes\n")
    assert cluster._processes(first.mark) + cluster._processes(second.mark) == []
    assert list((alone / "c").iterdir()) == []
    with socket.socket() as probe:
        assert probe.connect_ex((LOOPBACK, int(first.address.split(":")[1]))) != 0


def test_without_a_cluster_everything_says_so(alone, capsys):
    assert main(["cluster", "status"]) == 0
    assert capsys.readouterr().out == "no cluster runs here: `lewm cluster up` starts one\n"
    assert main(["cluster", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dashboard": None, "nodes": [], "local": []}
    assert main(["cluster", "down"]) == 0
    assert capsys.readouterr().out == "no cluster runs here\n"
    assert main(["jobs", "ls"]) == 2
    assert "no cluster runs here: give --address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["up", "--head", "--join", "h:1"], "not both"),
        (["up", "--port", "80"], "--port must be from 1024 to 65535, not 80"),
        (["up", "--join", "nowhere"], "nowhere is not HOST:PORT"),
        (["status", "--address", "nothing at all"], "is not the address of a dashboard"),
    ],
)
def test_mistakes_are_one_line(alone, capsys, words, expected):
    cluster.token(make=True)
    assert main(["cluster", *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1


def test_joining_needs_the_token_and_a_head(alone, capsys):
    port = any_free()
    assert main(["cluster", "up", "--join", f"{LOOPBACK}:{port}"]) == 2
    assert "there is no token at" in capsys.readouterr().err
    cluster.token(make=True)
    assert main(["cluster", "up", "--join", f"{LOOPBACK}:{port}"]) == 2
    assert f"no Ray head answers at {LOOPBACK}:{port}" in capsys.readouterr().err


def test_a_taken_port_is_named(alone, capsys):
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
        assert main(["cluster", "up", "--port", str(port)]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err
    assert cluster.local_nodes() == []


def test_a_ray_that_does_not_start_says_why_and_leaves_nothing(alone, capsys, monkeypatch):
    (alone / "ray.py").write_text("raise SystemExit('Error: no luck today')")
    monkeypatch.setattr(sys, "executable", str(alone / "python"))
    (alone / "python").write_text(f"#!/bin/sh\nexec {Path(sys.prefix) / 'bin' / 'python'} {alone / 'ray.py'}\n")
    (alone / "python").chmod(0o755)
    assert main(["cluster", "up", "--port", str(any_free()), "--dashboard-port", str(any_free())]) == 1
    assert "Ray did not start: Error: no luck today" in capsys.readouterr().err
    assert cluster.local_nodes() == []


def test_a_directory_that_others_may_write_is_refused(alone):
    shared = alone / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEWM_CLUSTER_DIR", str(shared))
        with pytest.raises(ValueError, match="is not this user's alone"):
            cluster.local_nodes()


def test_something_else_at_the_address_is_said(alone):
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        with pytest.raises(ConnectionError, match="does not answer as a Ray dashboard does"):
            rayclient.check(f"http://{LOOPBACK}:{server.getsockname()[1]}")
