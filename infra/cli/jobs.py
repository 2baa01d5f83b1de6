"""`lewm jobs ls|logs|stop|status`: the jobs of a cluster."""

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from infra.cli.common import Verb
from infra.cli.submit import follow
from infra.cluster import dashboard_of
from infra.console import print_json, print_table
from infra.jobs import RUNNING, Job, Jobs

JobId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="JOB")]


@dataclass(frozen=True, kw_only=True, slots=True)
class LsArgs:
    """List the jobs of a cluster, newest first."""

    address: str | None = None
    """Dashboard of the cluster, such as http://HOST:8265; the cluster of this machine unless given."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def ls(args: LsArgs) -> None:
    found = Jobs(dashboard_of(args.address)).list()
    if args.json:
        print_json(found)
        return
    rows = [(job.id, job.status.lower(), _when(job.started), _seconds(job)) for job in found]
    print_table("Jobs", ("job", "status", "started", "seconds"), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogsArgs:
    """Show what a job prints, until it has ended. Ctrl-C ends the showing, not the job."""

    job: JobId
    """Id, as `lewm submit` and `lewm jobs ls` print it."""
    follow: bool = True
    """Go on until the job has ended; --no-follow shows what there is."""
    address: str | None = None
    """Dashboard of the cluster, such as http://HOST:8265; the cluster of this machine unless given."""
    json: bool = False
    """Print the job and its output as one JSON value on standard output, and everything else on standard error."""


def logs(args: LogsArgs) -> None:
    jobs = Jobs(dashboard_of(args.address))
    if args.follow:
        follow(jobs, args.job, address=args.address, to_stderr=args.json)
    if args.json:
        print_json({"job": jobs.get(args.job), "logs": jobs.logs(args.job)})
    elif not args.follow:
        sys.stdout.write(jobs.logs(args.job))


@dataclass(frozen=True, kw_only=True, slots=True)
class StopArgs:
    """End a job. What its run has saved stays; submitting the same command again goes on from there."""

    job: JobId
    """Id, as `lewm submit` and `lewm jobs ls` print it."""
    address: str | None = None
    """Dashboard of the cluster, such as http://HOST:8265; the cluster of this machine unless given."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def stop(args: StopArgs) -> None:
    jobs = Jobs(dashboard_of(args.address))
    stopped = jobs.stop(args.job)
    job = jobs.get(args.job)
    if args.json:
        print_json(job)
    else:
        print(f"{job.id} is stopped" if stopped else f"{job.id} had ended already: {job.status.lower()}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusArgs:
    """Show one job. Exit code 1 if it has failed or was stopped."""

    job: JobId
    """Id, as `lewm submit` and `lewm jobs ls` print it."""
    address: str | None = None
    """Dashboard of the cluster, such as http://HOST:8265; the cluster of this machine unless given."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def status(args: StatusArgs) -> int:
    job = Jobs(dashboard_of(args.address)).get(args.job)
    if args.json:
        print_json(job)
    else:
        rows = [
            ("status", job.status.lower()),
            ("run", job.run),
            ("command", job.command),
            ("started", _when(job.started)),
            ("seconds", _seconds(job)),
            ("message", job.message),
        ]
        print_table(f"Job {job.id}", ("what", "value"), rows, justify="left")
    return 0 if job.status in (*RUNNING, "SUCCEEDED") else 1


VERBS = {
    "ls": Verb(LsArgs, ls),
    "logs": Verb(LogsArgs, logs),
    "stop": Verb(StopArgs, stop),
    "status": Verb(StatusArgs, status),
}


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _seconds(job: Job) -> str:
    return "" if job.started is None else f"{(job.ended or time.time()) - job.started:,.0f}"
