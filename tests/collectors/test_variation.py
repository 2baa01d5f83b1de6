"""Factors of variation: off means off, drawn by the seed, no drift over episodes, restored with a state, recorded."""

import dataclasses
import json

import numpy as np
import pytest

from collectors.envs.base import Env, EnvConfig, VariationConfig

FACTORS = tuple(factor.name for factor in dataclasses.fields(VariationConfig))
ALL = VariationConfig(colors=0.5, lighting=0.5, camera=0.5, friction=0.5, masses=0.5)
NAMES = ("dmc/walker-walk", "dmc/reacher-easy", "metaworld/drawer-open-v3")


@pytest.fixture
def make(gl):
    """Environments by name, closed at the end."""
    from collectors.envs import make_env

    made = []

    def make(name: str, variation: VariationConfig | None = None) -> Env:
        made.append(make_env(EnvConfig(name=name, variation=variation or VariationConfig())))
        return made[-1]

    yield make
    for env in made:
        env.close()


def episode(env: Env, seed: int, steps: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """First and last frame, states, and rewards of an episode with random actions."""
    env.reset(seed)
    first, states, rewards = env.render(), [env.physical_state()], []
    for action in np.random.default_rng(0).uniform(-1, 1, (steps, env.spec.action_size)).astype(np.float32):
        rewards.append(env.step(action))
        states.append(env.physical_state())
    return first, env.render(), np.stack(states), rewards


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_a_function_of_its_seed_whatever_came_before(make, name):
    env, fresh = make(name, ALL), make(name, ALL)
    for seed in (4, 5, 6):
        episode(env, seed, steps=3)
    again = episode(env, 7)
    for value, expected in zip(again, episode(fresh, 7), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert env.variation() == fresh.variation()
    fresh.reset(8)
    assert env.variation() != fresh.variation()


@pytest.mark.parametrize("name", NAMES)
def test_a_varied_state_comes_back_exactly(make, name):
    env = make(name, ALL)
    env.reset(1)
    env.step(np.zeros(env.spec.action_size, np.float32))
    saved, drawn, before = env.get_state(), env.variation(), env.render()
    action = np.full(env.spec.action_size, 0.5, np.float32)
    rewards = [env.step(action) for _ in range(20)]
    after = env.physical_state()
    env.reset(2)
    env.set_state(saved)
    np.testing.assert_array_equal(env.render(), before)
    assert [env.step(action) for _ in range(20)] == rewards
    np.testing.assert_array_equal(env.physical_state(), after)
    assert env.variation() == drawn


@pytest.mark.parametrize("name", ["dmc/walker-walk", "metaworld/drawer-open-v3"])
@pytest.mark.parametrize("factor", FACTORS)
def test_each_factor_changes_what_it_names_and_nothing_else(make, name, factor):
    plain = episode(make(name), 3, steps=40)
    varied_env = make(name, VariationConfig(**{factor: 1.0}))
    varied = episode(varied_env, 3, steps=40)
    assert list(varied_env.variation()) == [factor]
    if factor in ("friction", "masses"):
        if name.startswith("dmc/"):  # Meta-World's hand follows its target whatever it weighs
            np.testing.assert_array_equal(varied[2][0], plain[2][0])
            assert not np.array_equal(varied[2], plain[2])
    else:
        np.testing.assert_array_equal(varied[2], plain[2])
        assert varied[3] == plain[3]
        assert np.abs(varied[0].astype(int) - plain[0].astype(int)).mean() > 1


def test_without_strength_there_is_no_variation(make):
    env = make("dmc/walker-walk")
    env.reset(0)
    assert env.variation() == {}
    with pytest.raises(ValueError, match=r"variation of masses must be between 0 and 1, not 1\.5"):
        VariationConfig(masses=1.5)
    with pytest.raises(ValueError, match="camera"):
        VariationConfig(camera=-0.1)


def test_strength_sets_how_far_values_go(make):
    for strength in (0.2, 1.0):
        env = make("dmc/walker-walk", VariationConfig(friction=strength, masses=strength))
        masses, frictions = [], []
        for seed in range(30):
            env.reset(seed)
            drawn = env.variation()
            masses += drawn["masses"]
            frictions.append(drawn["friction"])
        for values in (masses, frictions):
            assert 1 / (1 + strength) <= min(values) < 1 - strength / 4
            assert 1 + strength / 2 < max(values) <= 1 + strength


def test_masses_take_along_what_follows_from_them(make):
    """A body's subtree weighs what its bodies weigh, and the picture's scale stays."""
    env = make("dmc/walker-walk", VariationConfig(masses=1.0))
    model = env.physics.model.ptr  # pyright: ignore[reportAttributeAccessIssue]
    extent = model.stat.extent
    total = model.body_mass.sum()
    env.reset(5)
    assert model.body_mass.sum() != pytest.approx(total, rel=1e-3)
    assert model.body_subtreemass[0] == pytest.approx(model.body_mass.sum())
    assert model.stat.extent == extent


def test_what_was_equally_coloured_stays_so(make):
    env = make("metaworld/drawer-open-v3", VariationConfig(colors=1.0))
    rgba = env.task.model.geom_rgba  # pyright: ignore[reportAttributeAccessIssue]
    before = {tuple(color) for color in rgba[:, :3]}
    env.reset(0)
    assert 1 < len({tuple(color) for color in rgba[:, :3]}) <= len(before) + 1


def test_episodes_record_their_variation_and_are_brought_back_only_with_it(gl):
    from collectors.config import CollectConfig
    from collectors.envs import make_env
    from collectors.rollout import record_episode, replay
    from shards.codec import decode, encode

    config = CollectConfig(env=EnvConfig(name="dmc/walker-walk", variation=ALL), steps=10)
    plain = CollectConfig(env=EnvConfig(name="dmc/walker-walk"), steps=10)
    assert config.config8 != plain.config8
    env, other = make_env(config.env), make_env(plain.env)
    recorded = record_episode(env, config, 0)
    unvaried = record_episode(other, plain, 0)
    assert "variation" not in unvaried.info.policy
    read = decode(recorded.info.key, dict(encode(recorded, "raw")))
    assert read.info.policy["variation"]["strength"] == dataclasses.asdict(ALL)
    assert set(read.info.policy["variation"]["drawn"]) == set(FACTORS)
    json.dumps(read.info.policy, allow_nan=False)
    env.reset(99)
    replay(env, read.info, read.action, 10)
    np.testing.assert_array_equal(env.physical_state(), read.state[10])
    with pytest.raises(ValueError, match="other factors of variation"):
        replay(other, read.info, read.action, 10)
    env.close()
    other.close()
