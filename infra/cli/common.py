"""Options that several verbs share."""

import os
from dataclasses import dataclass
from pathlib import Path

from infra.home import Home


@dataclass(frozen=True, kw_only=True, slots=True)
class Common:
    """Options of every verb that reads or writes a home."""

    home: Path | None = None
    """Directory for data, runs and the MLflow store; $LEWM_HOME or ./lewm-home unless given."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""

    def find_home(self) -> Home:
        return Home.find(self.home)


def absolute(path: Path | str) -> Path:
    """A path as the rest of the program sees it: absolute, because a job's working directory is another."""
    return Path(os.path.expanduser(path)).absolute()


def pick_device(name: str) -> str:
    """`auto` to `cuda` where there is one; ValueError for a CUDA that is not there."""
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no CUDA device; `lewm doctor` says why")
    return ("cuda" if available else "cpu") if name == "auto" else name
