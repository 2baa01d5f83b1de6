"""Commands as Ray jobs: the same `lewm collect` and `lewm train`, run on a cluster with this project's code.

The code travels as the job's working directory: the packages' own source and weights, nothing else of the checkout, up
to `CODE_LIMIT`. What a job writes must be given by absolute path or URI, because its working directory is a temporary
copy. A job has a stable run name; one that was lost, or submitted again, goes on where its run stood.
"""

import asyncio
import hashlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from infra.rayclient import check, direct
from infra.tracking import COMMIT, MODIFIED, code_version

PACKAGES = ("collectors", "shards", "pipelines", "models", "trainers", "infra")
SUFFIXES = (".py", ".safetensors")
CODE_LIMIT = 50_000_000
PATHS = ("--home", "--data", "--out", "--from", "--config", "--weights", "--resume")
"""Options whose values are paths."""
ENVIRONMENTS = ("dmc/", "metaworld/")
RUNNING = ("PENDING", "RUNNING")
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
_PASSED_ON = ("LEWM_SHARED_HOME",)
_POLL_SECONDS, _AGENT_SECONDS = 1.0, 60.0

JobVerb = Literal["collect", "train"]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a cluster. `run` is what it collects or trains and `place` where to, a directory or URI; times are
    seconds since 1970, None where not there."""

    id: str
    status: str
    run: str
    place: str
    command: str
    message: str
    started: float | None
    ended: float | None


class Jobs:
    """The jobs of the cluster behind a dashboard. ConnectionError in one line when it cannot be used."""

    def __init__(self, dashboard: str) -> None:
        self.dashboard = dashboard
        check(dashboard)
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Ray would let these replace the address that it is given.
        hidden = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
        try:
            with direct(dashboard):
                self._client = JobSubmissionClient(dashboard)
        finally:
            os.environ |= {name: value for name, value in hidden.items() if value is not None}

    def submit(self, verb: JobVerb, words: Sequence[str], *, retries: int) -> Job:
        """Have the cluster run `lewm VERB WORDS`, which `prepare` has made. ValueError when a job does that already."""
        name, place = run_name(verb, words), writes_to(words)
        busy = next((job for job in self.list() if place and job.place == place and job.status in RUNNING), None)
        if busy is not None:
            raise ValueError(f"job {busy.id} works on {place} already: `lewm jobs logs {busy.id}` follows it")
        command = shlex.join(["lewm", verb, *words])
        with tempfile.TemporaryDirectory() as scratch:
            code = stage(Path(scratch) / "code")
            environment = {"working_dir": str(code), "env_vars": _variables()}
            found = self._submit(
                entrypoint=shlex.join(["python", "-m", "infra.retry", str(retries), *_entry(verb, words)]),
                submission_id=f"{verb}-{_slug(name)}-{time.strftime('%m%d-%H%M%S')}",
                runtime_env=environment,
                metadata={"lewm_run": name, "lewm_place": place, "lewm_command": command},
            )
        return self._patiently(self.get, found)

    def _submit(self, **job: Any) -> str:
        """Give a job to the cluster, which may have been up for a moment only: its agent starts last."""
        until = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                with direct(self.dashboard):
                    return self._client.submit_job(**job)
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise ConnectionError(f"{self.dashboard} takes no job: {_first_line(error)}") from error
            time.sleep(_POLL_SECONDS)

    def list(self) -> list[Job]:
        """All jobs that were submitted, newest first."""
        with direct(self.dashboard):
            found = [each for each in self._client.list_jobs() if each.submission_id]
        return sorted((_job(each) for each in found), key=lambda job: -(job.started or 0))

    def get(self, job_id: str) -> Job:
        """One job; ValueError with the known ones when there is none of that id."""
        job = next((each for each in self.list() if each.id == job_id), None)
        if job is None:
            known = ", ".join(each.id for each in self.list()[:5]) or "none"
            raise ValueError(f"the cluster has no job {job_id}: there is {known}")
        return job

    def logs(self, job_id: str) -> str:
        """What a job has printed."""
        self.get(job_id)
        with direct(self.dashboard):
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> bool:
        """Ask a job to end, and wait until it has; whether it was running."""
        if self.get(job_id).status not in RUNNING:
            return False
        with direct(self.dashboard):
            self._client.stop_job(job_id)
        while self.get(job_id).status in RUNNING:
            time.sleep(_POLL_SECONDS)
        return True

    def follow(self, job_id: str, show: Callable[[str], None]) -> Job:
        """Show what a job prints, from its beginning, until it has ended; the ended job.

        A connection that breaks is made again, and what was shown is not shown again.
        """
        shown = 0
        while True:
            job = self._patiently(self.get, job_id)
            if job.status != "PENDING":
                with direct(self.dashboard):
                    shown = asyncio.run(self._tail(job_id, shown, show))
                job = self._patiently(self.get, job_id)
            if job.status not in RUNNING:
                text = self._patiently(self.logs, job_id)
                show(text[shown:])
                return job
            time.sleep(_POLL_SECONDS)

    def _patiently(self, ask: Callable[[str], Answer], job_id: str) -> Answer:
        """What the cluster answers, asked again for a while when the connection breaks: the job runs on meanwhile."""
        until = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                return ask(job_id)
            except OSError as error:
                if time.monotonic() > until:
                    raise ConnectionError(
                        f"{self.dashboard} answers no more: {_first_line(error)}; `lewm jobs logs {job_id}` goes on"
                    ) from error
            time.sleep(_POLL_SECONDS)

    async def _tail(self, job_id: str, shown: int, show: Callable[[str], None]) -> int:
        """Show what follows the first `shown` characters for as long as the connection holds."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                fresh = text[max(0, shown - position) :]
                position += len(text)
                if fresh:
                    show(fresh)
        except (aiohttp.ClientError, RuntimeError, OSError):
            pass  # the caller looks at the job, and comes back
        return max(shown, position)


