"""The command line: `lewm <verb>`. A verb is a module of this package, imported only when it is asked for.

A verb's module has `Args`, a frozen dataclass whose field docstrings are its help, and `run(args)`; one with sub-verbs
has a dictionary `VERBS` instead. A mistake of the user is one line on standard error. Exit codes: 0 done, 1 failed,
2 bad usage or input, 130 interrupted. LEWM_DEBUG=1 shows tracebacks.
"""

import importlib
import io
import os
import signal
import sys
from contextlib import redirect_stderr
from difflib import get_close_matches
from typing import Any

from infra.cli.common import Verb
from infra.cli.errors import Failed, one_line
from infra.cli.signals import Terminated

HELP = {
    "demo": "the whole line in a few minutes: collect, train, probe, plan, register",
    "run": "one task from nothing to a judged, registered model",
    "collect": "record episodes of a task into shards",
    "shards": "list, verify, look at, join, import and copy datasets",
    "train": "train a model as a Ray Train job",
    "probe": "probe a run's latents for physical state",
    "surprise": "what the model notices that no action explains",
    "plan": "reach goals of held-out episodes by planning",
    "control": "act in the task, for reward, with a run's latents",
    "report": "one HTML page about a run, or several side by side",
    "presets": "show the model presets with parameters and FLOPs",
    "models": "list, show, register, promote and load models; import and export weights",
    "cluster": "start, join and stop a Ray cluster",
    "submit": "send a collection or a training run to a cluster as a job",
    "jobs": "list, watch and stop jobs",
    "ui": "open the MLflow page",
    "bench": "measure this machine: collection, loader, training, planning, experts",
    "doctor": "check this machine and say how to mend it",
}


_ASKED = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    ConnectionError,
)
"""Errors of the system that are the command line's: a wrong path or address. Others, such as a full disk or a failing
store, may pass, so that a job tries again."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb, *rest = arguments
    try:
        return _dispatch(verb, rest)
    except KeyboardInterrupt as stop:
        print(f"lewm {verb}: interrupted", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Failed as error:
        return _report(verb, error, 1)
    except (ValueError, *_ASKED) as error:
        return _report(verb, error, 2)
    except Exception as error:
        return _report(verb, error, 1)


def _dispatch(verb: str, rest: list[str]) -> int:
    if verb not in HELP:
        hint = get_close_matches(verb, HELP, n=1)
        raise ValueError(f"unknown verb{f', did you mean {hint[0]!r}' if hint else ''}? `lewm --help` lists them")
    module = importlib.import_module(f"infra.cli.{verb}")
    verbs: dict[str, Verb] | None = getattr(module, "VERBS", None)
    if verbs is None:
        return _call(Verb(module.Args, module.run, getattr(module, "parse", None)), f"lewm {verb}", rest)
    if not rest or rest[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {each.help}" for name, each in verbs.items()]
        print("\n".join([f"usage: lewm {verb} VERB [options]", "", *lines]))
        return 0
    name, *rest = rest
    if name not in verbs:
        raise ValueError(f"there is no {name!r}: choose from {', '.join(verbs)}")
    return _call(verbs[name], f"lewm {verb} {name}", rest)


def _call(verb: Verb, program: str, words: list[str]) -> int:
    """Parse with the verb's own parser, or with tyro, and run it."""
    args = verb.parse(program, words) if verb.parse else parse_args(verb.args, program, words)
    return verb.run(args) or 0


def parse_args(kind: Any, program: str, rest: list[str], default: Any = None) -> Any:
    """A `kind` from the words of a command line; ValueError in one line where they do not fit."""
    import tyro

    captured = io.StringIO()
    keywords = {} if default is None else {"default": default}
    try:
        with redirect_stderr(captured):
            return tyro.cli(kind, args=rest, prog=program, **keywords)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(one_line(captured.getvalue())) from None


def _usage() -> str:
    lines = [f"  {verb:<10} {text}" for verb, text in HELP.items()]
    head = ["usage: lewm VERB [options]", "", "World models from pixels: collect, train, judge.", ""]
    return "\n".join([*head, *lines, "", "`lewm VERB --help` shows a verb's options."])


def _report(verb: str, error: Exception, code: int) -> int:
    if os.environ.get("LEWM_DEBUG") == "1":
        raise error
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, Failed | ValueError | OSError)
    prefix = "" if known else f"unexpected {type(error).__name__}: "
    suffix = "" if known else " (LEWM_DEBUG=1 shows where)"
    print(f"lewm {verb}: {prefix}{text}{suffix}", file=sys.stderr)
    return code


def entry() -> None:
    """The console script."""
    sys.exit(main())
