"""What a collection is: the configuration whose hash is in every episode's key."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from collectors.envs.base import EnvConfig
from collectors.policies import ExpertConfig, MixtureConfig, NoiseConfig, RandomConfig
from shards.codec import Encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """Everything that decides what the episodes are. `episodes` and `seed` only decide which of them are recorded."""

    env: EnvConfig
    policy: RandomConfig | NoiseConfig | ExpertConfig | MixtureConfig = field(default_factory=RandomConfig)
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
        values = {name: value for name, value in asdict(self).items() if name not in ("episodes", "seed")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
