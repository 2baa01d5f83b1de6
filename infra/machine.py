"""What a process runs on: its hardware and versions, and how busy the machine is, under MLflow's names.

Processor and memory are read from /proc, GPUs from nvidia-smi (a process of about 50 ms, so not in a training loop).
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infra.bench.common import hardware

_PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow", "webdataset", "simplejpeg", "mujoco", "dm-control")
_QUERY = "utilization.gpu,memory.used,memory.total,power.draw"
_GPU_METRICS = (
    "gpu_{}_utilization_percentage",
    "gpu_{}_memory_usage_megabytes",
    "gpu_{}_memory_usage_percentage",
    "gpu_{}_power_usage_watts",
)


def environment() -> dict[str, Any]:
    """Versions and hardware of this process."""
    return {
        "hardware": hardware(),
        "memory_gb": round(_memory()["MemTotal"] / 1e9, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": _cuda(),
    }


class Sampler:
    """System metrics since the last call, with the names that MLflow's page has a tab for."""

    def __init__(self) -> None:
        self._busy, self._time = _busy_seconds(), time.monotonic()
        self._has_gpu = shutil.which("nvidia-smi") is not None

    def __call__(self) -> dict[str, float]:
        busy, now = _busy_seconds(), time.monotonic()
        share = (busy - self._busy) / max(1e-6, (now - self._time) * (os.cpu_count() or 1))
        self._busy, self._time = busy, now
        memory = _memory()
        used = memory["MemTotal"] - memory["MemAvailable"]
        metrics = {
            "cpu_utilization_percentage": 100 * min(1.0, share),
            "system_memory_usage_megabytes": used / 1e6,
            "system_memory_usage_percentage": 100 * used / memory["MemTotal"],
        }
        if self._has_gpu:
            metrics |= _gpus()
        return {f"system/{name}": round(value, 1) for name, value in metrics.items()}


def _busy_seconds() -> float:
    """Seconds that the processors have worked since the machine started, summed over them."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _memory() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def _gpus() -> dict[str, float]:
    words = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return gpu_metrics(found)


def gpu_metrics(table: str) -> dict[str, float]:
    """Metrics from nvidia-smi's lines `utilization, memory used, memory in all, power`; "[N/A]" is left out."""
    metrics: dict[str, float] = {}
    for index, line in enumerate(table.strip().splitlines()):
        utilization, used, total, power = (_number(word) for word in line.split(","))
        share = 100 * used / total if used is not None and total else None
        megabytes = used * 1.048576 if used is not None else None
        for name, value in zip(_GPU_METRICS, (utilization, megabytes, share, power), strict=True):
            if value is not None:
                metrics[name.format(index)] = value
    return metrics


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cuda() -> str | None:
    torch = sys.modules.get("torch")
    return torch.version.cuda if torch is not None and torch.cuda.is_available() else None
