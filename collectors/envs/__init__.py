"""Environments by name: `dmc/<domain>-<task>` and `metaworld/<task>`, for every task of both simulators."""

from difflib import get_close_matches

from collectors.envs.base import Env, EnvConfig, EnvEntry, EnvSpec
from collectors.gl import choose_backend


def make_env(config: EnvConfig) -> Env:
    """The environment that `config` names; ValueError with the closest names when there is none.

    Chooses the GL backend unless the environment says which.
    """
    check_name(config.name)
    if config.name.startswith("metaworld/"):
        from collectors.envs.metaworld import MetaWorldEnv

        return MetaWorldEnv(config)
    from collectors.envs.dmc import DMControlEnv

    return DMControlEnv(config)


def environment_names() -> list[str]:
    """All names, sorted. Importing the simulators fixes the GL backend, so it is chosen here if nobody has."""
    choose_backend()
    from collectors.envs import dmc, metaworld

    return sorted(dmc.task_names() + metaworld.task_names())


def check_name(name: str) -> None:
    """ValueError with the closest names, of both simulators, unless `name` is an environment."""
    names = environment_names()
    if name not in names:
        # The task alone decides what is close: people forget the simulator, or name the other one.
        tasks = {known.split("/", 1)[1]: known for known in names}
        close = [tasks[task] for task in get_close_matches(name.split("/")[-1], tasks, n=3, cutoff=0.4)]
        hint = f"; did you mean {', '.join(close)}?" if close else "; `lewm collect --list` shows all"
        raise ValueError(f"unknown environment {name!r}{hint}")


def list_environments() -> list[EnvEntry]:
    """Every environment with its action size and cameras. Loads each task once: some seconds."""
    names = environment_names()
    from collectors.envs import dmc, metaworld

    return [(metaworld if name.startswith("metaworld/") else dmc).entry(name) for name in names]


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
