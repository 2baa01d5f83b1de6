"""Experts learned from physical state by `trainers.experts`, as plain arrays: no torch in a collector.

What they see is the task's own observation, `Env.observation`.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from collectors.envs.base import Env

WEIGHTS = Path(__file__).parent / "weights"


class MLPActor:
    """An actor of linear layers with ReLU between them and tanh at the end, from arrays `<layer>.weight|bias`."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._layers = [(arrays[f"{n}.weight"].T, arrays[f"{n}.bias"]) for n in range(len(arrays) // 2)]

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The most probable action (A,) float32 for an observation (N,)."""
        *hidden, (weight, bias) = self._layers
        x = observation
        for w, b in hidden:
            x = np.maximum(x @ w + b, 0)
        return np.tanh(x @ weight + bias)


def available() -> list[str]:
    """Names of the environments that an actor is shipped for."""
    return sorted(f"dmc/{path.stem}" for path in WEIGHTS.glob("*.safetensors"))


@cache
def weights_digest(name: str) -> str | None:
    """The first 16 hex digits of the sha256 of the actor's file; None for an environment without one."""
    if name not in available():
        return None
    return hashlib.sha256(_file(name).read_bytes()).hexdigest()[:16]


def _file(name: str) -> Path:
    return WEIGHTS / f"{name.removeprefix('dmc/')}.safetensors"


class LearnedExpert:
    """The shipped actor of an environment, acting most probably."""

    def __init__(self, name: str) -> None:
        self._actor = MLPActor(load_file(_file(name)))

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        """Nothing to begin: the actor has no memory."""

    def act(self, env: Env) -> np.ndarray:
        return self._actor(env.observation())
