"""Experts learned from physical state, for tasks without a script: TQC by sb3-contrib, resumable, one CPU core.

    python -m trainers.experts --task dmc/walker-walk --out experts/walker-walk --decisions 200000

Needs the extra `[experts]`. The agent sees the task's own observation, flattened, acts every `action_repeat` control
steps as collection does, and never renders. About 45 updates a second on one core. The learning rate is constant for
the first half and falls linearly to a tenth, and the entropy that the actor is held to falls beside it. An exponential
average of the actor's weights is evaluated beside the actor itself; the best on validation episodes, apart from those
of the report, is what `actor.safetensors` holds, after a choice on more of them at the end.

    out/config.json  log.csv  actor.safetensors  checkpoint/    one whole checkpoint, replaced by rename

Killed at any moment, the same command goes on from the checkpoint; the log keeps one line an evaluation. A second run
in the same directory is refused.
"""

import csv
import json
import shutil
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from collectors.envs import EnvConfig, make_env
from collectors.envs.base import Env
from collectors.experts.learned import MLPActor
from collectors.locks import locked
from shards.atomic import write_atomically

_LOG = ("decisions", "actor", "return_mean", "return_std", "return_min", "episodes", "critic_loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Train an expert from physical state. Run the same command again to go on."""

    out: Path
    """Directory of the run."""
    task: str = "dmc/walker-walk"
    """Environment, a task of the dm_control suite."""
    decisions: int = 200_000
    """Decisions to train for, one update each."""
    training_episode: int | None = None
    """Decisions an episode of training; None: the task's own. Shorter ones are cut, not ended, so what is learned means
    the same, from more beginnings: most of what a good walker still loses, it loses in getting up."""
    seed: int = 0
    learning_rate: float = 3e-4
    batch_size: int = 256
    width: int = 256
    """Units in each of the two hidden layers of actor and critics."""
    final_entropy: float = -2.5
    """Target entropy for each dimension of the action at the end, from -1: it falls as the learning rate does. What the
    critics value is the noisy actor; a gait that must bear noise of 0.4 is a slower one."""
    learning_starts: int = 2500
    average: float = 0.9995
    """Decay an update of the averaged actor's weights."""
    evaluate_every: int = 10_000
    evaluation_episodes: int = 10
    choice_episodes: int = 50
    """Further validation episodes, at the end, for the choice between the last, the averaged and the best actor so far:
    the best of many evaluations of few episodes owes some of its lead to luck."""
    checkpoint_every: int = 10_000
    threads: int = 1
    """Torch threads."""


class StateEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment of ours as gymnasium's, seen through its task's observation; every reset has a seed of its own."""

    def __init__(self, name: str, seed: int, training_episode: int | None = None) -> None:
        self.env = make_env(EnvConfig(name=name))
        self._decisions = training_episode or self.env.spec.max_steps
        self._seeds = np.random.default_rng([seed, 7])
        self.env.reset(0)
        size = len(self.env.observation())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.env.spec.action_size,), np.float32)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.env.reset(int(self._seeds.integers(2**31)))
        self._step = 0
        return self.env.observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = self.env.step(np.asarray(action, np.float32))
        self._step += 1
        # The task has no end of its own: what comes after the last decision counts as if it went on.
        return self.env.observation(), reward, False, self._step >= self._decisions, {}


def train(args: Args) -> float:
    """Train, or go on training, until `args.decisions`: the best evaluated return. ValueError beside another run."""
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out):
        return _train(args)


def _train(args: Args) -> float:
    from sb3_contrib import TQC
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(args.threads)
    config = {**asdict(args), "out": None, "decisions": None, "training_episode": None, "threads": None}
    _check_same(args.out / "config.json", config)
    checkpoint = args.out / "checkpoint"
    _finish_rename(checkpoint)
    env = StateEnv(args.task, args.seed, args.training_episode)

    def learning_rate(remaining: float) -> float:
        return args.learning_rate * min(1.0, max(0.1, 0.1 + 1.8 * remaining))

    if checkpoint.exists():
        model = TQC.load(checkpoint / "model.zip", env=env, custom_objects={"learning_rate": learning_rate})
        model.load_replay_buffer(checkpoint / "replay.pkl")
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        average, best, rows = state["average"], state["best"], state["rows"]
        env._seeds = np.random.default_rng([args.seed, 7, model.num_timesteps])
        print(f"going on after {model.num_timesteps} decisions", flush=True)
    else:
        model = TQC(
            "MlpPolicy",
            env,
            learning_rate=learning_rate,
            batch_size=args.batch_size,
            buffer_size=args.decisions,
            learning_starts=args.learning_starts,
            policy_kwargs={"net_arch": [args.width, args.width], "optimizer_kwargs": {"fused": True}},
            seed=args.seed,
        )
        average, best, rows = deepcopy(_weights(model.actor)), -np.inf, []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            nonlocal best
            late = max(0.0, 1.0 - 2.0 * model._current_progress_remaining)
            model.target_entropy = -float(env.env.spec.action_size) * (1.0 - late * (1.0 + args.final_entropy))
            with torch.no_grad():
                now = _weights(model.actor)
                if model.num_timesteps <= args.learning_starts:
                    average.update({name: value.clone() for name, value in now.items()})
                else:
                    for name, value in now.items():
                        average[name].lerp_(value, 1 - args.average)
            if model.num_timesteps % args.evaluate_every == 0:
                loss = float(model.logger.name_to_value.get("train/critic_loss", float("nan")))
                for name, weights in (("last", now), ("average", average)):
                    scores = evaluate(args.task, weights, seeds=range(10_000, 10_000 + args.evaluation_episodes))
                    statistics = [float(each) for each in (scores.mean(), scores.std(), scores.min())]
                    rows.append([model.num_timesteps, name, *statistics, len(scores), loss])
                    print(", ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in rows[-1]), flush=True)
                    if scores.mean() > best:
                        best = float(scores.mean())
                        save_actor(args, weights, model.num_timesteps, best)
                _write_log(args.out / "log.csv", rows)
            if model.num_timesteps % args.checkpoint_every == 0:
                _save(checkpoint, model, {"average": average, "best": best, "rows": rows})
            return True

    remaining = args.decisions - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callback=Watch(), reset_num_timesteps=False)
    return _choose(args, {"last": _weights(model.actor), "average": average}, model.num_timesteps)


def _choose(args: Args, latest: dict[str, dict[str, torch.Tensor]], decisions: int) -> float:
    """Keep the best of the latest actors and the one that is kept so far; its mean return on the episodes of choice."""
    candidates = {name: (decisions, weights) for name, weights in latest.items()}
    path = args.out / "actor.safetensors"
    if path.exists():
        with safe_open(path, framework="pt") as file:
            candidates["best so far"] = (int(file.metadata()["decisions"]), load_file(path))
    seeds = range(11_000, 11_000 + args.choice_episodes)
    found = {name: float(evaluate(args.task, weights, seeds).mean()) for name, (_, weights) in candidates.items()}
    chosen = max(found, key=lambda name: found[name])
    print(", ".join(f"{name} {score:.1f}" for name, score in found.items()), f"-> {chosen}", flush=True)
    save_actor(args, candidates[chosen][1], candidates[chosen][0], found[chosen])
    return found[chosen]


def evaluate(task: str, weights: dict[str, torch.Tensor], seeds: range) -> np.ndarray:
    """Returns (episodes,) of the actor's most probable actions, by the code that collects with it."""
    env: Env = make_env(EnvConfig(name=task))
    actor = MLPActor({name: value.detach().numpy().copy() for name, value in weights.items()})
    returns = []
    for seed in seeds:
        env.reset(seed)
        returns.append(sum(env.step(actor(env.observation())) for _ in range(env.spec.max_steps)))
    env.close()
    return np.array(returns)


def save_actor(args: Args, weights: dict[str, torch.Tensor], decisions: int, score: float) -> None:
    """Write `actor.safetensors`: the actor's weights, and where they come from as metadata."""
    about = {"task": args.task, "algorithm": "TQC", "decisions": str(decisions), "seed": str(args.seed)}
    about["validation_return"] = f"{score:.2f}"
    path = args.out / "actor.safetensors"
    partial = path.with_suffix(".tmp")
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, partial, metadata=about)
    partial.replace(path)


