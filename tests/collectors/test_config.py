"""The hash of a configuration has what shapes an episode, and nothing else."""

import pytest

from collectors.config import CollectConfig, as_recorded
from collectors.envs import EnvConfig, make_env
from collectors.policies import ExpertConfig, MixtureConfig, NoiseConfig, OracleConfig, named_policy
from collectors.rollout import episode_seed
from shards.codec import encode


def config(threads: int, samples: int = 4) -> CollectConfig:
    oracle = OracleConfig(samples=samples, horizon=0.1, rewards=2, threads=threads)
    return CollectConfig(env=EnvConfig(name="dmc/cartpole-swingup", size=16), policy=oracle, steps=3)


def mixed(threads: int) -> CollectConfig:
    oracle = OracleConfig(threads=threads)
    policy = MixtureConfig(policies=(NoiseConfig(), oracle))
    return CollectConfig(env=EnvConfig(name="dmc/cartpole-swingup"), policy=policy)


def test_threads_are_not_hashed():
    assert config(1).config8 == config(4).config8
    assert config(1).config8 != config(1, samples=5).config8
    assert mixed(1).config8 == mixed(4).config8
    assert as_recorded(ExpertConfig(noise=0.5)) == ExpertConfig(noise=0.5)


@pytest.mark.parametrize(
    ("name", "policy", "hashed"),
    [
        ("dmc/walker-walk", "random", "c620c86f"),
        ("dmc/walker-walk", "oracle", "975551a9"),
        ("dmc/cartpole-swingup", "expert", "60071115"),
    ],
)
def test_hashes_stay_what_they_are(name, policy, hashed):
    """They are in the keys of datasets that exist: another hash is another dataset."""
    assert CollectConfig(env=EnvConfig(name=name), policy=named_policy(policy)).config8 == hashed


def test_episodes_share_no_seed():
    """With 32 bits, 200,000 episodes would have about five equal pairs."""
    seeds = {episode_seed(0, number) for number in range(100_000)} | {episode_seed(1, n) for n in range(100_000)}
    assert len(seeds) == 200_000
    assert max(seeds) < 2**53


@pytest.mark.parametrize("policy", ["expert", "mixed"])
def test_other_weights_of_a_learned_expert_are_another_dataset(gl, monkeypatch, tmp_path, policy):
    from collectors.experts import learned
    from collectors.rollout import record_episode

    config = CollectConfig(env=EnvConfig(name="dmc/walker-walk", size=16), policy=named_policy(policy), steps=2)
    before = config.config8
    env = make_env(config.env)
    recorded = [record_episode(env, config, number).info.policy for number in range(4)]
    env.close()
    of_experts = [policy["weights"] for policy in recorded if policy["kind"] == "expert"]
    assert set(of_experts) == {learned.weights_digest("dmc/walker-walk")}
    assert all("weights" not in policy for policy in recorded if policy["kind"] != "expert")

    (tmp_path / "walker-walk.safetensors").write_bytes(b"others")
    monkeypatch.setattr(learned, "WEIGHTS", tmp_path)
    learned.weights_digest.cache_clear()
    after = config.config8
    monkeypatch.undo()
    learned.weights_digest.cache_clear()
    assert after != before == config.config8


def test_threads_change_no_episode(gl):
    from collectors.rollout import record_episode

    env = make_env(config(1).env)
    one, two = (encode(record_episode(env, config(threads), 0), "jpeg") for threads in (1, 2))
    env.close()
    assert one == two
