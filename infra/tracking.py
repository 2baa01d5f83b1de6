"""MLflow as the record of a run: the `Tracker` that trainers see.

The driver creates the run, rank 0 writes it while it trains, and evaluation attaches to it later. Rank 0's metrics go
through a queue on disk (`infra.outbox`), so that training waits for nothing and a server that is away for a while costs
the record nothing; what an evaluation logs is sent in batches, at once. Values that are not finite are not sent (SQLite
stores them as something else) but counted in the tag `metrics_not_finite`. Telemetry is off unless the user turned it
on.
"""

import json
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from infra import outbox
from infra.machine import Sampler, environment
from shards.dataset import Dataset

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own 7 retries are four minutes in which a command seems to hang.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# With a server it prints addresses on standard output, which belongs to results.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it announces every new database

COMMIT, MODIFIED = "LEWM_COMMIT", "LEWM_MODIFIED"
"""Environment variables by which a job, whose files are in no repository, knows its code version."""
_log = logging.getLogger(__name__)
_BATCH, _SECONDS = 500, 2.0
_ANSWER_SECONDS = 3.0
_PATIENCE_SECONDS = 120.0
"""How long the end of a run waits for a server that is away."""
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
        self._outbox: outbox.Outbox | None = None
        self._metrics: list[Any] = []
        self._flushed = time.monotonic()
        self._not_finite = self._counted = 0

    @staticmethod
    def create(tracking_uri: str, artifacts: Path, *, experiment: str, name: str) -> "MlflowTracker":
        """A new run called `name`. `artifacts` is where a new experiment of a local store keeps its files."""
        from mlflow import MlflowClient

        check_answers(tracking_uri)
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
        run = client.create_run(experiment_id, run_name=name, tags=_source())
        return MlflowTracker(tracking_uri, run.info.run_id)

    @staticmethod
    def attach(tracking_uri: str, run_id: str, run: Path | None = None) -> "MlflowTracker":
        """An existing run, whose status stays. What training left unsent in the directory `run` is sent first."""
        from mlflow.exceptions import MlflowException

        check_answers(tracking_uri)
        tracker = MlflowTracker(tracking_uri, run_id)
        try:
            tracker.client.get_run(run_id)
            if run is not None:
                tracker.drain(run)
            found = tracker.client.get_run(run_id)
        except MlflowException as error:
            if error.get_http_status_code() != 404:
                raise
            raise ValueError(
                f"the MLflow store {without_password(tracking_uri)} has no run {run_id}: is it another --home?"
            ) from error
        tracker._not_finite = tracker._counted = int(found.data.tags.get(outbox.NOT_FINITE, 0))
        return tracker

    @staticmethod
    def resume(tracking_uri: str, run_id: str, run: Path) -> "MlflowTracker":
        """An existing run for the process that trains it in the directory `run`; the server need not answer.

        A (metric, step) that was logged before is not logged again. What this process runs on is added to the record,
        and how busy it is beside every few metrics. Closing leaves the run's status to the driver.
        """
        tracker = MlflowTracker(tracking_uri, run_id)
        tracker._outbox = outbox.Outbox(
            tracker.client, run_id, run / outbox.FILE, greet=tracker._greet, sample=Sampler()
        )
        return tracker

    @property
    def run_id(self) -> str:
        return self._run_id

    def drain(self, run: Path) -> None:
        """Send what training has left unsent in the directory `run`."""
        outbox.drain(self.client, self._run_id, run / outbox.FILE)

    def log_params(self, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        values = [Param(key, str(value)[:_PARAM_LIMIT]) for key, value in params.items()]
        for begin in range(0, len(values), _PARAM_BATCH):
            self.client.log_batch(self._run_id, params=values[begin : begin + _PARAM_BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if self._outbox is not None:
            self._outbox.put(metrics, step)
            return
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
            source_type=dataset.location.split("://")[0] if "://" in dataset.location else "local",
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
        """Send what is buffered; of a run that is being trained, put it on disk, from where it is sent."""
        if self._outbox is not None:
            self._outbox.sync()
            return
        metrics, self._metrics = self._metrics, []
        for begin in range(0, len(metrics), _BATCH):
            self.client.log_batch(self._run_id, metrics=metrics[begin : begin + _BATCH])
        if self._not_finite != self._counted:
            self._counted = self._not_finite
            self.client.set_tag(self._run_id, outbox.NOT_FINITE, str(self._not_finite))
        self._flushed = time.monotonic()

    def close(self, status: str | None = None, *, patience: float = _PATIENCE_SECONDS) -> None:
        """Write what is buffered, and end the run as FINISHED, FAILED or KILLED if given: an evaluation ends no run.

        The process that trains waits up to `patience` seconds for the server; what is not sent by then stays in the run
        directory and is sent when the run goes on or is evaluated.
        """
        if self._outbox is not None:
            left = self._outbox.close(patience)
            if left:
                _log.warning("the MLflow server is away: %s of metrics wait in the run directory", f"{left:,} bytes")
            return
        self.flush()
        if status is not None:
            self.client.set_terminated(self._run_id, status)

    def _greet(self) -> None:
        """What the process that trains tells the server first."""
        from mlflow.entities import RunTag

        found = environment()
        self.client.update_run(self._run_id, status="RUNNING")
        self.client.log_batch(self._run_id, tags=[RunTag("hardware", found["hardware"])])
        self.client.log_text(self._run_id, json.dumps(found | {"code": code_version()}, indent=2), "environment.json")


def check_answers(tracking_uri: str) -> None:
    """ConnectionError unless something listens at the address of an MLflow server: MLflow itself would try for long."""
    found = re.match(r"(https?)://(?:[^/@]*@)?(\[[^]]+\]|[^/:]+)(?::(\d+))?", tracking_uri)
    if found is None:
        return
    scheme, host, port = found.groups()
    if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    try:
        address = (host.strip("[]"), int(port or (443 if scheme == "https" else 80)))
        socket.create_connection(address, timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no MLflow server answers at {without_password(tracking_uri)}: {error}") from error


def without_password(uri: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"://[^/@]*@", "://", uri)


def code_version() -> dict[str, str]:
    """Commit of the code, and whether tracked files differ from it; empty where neither git nor a job says."""
    if COMMIT in os.environ:
        return {"commit": os.environ[COMMIT], "modified": os.environ.get(MODIFIED, "false")}
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {}
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return {}
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return {"commit": commit.stdout.strip(), "modified": str(bool(dirty.stdout)).lower()}


def _source() -> dict[str, str]:
    """Where a run comes from, in the tags that MLflow's page has columns for."""
    code = code_version()
    tags = {
        "mlflow.source.name": f"lewm {' '.join(sys.argv[1:2])}".strip(),
        "mlflow.source.type": "JOB" if COMMIT in os.environ else "LOCAL",
    }
    if code:
        tags |= {"mlflow.source.git.commit": code["commit"], "code_modified": code["modified"]}
    return tags
