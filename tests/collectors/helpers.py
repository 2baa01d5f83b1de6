"""What the tests of the fleet share: a small collection, and the same recorded without a fleet."""

from collections.abc import Iterable
from pathlib import Path

from collectors.config import CollectConfig
from collectors.envs import EnvConfig, make_env
from collectors.fleet import UNIT
from collectors.policies import named_policy
from collectors.rollout import record_episode
from shards.manifest import assemble
from shards.writer import ShardWriter

CONFIG = CollectConfig(
    env=EnvConfig(name="dmc/cartpole-swingup", size=32),
    policy=named_policy("mixed"),
    episodes=2 * UNIT + 3,
    steps=10,
    random_start=0.5,
)


def prefix(config: CollectConfig) -> str:
    return f"dmc-cartpole-swingup-{config.config8}-{config.seed}"


def keys(config: CollectConfig, numbers: Iterable[int]) -> list[str]:
    return [f"{prefix(config)}-{number:08d}" for number in numbers]


def record_here(config: CollectConfig, out: Path) -> None:
    """The episodes of `config` in one shard, recorded in this process and committed under the name the fleet uses."""
    env = make_env(config.env)
    with ShardWriter(out, f"{prefix(config)}-00000000-00") as writer:
        for number in range(config.episodes):
            writer.write(record_episode(env, config, number))
    env.close()


def digest_here(config: CollectConfig, out: Path) -> str:
    """The digest of the episodes of `config`, recorded in this process."""
    record_here(config, out)
    return assemble(out).digest
