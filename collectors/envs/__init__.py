"""Environments by name: `dmc/<domain>-<task>` for every task of the dm_control suite."""

from difflib import get_close_matches

from collectors.envs.base import Env, EnvConfig, EnvEntry, EnvSpec
from collectors.gl import choose_backend


def make_env(config: EnvConfig) -> Env:
    """The environment that `config` names; ValueError with the closest names when there is none.

    Chooses the GL backend unless the environment says which.
    """
    check_name(config.name)
    from collectors.envs.dmc import DMControlEnv

    return DMControlEnv(config)


def environment_names() -> list[str]:
    """All names, sorted. Importing the simulators fixes the GL backend, so it is chosen here if nobody has."""
    choose_backend()
    from collectors.envs.dmc import task_names

    return task_names()


def check_name(name: str) -> None:
    """ValueError with the closest names unless `name` is an environment."""
    names = environment_names()
    if name not in names:
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(close)}?" if close else "; `lewm collect --list` shows all"
        raise ValueError(f"unknown environment {name!r}{hint}")


def list_environments() -> list[EnvEntry]:
    """Every environment with its action size and cameras. Loads each task once: some seconds."""
    from collectors.envs.dmc import entry

    return [entry(name) for name in environment_names()]


__all__ = [
    "Env",
    "EnvConfig",
    "EnvEntry",
    "EnvSpec",
    "check_name",
    "environment_names",
    "list_environments",
    "make_env",
]
