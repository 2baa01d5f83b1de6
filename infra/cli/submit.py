"""`lewm submit collect|train ...`: the same commands, as a job of a Ray cluster."""

import argparse
import importlib
import sys
from dataclasses import dataclass
from typing import Annotated, cast

import tyro

from infra.cli import parse_args
from infra.cli.errors import Failed
from infra.cluster import dashboard_of
from infra.console import print_json, say
from infra.jobs import Job, Jobs, JobVerb, prepare

VERBS_OF_JOBS = ("collect", "train")
_LOCAL = ("--from", "--resume")
"""Options that make the verb's parser read a file, which only the cluster may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Send a collection or a training run to a Ray cluster as a job, and follow it until it is done.

    All other options are those of `lewm collect` and `lewm train`. Paths must be absolute, and on storage that every
    node sees. A job whose command fails is tried again on the cluster; submitting the same command again after
    anything else goes on where the run stood.
    """

    command: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="collect|train ...")]
    """The command, as without `submit`."""
    address: str | None = None
    """Dashboard of the cluster, such as http://HOST:8265; the cluster of this machine unless given."""
    detach: bool = False
    """Return when the job is submitted."""
    job_retries: int = 3
    """Times that the command is run again when it fails."""
    json: bool = False
    """Print one JSON value on standard output, and everything else on standard error."""


def parse(program: str, words: list[str]) -> Args:
    """Our own options may stand anywhere; the rest is the command."""
    if not words or words[0] in ("-h", "--help"):
        return parse_args(Args, program, ["--help"])
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--address")
    first.add_argument("--detach", action="store_true")
    first.add_argument("--job-retries", type=int, default=3)
    first.add_argument("--json", action="store_true")
    try:
        known, command = first.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if not command or command[0] not in VERBS_OF_JOBS:
        raise ValueError(f"a job is one of {', '.join(VERBS_OF_JOBS)}: lewm submit train --data ...")
    if known.job_retries < 0:
        raise ValueError(f"--job-retries must not be negative, not {known.job_retries}")
    return Args(
        command=tuple(command),
        address=known.address,
        detach=known.detach,
        job_retries=known.job_retries,
        json=known.json,
    )


def run(args: Args) -> None:
    verb, words = cast(JobVerb, args.command[0]), list(args.command[1:])
    if {"-h", "--help"} & set(words):
        check_words(verb, ["--help"])
    words = prepare(verb, words)
    check_words(verb, words)
    jobs = Jobs(dashboard_of(args.address))
    job = jobs.submit(verb, words, retries=args.job_retries)
    say(f"job {job.id}, run {job.run}; dashboard {jobs.dashboard}")
    if not args.detach:
        job = follow(jobs, job.id, address=args.address, to_stderr=args.json)
    if args.json:
        print_json(job)
    elif args.detach:
        print(job.id)
    if not args.detach:
        _judge(job)


def check_words(verb: JobVerb, words: list[str]) -> None:
    """ValueError where `lewm VERB` would refuse these words, found here and not by the job."""
    if any(word.split("=")[0] in _LOCAL for word in words):
        return
    module = importlib.import_module(f"infra.cli.{verb}")
    own_parser = getattr(module, "parse", None)
    if own_parser is not None:
        own_parser(f"lewm {verb}", words)
    else:
        parse_args(module.Args, f"lewm {verb}", words)


def follow(jobs: Jobs, job_id: str, *, address: str | None, to_stderr: bool = False) -> Job:
    """Show a job's output until it has ended. Ctrl-C ends the showing, not the job."""
    stream = sys.stderr if to_stderr else sys.stdout

    def show(text: str) -> None:
        stream.write(text)
        stream.flush()

    try:
        return jobs.follow(job_id, show)
    except KeyboardInterrupt:
        rest = f"{job_id} --address {address}" if address else job_id
        say(f"\njob {job_id} goes on: `lewm jobs logs {rest}` follows it, `lewm jobs stop {rest}` ends it")
        raise


def _judge(job: Job) -> None:
    if job.status != "SUCCEEDED":
        raise Failed(f"job {job.id} {job.status.lower()}: {job.message or 'its output says why'}")
