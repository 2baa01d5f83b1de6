"""Policies and episodes: determinism, statistics of the noise, the expert's skill, exact replay."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from collectors.config import CollectConfig
from collectors.envs.base import EnvConfig
from collectors.policies import (
    ExpertConfig,
    MixtureConfig,
    NoiseConfig,
    RandomConfig,
    draw,
    make_policy,
    named_policy,
)

CONFIG = CollectConfig(
    env=EnvConfig(name="dmc/cartpole-swingup", size=32), policy=named_policy("mixed"), steps=25, random_start=0.5
)


@pytest.fixture(scope="module")
def env(gl):
    from collectors.envs import make_env

    env = make_env(CONFIG.env)
    yield env
    env.close()


def test_an_episode_depends_on_seed_and_number_alone(env):
    from collectors.rollout import record_episode

    first = record_episode(env, CONFIG, 5)
    record_episode(env, CONFIG, 6)
    again = record_episode(env, CONFIG, 5)
    for name in ("frames", "action", "reward", "state"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.info == again.info
    assert not np.array_equal(first.action, record_episode(env, replace(CONFIG, seed=1), 5).action)


def test_replay_returns_to_every_recorded_state(env):
    from collectors.rollout import record_episode, replay

    for number in range(4):
        episode = record_episode(env, CONFIG, number)
        for steps in (0, 10, 25):
            replay(env, episode.info, episode.action, steps)
            np.testing.assert_array_equal(env.physical_state(), episode.state[steps])
            np.testing.assert_array_equal(env.render(), episode.frames[steps])


def test_the_mixture_uses_every_policy_and_records_it(env):
    from collectors.rollout import record_episode

    config = replace(CONFIG, steps=1)
    policies = [dict(record_episode(env, config, number).info.policy) for number in range(60)]
    assert {policy["kind"] for policy in policies} == {"noise", "expert"}
    assert {policy["noise"] for policy in policies if policy["kind"] == "expert"} == {0.1, 0.3, 0.6, 1.0}
    assert 15 < sum(policy["random_start"] for policy in policies) < 45


def test_coloured_noise_has_the_correlation_it_says(env):
    policy = make_policy(NoiseConfig(correlation=0.9), env.spec)
    policy.reset(env, np.random.default_rng(0))
    # Below the clip the process shows; most of N(0, 1) lies within [-1, 1].
    values = np.array([float(policy.act(env)[0]) for _ in range(20_000)])
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0.9, abs=0.05)
    assert abs(values).max() <= 1


def test_the_expert_swings_up_and_balances(env):
    from collectors.rollout import record_episode

    config = replace(CONFIG, policy=ExpertConfig(), steps=None, random_start=0.0)
    returns = []
    for number in range(3):
        episode = record_episode(env, config, number)
        assert len(episode) == 500
        assert np.cos(episode.state[0, 1]) < -0.9
        assert np.cos(episode.state[-100:, 1]).min() > 0.99
        returns.append(episode.episode_return)
    assert min(returns) > 850


def test_configurations_are_checked_and_hashed():
    assert CONFIG.config8 == replace(CONFIG, episodes=7, seed=3).config8
    assert CONFIG.config8 != replace(CONFIG, steps=26).config8
    assert CONFIG.config8 != replace(CONFIG, env=replace(CONFIG.env, size=64)).config8
    for change in ({"episodes": 0}, {"seed": -1}, {"steps": 0}, {"random_start": 1.5}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(CONFIG, **change)
    with pytest.raises(ValueError, match="correlation"):
        NoiseConfig(correlation=1.0)
    with pytest.raises(ValueError, match="scale"):
        NoiseConfig(scale=-1.0)
    with pytest.raises(ValueError, match="correlation"):
        ExpertConfig(correlation=-0.5)
    with pytest.raises(ValueError, match="noise"):
        ExpertConfig(noise=-1.0)
    with pytest.raises(ValueError, match="at least one"):
        MixtureConfig(policies=())
    with pytest.raises(ValueError, match="random, noise, expert, oracle, mixed"):
        named_policy("clever")
    assert draw(RandomConfig(), np.random.default_rng(0)) == RandomConfig()


def test_a_replay_elsewhere_is_refused(env):
    from collectors.envs import make_env
    from collectors.rollout import record_episode, replay

    episode = record_episode(env, CONFIG, 0)
    other = make_env(replace(CONFIG.env, action_repeat=4))
    with pytest.raises(ValueError, match=r"action repeat 2, .*action repeat 4"):
        replay(other, episode.info, episode.action, 1)
    other.close()
    with pytest.raises(ValueError, match="mujoco 1\\.2\\.3"):
        replay(env, replace(episode.info, versions={"mujoco": "1.2.3"}), episode.action, 1)


def test_a_simulator_that_fails_names_the_episode(env, monkeypatch):
    from collectors.rollout import EpisodeFailed, episode_seed, record_episode

    def explode(action):
        raise RuntimeError("the contact solver gave up")

    with monkeypatch.context() as patch:
        patch.setattr(env, "step", explode)
        with pytest.raises(EpisodeFailed, match=rf"episode 3 .*{episode_seed(0, 3)}.*step 0.*contact solver"):
            record_episode(env, CONFIG, 3)
    with monkeypatch.context() as patch:
        patch.setattr(env, "physical_state", lambda: np.full(4, np.nan, np.float32))
        with pytest.raises(EpisodeFailed, match=r"episode 3 .*not finite"):
            record_episode(env, CONFIG, 3)
    for reward in (np.nan, np.inf):
        with monkeypatch.context() as patch:
            patch.setattr(env, "step", lambda action, reward=reward: reward)
            with pytest.raises(EpisodeFailed, match=r"episode 3 .*step 0.*reward is not finite"):
                record_episode(env, CONFIG, 3)


def test_bad_frames_are_noticed(env, monkeypatch):
    from collectors.rollout import BadFrame, record_episode

    monkeypatch.setattr(env, "render", lambda: np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(BadFrame, match="one colour"):
        record_episode(env, CONFIG, 0)
    still = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    monkeypatch.setattr(env, "render", lambda: still)
    with pytest.raises(BadFrame, match="do not"):
        record_episode(env, CONFIG, 0)


def test_frames_that_freeze_in_the_middle_are_noticed(env, monkeypatch):
    from collectors.rollout import BadFrame, record_episode

    config, render, shown = replace(CONFIG, steps=150, policy=RandomConfig()), env.render, []

    def freeze():
        shown.append(render() if len(shown) < 60 else shown[-1])
        return shown[-1]

    record_episode(env, config, 0)
    monkeypatch.setattr(env, "render", freeze)
    with pytest.raises(BadFrame, match="the frames froze"):
        record_episode(env, config, 0)


@pytest.mark.parametrize("span", [(40, 41), (10, 20), (101, 150)])
def test_a_stretch_of_one_colour_is_noticed_wherever_it_is(env, monkeypatch, span):
    from collectors.rollout import BadFrame, record_episode

    render, count = env.render, itertools.count()
    monkeypatch.setattr(env, "render", lambda: render() * (not span[0] <= next(count) < span[1]))
    with pytest.raises(BadFrame, match=f"frame {span[0]} has one colour"):
        record_episode(env, replace(CONFIG, steps=150), 0)


def test_a_renderer_that_froze_for_a_while_is_noticed(env, monkeypatch):
    from collectors.rollout import BadFrame, record_episode

    config, render, shown = replace(CONFIG, steps=150, policy=RandomConfig()), env.render, []

    def freeze():  # from frame 70 to frame 130, across what a fixed division into hundreds would see
        shown.append(shown[-1] if 70 < len(shown) <= 130 else render())
        return shown[-1]

    monkeypatch.setattr(env, "render", freeze)
    with pytest.raises(BadFrame, match="the frames froze"):
        record_episode(env, config, 0)


def test_what_leaves_the_view_is_not_a_frozen_renderer(gl):
    from collectors.envs import make_env
    from collectors.rollout import record_episode

    env = make_env(replace(CONFIG.env, size=64))
    config = replace(CONFIG, env=replace(CONFIG.env, size=64), steps=120, seed=1)
    episode = record_episode(env, config, 43)
    env.close()
    out_of_view = np.abs(episode.state[:, 0]) > 1.7
    assert out_of_view.sum() > 20, "the episode no longer shows what it is for"
