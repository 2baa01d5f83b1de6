"""Behaviour: typed policy configurations, and the policies that they make.

An episode's policy is drawn by the episode's seed and recorded with it. Coverage matters more than expertise: a
planner must not be able to exploit states that the model never saw, so demonstrations come at several noise levels.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from collectors.envs.base import Env, EnvSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomConfig:
    """Independent uniform actions."""

    kind: Literal["random"] = "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseConfig:
    """Coloured noise: an AR(1) process of standard deviation `scale`, clipped to the action range."""

    kind: Literal["noise"] = "noise"
    correlation: float = 0.9
    """Of successive actions; 0 is white noise."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must be in [0, 1), not {self.correlation}")
        if self.scale < 0:
            raise ValueError(f"scale must not be negative, not {self.scale}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertConfig:
    """The task's scripted expert, plus `noise` times coloured noise that is clipped to [-1, 1] as in NoiseConfig.

    The clip makes the standard deviation of what is added 0.72 `noise`.
    """

    kind: Literal["expert"] = "expert"
    noise: float = 0.0
    correlation: float = 0.9

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, not {self.noise}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must be in [0, 1), not {self.correlation}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleConfig:
    """Predictive sampling on the true simulator, for dm_control tasks: strong, and slow (`experts.oracle`)."""

    kind: Literal["oracle"] = "oracle"
    samples: int = 64
    """Plans tried at a time."""
    horizon: float = 1.2
    """Seconds that a plan looks ahead."""
    knots: int = 6
    """Points of a plan's spline."""
    rewards: int = 16
    """Moments of a plan, evenly spaced, at which the task's reward is asked for."""
    replan: int = 2
    """Decisions between plans."""
    scale: float = 0.5
    """Standard deviation of what is added to a knot."""
    threads: int = 1
    """Threads that roll out. They change the speed alone."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("knots", 2), ("rewards", 1), ("replan", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"oracle {name} must be at least {least}, not {getattr(self, name)}")
        for name in ("horizon", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"oracle {name} must be positive, not {getattr(self, name)}")


SinglePolicy = RandomConfig | NoiseConfig | ExpertConfig | OracleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """One of several policies for each episode, drawn with equal probability by the episode's seed."""

    policies: tuple[SinglePolicy, ...]
    kind: Literal["mixture"] = "mixture"

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("a mixture needs at least one policy")


AnyPolicy = SinglePolicy | MixtureConfig

PolicyName = Literal["random", "noise", "expert", "oracle", "mixed"]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


class Policy(Protocol):
    """Chooses actions in [-1, 1]. It may look at the simulator; the world model never does."""

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        """Begin an episode; all randomness comes from `rng`."""
        ...

    def act(self, env: Env) -> np.ndarray:
        """The action (A,) float32 for the present state."""
        ...


def named_policy(name: str) -> AnyPolicy:
    """The policy that a word of the command line means.

    `mixed` is three parts coloured noise and four parts noisy expert. Noise must outlast a block of actions for a model
    to learn what actions do: white noise averages out, and an expert without noise explores nothing.
    """
    if name == "random":
        return RandomConfig()
    if name == "noise":
        return NoiseConfig()
    if name == "expert":
        return ExpertConfig()
    if name == "oracle":
        return OracleConfig()
    if name == "mixed":
        noises = tuple(NoiseConfig(correlation=c, scale=s) for c, s in ((0.8, 1.0), (0.9, 0.5), (0.9, 1.0)))
        experts = tuple(ExpertConfig(noise=noise) for noise in (0.1, 0.3, 0.6, 1.0))
        return MixtureConfig(policies=noises + experts)
    raise ValueError(f"unknown policy {name!r}: choose from {', '.join(POLICY_NAMES)}")


def components(config: AnyPolicy) -> tuple[SinglePolicy, ...]:
    """Every policy that an episode may get."""
    return config.policies if isinstance(config, MixtureConfig) else (config,)


def draw(config: AnyPolicy, rng: np.random.Generator) -> SinglePolicy:
    """The policy of one episode."""
    if isinstance(config, MixtureConfig):
        return config.policies[int(rng.integers(len(config.policies)))]
    return config


def make_policy(config: SinglePolicy, spec: EnvSpec) -> Policy:
    """The policy that a configuration means in an environment; ValueError where there is no expert."""
    if isinstance(config, RandomConfig):
        return RandomPolicy(spec)
    if isinstance(config, NoiseConfig):
        return NoisePolicy(config, spec)
    if isinstance(config, OracleConfig):
        if not spec.name.startswith("dmc/"):
            raise ValueError(f"the oracle plans for dm_control tasks, not for {spec.name}: use --policy expert")
        from collectors.experts.oracle import Oracle

        return Oracle(config)
    from collectors.experts import make_expert

    return NoisyExpert(make_expert(spec), config, spec)


class RandomPolicy:
    """Independent uniform actions."""

    def __init__(self, spec: EnvSpec) -> None:
        self._size = spec.action_size

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, env: Env) -> np.ndarray:
        return self._rng.uniform(-1, 1, self._size).astype(np.float32)


class NoisePolicy:
    """a[t] = c a[t-1] + scale sqrt(1 - c^2) n[t], before clipping; stationary from the first step."""

    def __init__(self, config: NoiseConfig, spec: EnvSpec) -> None:
        self._correlation, self._scale, self._size = config.correlation, config.scale, spec.action_size

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng = rng
        self._value = self._scale * rng.normal(size=self._size)

    def act(self, env: Env) -> np.ndarray:
        action = np.clip(self._value, -1, 1).astype(np.float32)
        fresh = self._scale * np.sqrt(1 - self._correlation**2) * self._rng.normal(size=self._size)
        self._value = self._correlation * self._value + fresh
        return action


class NoisyExpert:
    """An expert's action with coloured noise added, clipped."""

    def __init__(self, expert: Policy, config: ExpertConfig, spec: EnvSpec) -> None:
        self._expert, self._scale = expert, config.noise
        self._noise = NoisePolicy(NoiseConfig(correlation=config.correlation), spec)

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._expert.reset(env, rng)
        self._noise.reset(env, rng)

    def act(self, env: Env) -> np.ndarray:
        action = self._expert.act(env) + self._scale * self._noise.act(env)
        return np.clip(action, -1, 1).astype(np.float32)
