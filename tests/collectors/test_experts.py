"""Experts reach what they are for, and change nothing but what their actions change."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from collectors.envs.base import EnvConfig
from collectors.policies import ExpertConfig, OracleConfig, RandomConfig, make_policy

pytestmark = pytest.mark.usefixtures("gl")


def episode(name, config, seed, steps=None):
    """Return of an episode, and whether it was a success at any step."""
    from collectors.envs import make_env

    env = make_env(EnvConfig(name=name))
    try:
        policy = make_policy(config, env.spec)
        env.reset(seed)
        policy.reset(env, np.random.default_rng(seed))
        total, solved = 0.0, False
        for _ in range(steps or env.spec.max_steps):
            action = policy.act(env)
            assert action.shape == (env.spec.action_size,)
            assert action.dtype == np.float32
            assert np.abs(action).max() <= 1
            total += env.step(action)
            solved = solved or bool(env.success())
        return total, solved
    finally:
        env.close()


@pytest.mark.parametrize(("name", "least"), [("dmc/reacher-easy", 930), ("dmc/reacher-hard", 900)])
def test_reacher_is_reached(name, least):
    assert min(episode(name, ExpertConfig(), seed)[0] for seed in range(4)) > least


@pytest.mark.parametrize("task", ["pick-place-v3", "drawer-open-v3"])
def test_scripts_of_meta_world_succeed(task):
    assert all(episode(f"metaworld/{task}", ExpertConfig(), seed, 200)[1] for seed in range(2))


@pytest.mark.slow
def test_most_scripts_of_meta_world_succeed():
    from collectors.envs import environment_names

    names = [name for name in environment_names() if name.startswith("metaworld/")]
    rates = {name: np.mean([episode(name, ExpertConfig(), seed)[1] for seed in range(5)]) for name in names}
    assert len(rates) == 50
    assert np.mean(list(rates.values())) > 0.9, rates


def test_a_shipped_actor_walks():
    total, _ = episode("dmc/walker-walk", ExpertConfig(), 20_000)
    assert total > 800


def test_an_actor_is_linear_layers_with_relu_and_tanh(tmp_path, monkeypatch):
    from collectors.experts import learned

    rng = np.random.default_rng(0)
    sizes = (5, 7, 6, 2)
    arrays = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        arrays[f"{number}.weight"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
        arrays[f"{number}.bias"] = rng.normal(size=outputs).astype(np.float32)
    save_file(arrays, tmp_path / "some-task.safetensors")
    monkeypatch.setattr(learned, "WEIGHTS", tmp_path)
    assert learned.available() == ["dmc/some-task"]
    x = rng.normal(size=5).astype(np.float32)

    class Shown:
        def observation(self):
            return x

    expected = x
    for number in range(3):
        expected = arrays[f"{number}.weight"] @ expected + arrays[f"{number}.bias"]
        expected = np.tanh(expected) if number == 2 else np.maximum(expected, 0)
    expert = learned.LearnedExpert("dmc/some-task")
    np.testing.assert_allclose(expert.act(Shown()), expected, rtol=1e-5)  # pyright: ignore[reportArgumentType]


def test_there_is_no_expert_for_every_task():
    from collectors.envs import make_env

    env = make_env(EnvConfig(name="dmc/humanoid-run", size=32))
    with pytest.raises(ValueError, match="no expert for dmc/humanoid-run: use --policy oracle"):
        make_policy(ExpertConfig(), env.spec)
    env = make_env(EnvConfig(name="metaworld/reach-v3", size=32))
    with pytest.raises(ValueError, match="oracle plans for dm_control tasks, not for metaworld/reach-v3"):
        make_policy(OracleConfig(), env.spec)


def test_the_oracle_beats_chance_and_only_reads_the_simulator():
    from collectors.envs import make_env

    name = "dmc/cartpole-balance"
    env = make_env(EnvConfig(name=name))
    config = OracleConfig(samples=12, horizon=0.6, rewards=5)
    oracle = make_policy(config, env.spec)
    env.reset(3)
    oracle.reset(env, np.random.default_rng(0))
    before = env.get_state()
    first = oracle.act(env)
    after = env.get_state()
    np.testing.assert_array_equal(before.integration, after.integration)
    for field, value in before.model.items():
        np.testing.assert_array_equal(value, after.model[field])
    oracle.reset(env, np.random.default_rng(0))
    np.testing.assert_array_equal(oracle.act(env), first)
    env.close()
    assert episode(name, config, 3, 150)[0] > 270
    assert episode(name, RandomConfig(), 3, 150)[0] < 240


def test_more_threads_plan_the_same():
    from collectors.envs import make_env

    plans = []
    for threads in (1, 2):
        env = make_env(EnvConfig(name="dmc/walker-walk"))
        oracle = make_policy(OracleConfig(samples=8, horizon=0.3, rewards=3, threads=threads), env.spec)
        env.reset(0)
        oracle.reset(env, np.random.default_rng(0))
        plans.append([env.step(oracle.act(env)) for _ in range(6)])
        env.close()
    assert plans[0] == plans[1]


def test_the_oracle_checks_its_settings():
    changes: tuple[dict[str, Any], ...] = (
        {"samples": 1},
        {"knots": 1},
        {"rewards": 0},
        {"replan": 0},
        {"horizon": 0.0},
        {"scale": -1.0},
    )
    for change in changes:
        with pytest.raises(ValueError, match=f"oracle {next(iter(change))}"):
            OracleConfig(**change)
