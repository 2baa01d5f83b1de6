"""What a collection is: the configuration whose hash is in every episode's key."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pydantic

from collectors.envs.base import EnvConfig
from collectors.experts.learned import weights_digest
from collectors.policies import (
    AnyPolicy,
    ExpertConfig,
    MixtureConfig,
    OracleConfig,
    RandomConfig,
    SinglePolicy,
    components,
)
from shards.codec import Encoding

GENERATION = 2
"""Raised when the same configuration begins to give other episodes, so that a dataset never mixes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """Everything that decides what the episodes are. `episodes` and `seed` only decide which of them are recorded."""

    env: EnvConfig
    policy: AnyPolicy = field(default_factory=RandomConfig)
    episodes: int = 100
    seed: int = 0
    steps: int | None = None
    """Decisions an episode; the environment's own length unless given."""
    random_start: float = 0.0
    """Share of episodes that begin in a random configuration, for coverage."""
    encoding: Encoding = "jpeg"

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, not {self.episodes}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not 0 <= self.random_start <= 1:
            raise ValueError(f"random_start is a probability, not {self.random_start}")

    @property
    def config8(self) -> str:
        """The first 8 hex digits of the sha256 of all that shapes an episode: everything but `episodes` and `seed`."""
        policy = self.policy
        if isinstance(policy, MixtureConfig):
            policy = replace(policy, policies=tuple(map(as_recorded, policy.policies)))
        else:
            policy = as_recorded(policy)
        values = asdict(replace(self, policy=policy))
        del values["episodes"], values["seed"]
        values["generation"] = GENERATION
        if any(isinstance(each, ExpertConfig) for each in components(self.policy)):
            values |= weights_of(self.env.name)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def as_recorded(policy: SinglePolicy) -> SinglePolicy:
    """A policy as episodes and hashes have it: with the default for what changes its speed alone."""
    return replace(policy, threads=OracleConfig().threads) if isinstance(policy, OracleConfig) else policy


def weights_of(environment: str) -> dict[str, str]:
    """Which weights the environment's expert has, for records and hashes; empty for one that is a script."""
    digest = weights_digest(environment)
    return {} if digest is None else {"weights": digest}


def load_collect_config(path: Path) -> CollectConfig:
    """The configuration in a dataset's `collection.json`; ValueError in one line when it is none."""
    try:
        return pydantic.TypeAdapter(CollectConfig).validate_python(json.loads(path.read_text())["config"])
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {place or 'config'}: {first['msg']}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no collection.json: it has no readable config") from error
