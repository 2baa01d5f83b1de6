"""What is installed is what is in the tree."""

import configparser
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("collectors", "shards", "pipelines", "models", "trainers", "infra")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built, without a network, from a copy of what the repository holds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "collectors").rglob("*.safetensors")}
    assert weights
    assert names - modules == {"infra/setup.sh"} | weights


def test_the_wheel_has_license_and_command(wheel):
    (license_name,) = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert "Apache License" in wheel.read(license_name).decode()
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(entry_points).decode())
    module, _, function = parser["console_scripts"]["lewm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("package", PACKAGES)
def test_import_names_mean_this_repository(package):
    """Names as plain as `models` could be taken by an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")


def test_the_constraints_are_exact_and_hold_every_requirement():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line and "+" not in line and "/" not in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {requirement.split(">")[0].split("=")[0].split("[")[0].lower() for requirement in required}
    assert names - pinned == {"lewm"}  # the extra `dev` holds the others
