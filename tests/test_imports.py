"""Imports point only as the design allows, anywhere in a file: at its top, in a function, for types."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "shards": set(),
    "collectors": {"shards"},
    "pipelines": {"shards"},
    "models": set(),
    "trainers": {"pipelines", "models", "collectors", "shards"},
    "infra": {"collectors", "shards", "pipelines", "models", "trainers"},
}
OURS = ALLOWED.keys() | {"tests"}


def imported(source: str) -> list[str]:
    """Every absolute module name that a source imports; a relative import counts as the module "."."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "." if node.level == 0 else ".")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names += [str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)]
    return names


def offences(package: str, source: str) -> list[str]:
    """The imports of `source` that a module of `package` may not have."""
    found = []
    for name in imported(source):
        top = name.split(".")[0]
        foreign_package = top in OURS - ALLOWED[package] - {package}
        torch_where_none_is = package in ("shards", "collectors") and top in ("torch", "torchvision")
        models_beyond_torch = package == "models" and top not in {"models", "torch"} | sys.stdlib_module_names
        if not top or foreign_package or torch_where_none_is or models_beyond_torch:
            found.append(name)
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_point_as_designed(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): offences(package, path.read_text()) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("shards", "import torch"),
        ("shards", "from collectors.config import CollectConfig"),
        ("collectors", "def f():\n    import torch.nn"),
        ("collectors", "from pipelines import loader"),
        ("pipelines", "from models.lewm import LeWM"),
        ("models", "import numpy"),
        ("models", "from shards.dataset import Dataset"),
        ("trainers", "from infra.home import Home"),
        ("trainers", "import importlib\nimportlib.import_module('infra.tracking')"),
        ("infra", "from tests.helpers import make_dataset"),
        ("infra", "from . import home"),
    ],
)
def test_a_wrong_arrow_is_seen(package, source):
    assert offences(package, source)


def test_right_arrows_pass():
    assert offences("trainers", "import ray\nfrom models.lewm import LeWM\nfrom shards.dataset import Dataset") == []
    assert offences("models", "import math\nimport torch\nfrom models import norm") == []
