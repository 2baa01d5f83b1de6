"""MLflow as the record of a run: the `Tracker` that trainers see.

Metrics are buffered and written in batches, because a call is a transaction each. One process writes a run at a time:
the driver creates it, rank 0 attaches to it, and evaluation attaches again later. Values that are not finite are not
sent (SQLite stores them as something else) but counted in the tag `metrics_not_finite`. Telemetry is off unless the
user turned it on.
"""

import json
import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shards.dataset import Dataset

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it announces every new database

_BATCH, _SECONDS = 500, 2.0
_NOT_FINITE = "metrics_not_finite"
_PARAM_LIMIT, _PARAM_BATCH = 500, 100
_DIGEST_LIMIT = 32
"""MLflow takes 36 characters for a dataset's digest; the whole of it is in the tag `dataset_digest`."""


class MlflowTracker:
    """One MLflow run, open for writing."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        from mlflow import MlflowClient

        self.tracking_uri = tracking_uri
        self.client = MlflowClient(tracking_uri)
        self._run_id = run_id
        self._metrics: list[Any] = []
        self._flushed = time.monotonic()
        self._not_finite = self._counted = 0

    @staticmethod
    def create(tracking_uri: str, artifacts: Path, *, experiment: str, name: str) -> "MlflowTracker":
        """A new run called `name`. `artifacts` is where a new experiment of a local store keeps its files."""
        from mlflow import MlflowClient

        local = tracking_uri.startswith("sqlite:///")
        if local:
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = (
            found.experiment_id
            if found is not None
            else client.create_experiment(experiment, artifact_location=artifacts.as_uri() if local else None)
        )
        run = client.create_run(experiment_id, run_name=name, tags=_code_version())
        return MlflowTracker(tracking_uri, run.info.run_id)

    @staticmethod
    def attach(tracking_uri: str, run_id: str) -> "MlflowTracker":
        """An existing run, set running again."""
        from mlflow.exceptions import MlflowException

        tracker = MlflowTracker(tracking_uri, run_id)
        try:
            run = tracker.client.get_run(run_id)
        except MlflowException as error:
            raise ValueError(f"the MLflow store {tracking_uri} has no run {run_id}: is it another --home?") from error
        tracker._not_finite = tracker._counted = int(run.data.tags.get(_NOT_FINITE, 0))
        tracker.client.update_run(run_id, status="RUNNING")
        return tracker

    @property
    def run_id(self) -> str:
        return self._run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        values = [Param(key, str(value)[:_PARAM_LIMIT]) for key, value in params.items()]
        for begin in range(0, len(values), _PARAM_BATCH):
            self.client.log_batch(self._run_id, params=values[begin : begin + _PARAM_BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in metrics.items():
            if math.isfinite(value):
                self._metrics.append(Metric(key, float(value), now, step))
            else:
                self._not_finite += 1
        if len(self._metrics) >= _BATCH or time.monotonic() - self._flushed > _SECONDS:
            self.flush()

    def log_figure(self, name: str, figure: Figure) -> None:
        self.client.log_figure(self._run_id, figure, f"figures/{name}.png", save_kwargs={"dpi": 150})

    def log_json(self, name: str, value: Any) -> None:
        self.client.log_text(self._run_id, json.dumps(value, indent=2), name)

    def log_artifact(self, path: Path, folder: str) -> None:
        self.client.log_artifact(self._run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_dataset(self, dataset: Dataset, context: str) -> None:
        """The dataset as an input of the run: its digest, where it lies, what it holds."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        manifest = dataset.manifest
        profile = {
            "episodes": manifest.n_episodes,
            "steps": manifest.n_steps,
            "frames": manifest.n_frames,
            "splits": dict(manifest.splits),
            "digest": manifest.digest,
        }
        columns = [{"type": "float", "name": column.name, "required": True} for column in dataset.columns]
        entity = Entity(
            name=dataset.environment,
            digest=manifest.digest[:_DIGEST_LIMIT],
            source_type="local",
            source=json.dumps({"uri": dataset.location}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(self._run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def history(self, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of the metrics `names`, by step. Of a step that was done again after a restart, the last."""
        self.flush()
        found = {name: self.client.get_metric_history(self._run_id, name) for name in names}
        return {
            name: sorted({each.step: each.value for each in sorted(metrics, key=lambda each: each.timestamp)}.items())
            for name, metrics in found.items()
        }

    def flush(self) -> None:
        metrics, self._metrics = self._metrics, []
        for begin in range(0, len(metrics), _BATCH):
            self.client.log_batch(self._run_id, metrics=metrics[begin : begin + _BATCH])
        if self._not_finite != self._counted:
            self._counted = self._not_finite
            self.client.set_tag(self._run_id, _NOT_FINITE, str(self._not_finite))
        self._flushed = time.monotonic()

    def close(self, status: str = "FINISHED") -> None:
        """Write what is buffered and end the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self.client.set_terminated(self._run_id, status)


def _code_version() -> dict[str, str]:
    """The commit of the checkout that this code runs from, where there is one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {}
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": commit.stdout.strip(), "code_modified": str(bool(dirty.stdout)).lower()}