def prepare(verb: JobVerb, words: Sequence[str]) -> list[str]:
    """The words of a command line as a job gets them: with a home, a run name that repeats, and no relative path.

    ValueError in one line for what cannot run elsewhere.
    """
    words = list(words)
    for option, value in _values(words):
        named = option == "--resume" and "/" not in value
        if option in PATHS and not _is_absolute(value) and not named:
            raise ValueError(f"{option} {value} is relative, and a job runs elsewhere: give an absolute path or a URI")
        if option == "--address":
            raise ValueError("--address belongs to lewm submit: the job works on the cluster that runs it")
    given = dict(_values(words))
    if "--home" not in given:
        home = os.environ.get("LEWM_HOME", "")
        if not _is_absolute(home):
            raise ValueError("give --home: an absolute path that every node of the cluster sees")
        words += ["--home", home]
    env = next((word for word in words if word.startswith(ENVIRONMENTS)), None)
    if verb == "collect" and "--out" not in given and env is not None:
        home = dict(_values(words))["--home"].rstrip("/")
        words += ["--out", f"{home}/data/{env.split('/')[-1]}-{given.get('--seed', '0')}"]
    elif verb == "collect" and "--out" not in given and "--from" in given:
        raise ValueError("give --out: where the job collects to decides whether another one does already")
    if verb == "train" and not {"--name", "--resume"} & given.keys():
        words += ["--name", run_name(verb, words)]
    return words


def run_name(verb: JobVerb, words: Sequence[str]) -> str:
    """What a job works on: a function of its command, so that the same command means the same run."""
    given = dict(_values(words))
    if verb == "train":
        if "--name" in given or "--resume" in given:
            return given.get("--name") or Path(given["--resume"]).name
        # Each option with its value, in any order.
        said = sorted(" ".join(words).replace("=", " ").split("--"))
        digest = hashlib.sha256("--".join(map(str.strip, said)).encode()).hexdigest()[:6]
        return _slug(f"{Path(given.get('--data', 'data')).name}-{given.get('--preset', 'tiny')}-{digest}")
    return given.get("--out", "collection").rstrip("/").rsplit("/", 1)[-1]


def writes_to(words: Sequence[str]) -> str:
    """The dataset or run that a prepared command writes, "" for none: two jobs may not have the same."""
    given = dict(_values(words))
    run = given.get("--resume") or given.get("--name", "")
    if "--out" not in given and not run:
        return ""
    whole = given.get("--out") or (run if "/" in run else f"{given['--home'].rstrip('/')}/runs/{run}")
    return whole.rstrip("/")


def stage(to: Path) -> Path:
    """Copy the code that a job needs to `to`. ValueError above `CODE_LIMIT`, with the largest file."""
    files: dict[Path, Path] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
                files[to / package / path.relative_to(root)] = path
    size = sum(path.stat().st_size for path in files.values())
    if size > CODE_LIMIT:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise ValueError(f"the code is {size / 1e6:.0f} MB, above {CODE_LIMIT / 1e6:.0f} MB: is {largest} part of it?")
    for target, path in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return to


def _entry(verb: JobVerb, words: Sequence[str]) -> list[str]:
    return ["python", "-m", "infra", verb, *words, "--address", "auto"]


def _variables() -> dict[str, str]:
    """Environment of a job. Credentials stay out of it: everybody who sees the dashboard sees these."""
    code = code_version()
    variables = {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")}
    if code:
        variables |= {COMMIT: code["commit"], MODIFIED: code["modified"]}
    variables |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    if re.search(r"://[^/]*@", store):
        raise ValueError("MLFLOW_TRACKING_URI holds a password, which the dashboard would show: set it on the nodes")
    if store and not store.startswith(("http://", "https://")):
        raise ValueError(f"MLFLOW_TRACKING_URI {store} is of this machine: give a server's address, or unset it")
    if store:
        variables["MLFLOW_TRACKING_URI"] = store
    return variables


def _values(words: Sequence[str]) -> list[tuple[str, str]]:
    """(option, value) of `--option value` and `--option=value`."""
    found = []
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            found.append((option, value))
        elif word.startswith("--") and index + 1 < len(words) and not words[index + 1].startswith("--"):
            found.append((word, words[index + 1]))
    return found


def _is_absolute(text: str) -> bool:
    return text.startswith("/") or re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") or "job"


def _job(found: Any) -> Job:
    metadata = found.metadata or {}
    return Job(
        id=found.submission_id,
        status=str(getattr(found.status, "value", found.status)),
        run=metadata.get("lewm_run", ""),
        place=metadata.get("lewm_place", ""),
        command=metadata.get("lewm_command", found.entrypoint),
        message=" ".join((found.message or "").split(", last available logs")[0].split()),
        started=found.start_time / 1000 if found.start_time else None,
        ended=found.end_time / 1000 if found.end_time else None,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
