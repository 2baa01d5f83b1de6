"""What this machine can and cannot do, found out by trying, with the command that mends each lack.

Every check is a function that returns rows; none raises. GL backends are tried in a process each, in the background
while the large packages are imported: a few seconds in all.
"""

import os
import shutil
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from collectors.gl import BACKENDS, try_backend
from infra.home import Home
from infra.ports import is_free

Status = Literal["ok", "warn", "fail"]

TESTED_SIMULATORS = {"mujoco": "3.16.0", "dm-control": "1.0.49", "metaworld": "3.0.0"}
"""The set that was tested together; pyproject.toml pins the same."""

_CORE = ("shards.dataset", "pipelines.loader", "models.lewm", "trainers.loop", "collectors.fleet", "infra.workflows")
_PACKAGE = {"egl": "libegl1", "osmesa": "libosmesa6"}
_PORTS = {
    5000: ("lewm ui", "lewm ui chooses a free port by itself"),
    8265: ("the Ray dashboard", "ray status    # a Ray that runs already; ray stop ends it"),
}
_REINSTALL = "make setup"


@dataclass(frozen=True, slots=True)
class Row:
    """One finding. `fix` is the command that mends it, empty where nothing is to mend."""

    name: str
    status: Status
    found: str
    fix: str = ""


def examine(home: Home) -> list[Row]:
    """All rows, in the order of the table."""
    with ThreadPoolExecutor(len(BACKENDS)) as pool:
        attempts = {name: pool.submit(try_backend, name) for name in BACKENDS}
        return [
            _python(),
            _torch(),
            _ray(),
            _mlflow(),
            _store(home),
            *_simulators(),
            *_rendering({name: attempt.result() for name, attempt in attempts.items()}),
            _packages(),
            _disk(home.path),
            _shared_memory(),
            *(_port(port) for port in _PORTS),
        ]


def _python() -> Row:
    found = "{}.{}.{}".format(*sys.version_info)
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Row("Python", "ok", found)
    return Row("Python", "fail", f"{found}; 3.11 and 3.12 are supported", "make clean setup PYTHON=python3.12")


def _torch() -> Row:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Row("torch", "fail", _line(error), _REINSTALL)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Row("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}: {names}")
    if shutil.which("nvidia-smi") is None:
        return Row("torch", "warn", f"{torch.__version__}, no NVIDIA driver: training runs on the CPU")
    if torch.version.cuda is None:
        fix = f"{sys.executable} -m pip install --force-reinstall torch    # a build with CUDA"
        return Row("torch", "warn", f"{torch.__version__} was built without CUDA, this machine has an NVIDIA GPU", fix)
    return Row("torch", "warn", f"{torch.__version__} (CUDA {torch.version.cuda}) sees no device", "nvidia-smi")


def _ray() -> Row:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return _import("Ray", "ray", "ray")


def _mlflow() -> Row:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return _import("MLflow", "mlflow", "mlflow")


def _import(name: str, module: str, distribution: str) -> Row:
    try:
        import_module(module)
        return Row(name, "ok", version(distribution))
    except (ImportError, OSError, PackageNotFoundError) as error:
        return Row(name, "fail", _line(error), _REINSTALL)


def _store(home: Home) -> Row:
    """Whether the MLflow store opens: a server by its health page, a database by asking it for experiments."""
    uri = home.tracking_uri
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
                return Row("MLflow store", "ok", uri)
        except OSError as error:
            return Row("MLflow store", "fail", f"{uri} does not answer: {_line(error)}", "unset MLFLOW_TRACKING_URI")
    try:
        home.tracking_uri_to_read()
    except ValueError:
        return Row("MLflow store", "ok", f"{uri} is not there yet; the first run makes it")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        return Row("MLflow store", "fail", _line(error), _REINSTALL)
    try:
        experiments = MlflowClient(uri).search_experiments()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        fix = f"{sys.executable} -m mlflow db upgrade {uri}    # if an older MLflow wrote it"
        return Row("MLflow store", "fail", f"{uri} does not open: {_line(error)}", fix)
    return Row("MLflow store", "ok", f"{uri}, {len(experiments)} experiment(s)")


def _simulators() -> list[Row]:
    rows = []
    for name, tested in TESTED_SIMULATORS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            rows.append(Row(name, "fail", "not installed", _pip(name, tested)))
            continue
        if found == tested:
            rows.append(Row(name, "ok", found))
        else:
            rows.append(Row(name, "warn", f"{found}; {tested} was tested", _pip(name, tested)))
    return rows


def _rendering(reasons: dict[str, str | None]) -> list[Row]:
    """Backends that do not render only warn as long as the chosen one does."""
    asked = os.environ.get("MUJOCO_GL")
    if asked and asked not in reasons:
        reasons |= {asked: try_backend(asked)}
    working = [name for name, reason in reasons.items() if reason is None]
    rows = []
    for name, reason in reasons.items():
        fix = _apt(_PACKAGE[name]) if name in _PACKAGE else ""
        if reason is None:
            rows.append(Row(f"GL {name}", "ok", "renders a frame"))
        else:
            rows.append(Row(f"GL {name}", "warn" if working else "fail", reason, fix))
    if asked and asked in working:
        rows.append(Row("rendering", "ok", f"{asked}, as MUJOCO_GL says"))
    elif asked:
        rows.append(Row("rendering", "fail", f"MUJOCO_GL={asked}, which renders nothing here", "unset MUJOCO_GL"))
    elif working:
        rows.append(Row("rendering", "ok", f"{working[0]} would be chosen"))
    else:
        rows.append(Row("rendering", "fail", "no backend renders", _apt("libosmesa6", "libegl1")))
    return rows


def _packages() -> Row:
    for name in _CORE:
        try:
            import_module(name)
        except (ImportError, OSError) as error:
            return Row("packages", "fail", f"{name}: {_line(error)}", _REINSTALL)
    return Row("packages", "ok", f"{len(_CORE)} core modules import")


def _disk(path: Path) -> Row:
    """Free space where the home is, or will be."""
    place = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if not os.access(place, os.W_OK):
        return Row("home", "fail", f"{place} cannot be written to", "export LEWM_HOME=/a/directory/of/yours")
    status: Status = "fail" if free < 500e6 else "warn" if free < 5e9 else "ok"
    return Row("home", status, found, "" if status == "ok" else "export LEWM_HOME=/a/larger/disk")


def _shared_memory() -> Row:
    """Ray keeps its objects in /dev/shm, and falls back to /tmp where it is small."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Row("/dev/shm", "warn", "not there: Ray keeps its objects on disk")
    total = shutil.disk_usage(place).total
    if total < 1e9:
        found = f"{total / 1e6:.0f} MB: Ray keeps its objects on disk"
        return Row("/dev/shm", "warn", found, "docker run --shm-size=4g ...    # in a container")
    return Row("/dev/shm", "ok", f"{total / 1e9:.1f} GB")


def _port(port: int) -> Row:
    user, fix = _PORTS[port]
    if is_free(port):
        return Row(f"port {port}", "ok", f"free, for {user}")
    return Row(f"port {port}", "warn", f"taken; {user} would use it", fix)


def _apt(*packages: str) -> str:
    """The command that installs system packages, as this user can give it."""
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {' '.join(packages)}"


def _pip(name: str, tested: str) -> str:
    return f"{sys.executable} -m pip install {name}=={tested}"


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