def _weights(actor: Any) -> dict[str, torch.Tensor]:
    """The layers that make the most probable action, by the names that `MLPActor` reads."""
    layers = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)] + [actor.mu]
    return {
        f"{number}.{name}": value.data
        for number, layer in enumerate(layers)
        for name, value in (("weight", layer.weight), ("bias", layer.bias))
    }


def _save(path: Path, model: Any, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model.save(partial / "model.zip", exclude=["learning_rate", "lr_schedule"])
    model.save_replay_buffer(partial / "replay.pkl")
    torch.save(state, partial / "state.pt")
    shutil.rmtree(path.with_suffix(".old"), ignore_errors=True)
    if path.exists():
        path.rename(path.with_suffix(".old"))
    partial.rename(path)
    shutil.rmtree(path.with_suffix(".old"), ignore_errors=True)


def _finish_rename(path: Path) -> None:
    """A kill between the two renames of `_save` leaves the checkpoint before under its old name."""
    if not path.exists() and path.with_suffix(".old").exists():
        path.with_suffix(".old").rename(path)


def _write_log(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_LOG)
        writer.writerows([f"{x:.2f}" if isinstance(x, float) else x for x in row] for row in rows)


def _check_same(path: Path, config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=2, default=str)
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{path} is of another configuration: choose another --out, or repeat that one's settings")
    write_atomically(path, text.encode())


if __name__ == "__main__":
    import tyro

    print(f"best return on validation episodes: {train(tyro.cli(Args)):.1f}")
