"""How much memory this process may still take."""

from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of main memory that are available here: the machine's, or less where a control group says so."""
    machine = int(next(line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable")).split()[1])
    limits = [machine << 10]
    maximum, current = (_number(_CGROUP / f"memory.{name}") for name in ("max", "current"))
    if maximum is not None and current is not None:
        limits.append(max(0, maximum - current))
    return min(limits)


def available_device_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device."""
    return torch.cuda.mem_get_info(device)[0]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says `max`."""
    text = path.read_text().strip() if path.exists() else "max"
    return int(text) if text.isdigit() else None
