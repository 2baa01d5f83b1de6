"""Where things are kept: `<home>/` with data, runs, the MLflow database and its artifacts.

The home is `--home`, else $LEWM_HOME, else ./lewm-home. A RUN argument is a run directory, a run name, or
`models:/NAME@alias`, which leads to the run that the version came from.
"""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.rundir import Run


@dataclass(frozen=True, slots=True)
class Home:
    """An absolute directory, and the places below it. None of them need exist."""

    path: Path

    @staticmethod
    def find(argument: Path | None) -> "Home":
        """The home that `--home` (or None) means."""
        return Home(Path(argument or os.environ.get("LEWM_HOME") or "lewm-home").expanduser().absolute())

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def database(self) -> Path:
        return self.path / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """$MLFLOW_TRACKING_URI where it is set, else this home's SQLite file."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.database}"

    def tracking_uri_to_read(self) -> str:
        """`tracking_uri`, or a ValueError where it is an SQLite file that is not there yet."""
        scheme, separator, file = self.tracking_uri.partition("sqlite:///")
        if separator and not scheme and not Path(file).exists():
            raise ValueError(f"there is no MLflow store at {file} yet: `lewm demo` or `lewm train` makes one")
        return self.tracking_uri


def find_run(argument: str, home: Home) -> "Run":
    """The run that a RUN argument means; ValueError with the closest names when there is none."""
    from trainers.rundir import Run  # imports torch, which `lewm --help` does not wait for

    if argument.startswith("models:/"):
        from infra.registry import run_name_of

        argument = run_name_of(argument, home.tracking_uri_to_read())
    if (Path(argument) / "run.json").is_file():
        return Run.open(Path(argument).absolute())
    if (home.runs / argument / "run.json").is_file():
        return Run.open(home.runs / argument)
    names = sorted(path.parent.name for path in home.runs.glob("*/run.json"))
    hint = get_close_matches(argument, names, n=3, cutoff=0.3) or names[-3:]
    known = f"; there is {', '.join(hint)}" if hint else "; `lewm train` makes one"
    raise ValueError(f"{argument!r} is neither a run directory nor a run of {home.path}{known}")
