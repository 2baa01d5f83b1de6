"""How much memory this process may still take."""

from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_VERSIONS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Control groups version 2 and 1: the limit, what is used, and what of that is page cache not lately touched."""


def available_memory() -> int:
    """Bytes of main memory that are available here: the machine's, or less where a control group says so.

    A control group counts the pages of files that were read as used. Those not lately touched are given up before
    anything fails, so they count as available, as MemAvailable has it for the machine.
    """
    machine = int(_fields(_MEMINFO)["MemAvailable:"]) << 10
    limits = [machine]
    for maximum, current, stat, name in _VERSIONS:
        limit, used = _number(_CGROUP / maximum), _number(_CGROUP / current)
        if limit is not None and used is not None:
            cached = int(_fields(_CGROUP / stat).get(name, "0"))
            limits.append(max(0, limit - max(0, used - cached)))
    return min(limits)


def available_device_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device."""
    return torch.cuda.mem_get_info(device)[0]


def _fields(path: Path) -> dict[str, str]:
    """The lines `name value ...` of a file; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says `max`."""
    text = path.read_text().strip() if path.exists() else "max"
    return int(text) if text.isdigit() else None
