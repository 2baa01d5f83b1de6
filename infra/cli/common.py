"""What the verbs share: their type, the options of most, and how paths and devices are read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.home import Home

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Verb:
    """What a word of the command line does: `run(args)`, where `args` is an instance of the dataclass `args`.

    `parse(program, words)` makes that instance where tyro alone does not suffice.
    """

    args: Any
    run: Callable[[Any], int | None]
    parse: Callable[[str, list[str]], Any] | None = None

    @property
    def help(self) -> str:
        """The first sentence of the arguments' docstring."""
        return " ".join(str(self.args.__doc__).split()).split(". ")[0].removesuffix(".")


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


def location(text: Path | str) -> str:
    """Where a dataset is: a URI of a bucket as it stands, a path made absolute."""
    from shards.remote import is_remote  # loads pyarrow

    # A Path swallows the second slash of a URI, so that locations are read as text.
    return str(text) if is_remote(str(text)) else str(absolute(text))


def pick_device(name: Device) -> str:
    """`auto` to `cuda` where there is one; ValueError for a CUDA that is not there."""
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no CUDA device; `lewm doctor` says why")
    return ("cuda" if available else "cpu") if name == "auto" else name
