"""What the experts reach: returns and successes of whole episodes, without rendering.

These are ceilings: a policy that learns from an expert's data, or imitates it, is judged against them. An episode is a
pure function of its seed, so a script's figures do not depend on the machine; a learned expert's do by rounding, since
kinds of CPU add up its layers in different orders. Seeds differ from all that experts were chosen on. The oracle
plans on the simulator and takes minutes an episode; it runs only when it is asked for.
"""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from infra.bench.common import write_csv
from infra.console import Bar, print_json, print_table, progress

FIRST_SEED = 20_000
_RESAMPLES = 10_000
_Z = 1.959964
"""Of a two-sided 95 % interval of the normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Measure returns and success rates of experts, oracle and random actions on the simulator's own states."""

    tasks: tuple[str, ...] = ("dmc/cartpole-swingup", "dmc/reacher-easy", "dmc/walker-walk", "metaworld/pick-place-v3")
    """Environments; `metaworld/*` means all of that name. Quote the star."""
    policies: tuple[Literal["expert", "random", "noise", "oracle"], ...] = ("expert", "random")
    """Policies."""
    episodes: int = 50
    """Episodes of each policy on each task."""
    json: bool = False
    """Print one JSON value on standard output."""
    csv: Path | None = None
    """Write the rows to this file too."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, not {self.episodes}")


@dataclass(frozen=True, slots=True)
class Row:
    """Mean return of whole episodes with its 95 % bootstrap interval; success rate with its Wilson interval, if the
    task has a notion of success."""

    task: str
    policy: str
    episodes: int
    return_mean: float
    return_low: float
    return_high: float
    return_min: float
    success: float | None
    success_low: float | None
    success_high: float | None


def run(args: Args) -> None:
    tasks, rows = matching(args.tasks), []
    with progress("episodes", len(tasks) * len(args.policies) * args.episodes, "episodes") as bar:
        for task in tasks:
            for policy in args.policies:
                show = partial(_show, bar, len(rows) * args.episodes, f"{task} {policy}")
                rows.append(measure(task, policy, args.episodes, show))
    if args.csv:
        write_csv(args.csv, [{name: getattr(row, name) for name in Row.__slots__} for row in rows])
    if args.json:
        print_json(rows)
        return
    shown = [
        (
            row.task,
            row.policy,
            str(row.episodes),
            f"{row.return_mean:.1f}  [{row.return_low:.1f}, {row.return_high:.1f}]",
            f"{row.return_min:.1f}",
            "" if row.success is None else f"{row.success:.0%}  [{row.success_low:.0%}, {row.success_high:.0%}]",
        )
        for row in rows
    ]
    print_table("Experts", ("task", "policy", "episodes", "return [95 %]", "least", "success [95 %]"), shown)


def _show(bar: Bar, before: int, note: str, done: int) -> None:
    bar.update(before + done, note)


def matching(patterns: Sequence[str]) -> list[str]:
    """Names of environments that patterns of the shell's kind mean; ValueError where one means none."""
    from collectors.envs import check_name, environment_names

    tasks = []
    for pattern in patterns:
        found = fnmatch.filter(environment_names(), pattern)
        if not found:
            check_name(pattern)  # names what is close
        tasks += found
    return tasks


def measure(task: str, policy: str, episodes: int, on_episode: Callable[[int], None]) -> Row:
    """Run `episodes` whole episodes; `on_episode(n)` after the n-th."""
    from collectors.envs import EnvConfig, make_env
    from collectors.policies import components, make_policy, named_policy

    env = make_env(EnvConfig(name=task))
    (config,) = components(named_policy(policy))
    acting = make_policy(config, env.spec)
    returns, solved = np.zeros(episodes), []
    for number in range(episodes):
        seed = FIRST_SEED + number
        env.reset(seed)
        acting.reset(env, np.random.default_rng([seed, 0]))
        success = env.success()
        for _ in range(env.spec.max_steps):
            returns[number] += env.step(acting.act(env))
            success = success or env.success()
        solved.append(success)
        on_episode(number + 1)
    env.close()
    low, high = bootstrap(returns)
    wins = None if solved[0] is None else sum(map(bool, solved))
    success = (None, None, None) if wins is None else (wins / episodes, *wilson(wins, episodes))
    return Row(task, policy, episodes, float(returns.mean()), low, high, float(returns.min()), *success)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values (N,)."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def wilson(wins: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927)."""
    centre = (wins + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * np.sqrt(wins * (n - wins) / n + _Z**2 / 4)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
