"""The doctor finds what is there, and says how to mend what is not."""

import json
import socket
import tomllib
from pathlib import Path

import pytest

from infra import cli, doctor
from infra.doctor import Row, examine
from infra.home import Home
from infra.ports import LOOPBACK, any_free, is_free


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("MUJOCO_GL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def backends(monkeypatch):
    """Decide which GL backends render, instead of trying them."""

    def choose(**reasons: str | None) -> None:
        monkeypatch.setattr(doctor, "try_backend", lambda name: reasons.get(name, "not known"))

    return choose


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_this_machine_can_run_the_tests(tmp_path):
    rows = examine(Home(tmp_path))
    assert [row for row in rows if row.status == "fail"] == []
    found = by_name(rows)
    assert len(found) == len(rows)
    assert {"Python", "torch", "Ray", "MLflow", "MLflow store", "GL egl", "GL osmesa", "rendering"} <= found.keys()
    assert found["rendering"].found.startswith(("egl", "osmesa"))
    assert found["packages"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_backends_fail_only_together(backends):
    one = by_name(doctor._rendering({"egl": "no device", "osmesa": None}))
    assert (one["GL egl"].status, one["GL egl"].found) == ("warn", "no device")
    assert one["GL osmesa"].status == "ok"
    assert (one["rendering"].status, one["rendering"].found) == ("ok", "osmesa would be chosen")
    none = by_name(doctor._rendering({"egl": "no device", "osmesa": "no library"}))
    assert {row.status for row in none.values()} == {"fail"}
    assert "libosmesa6" in none["rendering"].fix


@pytest.mark.parametrize(("user", "command"), [(0, "apt-get install libegl1"), (1000, "sudo apt-get install libegl1")])
def test_only_root_installs_packages_without_sudo(monkeypatch, user, command):
    monkeypatch.setattr(doctor.os, "geteuid", lambda: user)
    found = by_name(doctor._rendering({"egl": "no device", "osmesa": None}))
    assert found["GL egl"].fix == command


def test_what_the_user_chose_must_render(backends, monkeypatch):
    backends(glfw="no display")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    found = by_name(doctor._rendering({"egl": None, "osmesa": None}))
    assert found["GL glfw"].status == "warn"
    assert (found["rendering"].status, found["rendering"].fix) == ("fail", "unset MUJOCO_GL")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert by_name(doctor._rendering({"egl": None, "osmesa": None}))["rendering"].status == "ok"


def test_other_simulator_versions_are_named(monkeypatch):
    monkeypatch.setitem(doctor.TESTED_SIMULATORS, "mujoco", "1.2.3")
    monkeypatch.setitem(doctor.TESTED_SIMULATORS, "no-such-simulator", "1.0")
    found = by_name(doctor._simulators())
    assert found["mujoco"].status == "warn"
    assert "mujoco==1.2.3" in found["mujoco"].fix
    assert found["no-such-simulator"].status == "fail"
    assert found["dm-control"].status == "ok"


def test_the_tested_set_is_the_pinned_one():
    root = Path(doctor.__file__).resolve().parent.parent
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {f"{name}=={tested}" for name, tested in doctor.TESTED_SIMULATORS.items()} <= set(dependencies)


def test_a_store_that_does_not_open_fails(tmp_path):
    home = Home(tmp_path)
    assert doctor._store(home).status == "ok"
    home.database.write_bytes(b"this is no database, whatever its name may say" * 100)
    row = doctor._store(home)
    assert row.status == "fail"
    assert "\n" not in row.found


def test_a_server_that_does_not_answer_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{LOOPBACK}:{any_free()}")
    row = doctor._store(Home(tmp_path))
    assert row.status == "fail"
    assert "does not answer" in row.found


@pytest.mark.parametrize(("free", "status"), [(400e6, "fail"), (4e9, "warn"), (40e9, "ok")])
def test_disk_space(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("Usage", (), {"free": free, "total": free}))
    assert doctor._disk(tmp_path / "not" / "there").status == status


def test_a_taken_port_warns(monkeypatch):
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setitem(doctor._PORTS, port, ("a test", "stop it"))
        assert not is_free(port)
        assert doctor._port(port).status == "warn"
        assert doctor._port(port).fix == "stop it"
    assert is_free(any_free())


@pytest.mark.parametrize(("status", "code"), [("warn", 0), ("fail", 1)])
def test_the_exit_code_and_the_fix(capsys, monkeypatch, status, code):
    monkeypatch.setattr(doctor, "examine", lambda home: [Row("disk", status, "nearly full", "make room")])
    assert cli.main(["doctor"]) == code
    out = capsys.readouterr().out
    assert "nearly full" in out
    assert "disk: make room" in out
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["rows"][0]["fix"] == "make room"
