"""Events in the real simulators: each changes what it says, nothing before it, and leaves nothing behind."""

import numpy as np
import pytest

from collectors.envs.base import EnvConfig
from collectors.policies import NoiseConfig

BEFORE, AFTER = 8, 6
CASES = {
    "dmc/cartpole-swingup": set(),
    "dmc/walker-walk": set(),
    "dmc/reacher-easy": {"teleport"},
    "metaworld/drawer-open-v3": {"pose"},
}
SCENE = ("obstacle", "teleport", "pose", "colors", "light")
PHYSICS = ("gravity", "friction", "actuator", "shuffled")


@pytest.fixture(scope="module", params=CASES)
def staged(request, gl, tmp_path_factory):
    """A stage over a small dataset that was really recorded, its clean rollout, and the recorded raw frames."""
    from collectors.config import CollectConfig
    from collectors.envs import make_env
    from collectors.rollout import record_episode
    from shards.dataset import Dataset
    from shards.manifest import assemble
    from shards.writer import ShardWriter
    from trainers.evaluation.rollouts import Moment, Stage, recorded_environment

    path = tmp_path_factory.mktemp("events")
    config = CollectConfig(
        env=EnvConfig(name=request.param), policy=NoiseConfig(scale=0.7), episodes=2, steps=24, seed=3
    )
    env = make_env(config.env)
    episodes = [record_episode(env, config, number) for number in range(2)]
    env.close()
    with ShardWriter(path, "part-00000", "jpeg") as writer:
        for episode in episodes:
            writer.write(episode)
    assemble(path)
    dataset = Dataset.open(path)
    stage = Stage(make_env(recorded_environment(dataset)), dataset, before=BEFORE, after=AFTER)
    yield stage, stage.clean(Moment(1, 14)), episodes[1].frames[14 - BEFORE : 14 + AFTER], request.param
    stage.close()


def here(stage, clean):
    from trainers.evaluation.events import EVENTS

    return stage.possible(clean, EVENTS)[0]


def test_a_clean_rollout_shows_the_recorded_frames(staged):
    _, clean, recorded, _ = staged
    np.testing.assert_array_equal(clean.frames, recorded)


def test_what_cannot_happen_is_named(staged):
    from trainers.evaluation.events import EVENTS

    stage, clean, _, name = staged
    found, missing = stage.possible(clean, EVENTS)
    assert len(found) + len(missing) == len(EVENTS)
    assert {line.split(" (")[0] for line in missing} == CASES[name]


@pytest.mark.parametrize("kind", SCENE)
def test_what_happens_to_the_scene_shows_in_the_first_frame(staged, kind):
    stage, clean, _, name = staged
    if kind in CASES[name]:
        pytest.skip("nothing here that it could happen to")
    for event in here(stage, clean):
        if event.name == kind:
            frames = stage.event(clean, event, np.random.default_rng(1))
            assert len(frames) == AFTER
            differs = np.abs(frames[0].astype(int) - clean.frames[BEFORE]).max(axis=-1) > 8
            assert differs.any(), event.label


@pytest.mark.parametrize("kind", PHYSICS)
def test_what_happens_to_physics_shows_in_time(staged, kind):
    stage, clean, _, name = staged
    if name.startswith("metaworld/") and kind in ("gravity", "friction"):
        pytest.skip("a drawer at rest and a hand that is led do not care")
    (event,) = (event for event in here(stage, clean) if event.name == kind)
    frames = stage.event(clean, event, np.random.default_rng(1))
    assert len(frames) == AFTER
    if name == "dmc/reacher-easy" and kind == "gravity":
        np.testing.assert_array_equal(frames, clean.frames[BEFORE:])  # it moves in the plane of the table
    else:
        assert not np.array_equal(frames, clean.frames[BEFORE:])


def test_events_leave_nothing_behind_and_are_functions_of_their_seed(staged):
    stage, clean, _, _ = staged
    events = here(stage, clean)
    model = stage.simulator.model
    before = {name: np.array(getattr(model, name)) for name in ("geom_rgba", "dof_damping", "geom_friction")}
    gravity = model.opt.gravity.copy()
    first = [stage.event(clean, event, np.random.default_rng(2)) for event in events]
    np.testing.assert_array_equal(model.opt.gravity, gravity)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(model, name), value)
    for event, frames in zip(reversed(events), reversed(first), strict=True):
        np.testing.assert_array_equal(stage.event(clean, event, np.random.default_rng(2)), frames, event.label)
    np.testing.assert_array_equal(stage.clean(clean.moment).frames, clean.frames)


def test_an_obstacle_is_larger_when_it_says_so(staged):
    stage, clean, _, _ = staged
    shares = []
    for event in here(stage, clean):
        if event.name == "obstacle":
            frames = stage.event(clean, event, np.random.default_rng(4))
            shares.append(float((frames[0] != clean.frames[BEFORE]).any(axis=-1).mean()))
    assert shares == sorted(shares)
    assert shares[0] > 0.0005
    assert 0.02 < shares[2] < 0.3


def test_a_change_of_state_moves_one_joint_and_no_velocity(staged):
    stage, clean, _, _ = staged
    data = stage.simulator.data
    for event in here(stage, clean):
        if event.name in ("teleport", "pose"):
            stage.env.set_state(clean.states[1])
            before, speed = data.qpos.copy(), data.qvel.copy()
            with stage._changed(clean.states[1], event, np.random.default_rng(5)):
                assert np.count_nonzero(data.qpos != before) in (1, 2)
                np.testing.assert_array_equal(data.qvel, speed)


def test_a_walkers_root_x_is_never_moved(staged):
    stage, clean, _, name = staged
    if name != "dmc/walker-walk":
        pytest.skip("of the walker")
    (address,) = stage.simulator.model.joint("rootx").qposadr
    for event in here(stage, clean):
        if event.name == "teleport":
            for seed in range(5):
                with stage._changed(clean.states[1], event, np.random.default_rng(seed)):
                    moved = stage.simulator.data.qpos.copy()
                stage.env.set_state(clean.states[1])
                assert moved[address] == stage.simulator.data.qpos[address]


def test_moments_are_inside_episodes_and_fixed_by_the_seed(staged):
    stage, _, _, _ = staged
    moments = stage.moments([0, 1], 5, seed=0)
    assert [moment.episode for moment in moments] == [0, 1]
    assert moments == stage.moments([0, 1], 5, seed=0)
    frames = {moment.frame for seed in range(40) for moment in stage.moments([0, 1], 5, seed)}
    assert frames == set(range(BEFORE, 24 - AFTER + 2))
    with pytest.raises(ValueError, match="no held-out episode"):
        stage.moments([], 5, 0)


def test_a_model_is_judged_from_dataset_to_scorecard(gl, tmp_path):
    """An untrained model on real rollouts: every event and score is there, and positives are as many as declared."""
    import torch

    from collectors.config import CollectConfig
    from collectors.envs import make_env
    from collectors.rollout import record_episode
    from models.encoders import EncoderConfig
    from models.lewm import LeWM, LeWMConfig
    from models.predictors import PredictorConfig
    from shards.dataset import Dataset
    from shards.manifest import assemble
    from shards.writer import ShardWriter
    from trainers.evaluation.events import EVENTS, Change, Event
    from trainers.evaluation.latents import held_out
    from trainers.evaluation.rollouts import Stage, recorded_environment
    from trainers.evaluation.surprise import SurpriseConfig, frames_around, judge_surprise
    from trainers.evaluation.surprise_scores import SCORES

    config = CollectConfig(
        env=EnvConfig(name="dmc/cartpole-swingup"), policy=NoiseConfig(), episodes=16, steps=24, seed=0
    )
    env = make_env(config.env)
    with ShardWriter(tmp_path, "part-00000", "jpeg") as writer:
        for number in range(16):
            writer.write(record_episode(env, config, number))
    env.close()
    assemble(tmp_path)
    dataset = Dataset.open(tmp_path)
    assert len(held_out(dataset)[0]) >= 2
    torch.manual_seed(0)
    small = LeWMConfig(
        latent_dim=8,
        frame_skip=2,
        stack=2,
        encoder=EncoderConfig(width=4, hidden=16),
        predictor=PredictorConfig(hidden=16),
    )
    model = LeWM(small, 1).eval()
    settings = SurpriseConfig(episodes=3, before=5, after=6)
    before, after = frames_around(small, settings)
    stage = Stage(make_env(recorded_environment(dataset)), dataset, before=before, after=after)
    events = tuple(event for event in EVENTS if event.label in ("obstacle (large)", "teleport (large)", "gravity"))
    calls = 0

    def explode(simulator, rng, size):
        nonlocal calls
        calls += 1  # both once to see whether they are possible, then both in every rollout
        simulator.data.qvel[:] = 1e15 if calls == 3 or size == "large" else 0.1
        return Change()

    events += (Event("explosion", "", False, explode), Event("explosion", "large", True, explode))
    seen = []
    try:
        report = judge_surprise(model, dataset, stage, events, settings, lambda done, total: seen.append((done, total)))
    finally:
        stage.close()
    card = report.scorecard
    assert seen[-1] == (card.n_episodes, card.n_episodes)
    assert len(card.scores) == (len(events) - 1) * len(SCORES)
    assert {record.frames for record in card.records if not record.lasting} == {3}
    assert {record.frames for record in card.records if record.lasting} == {after}
    # Nothing of an event shows before it.
    for record in card.records:
        curves, same = report.events[record.label], slice(record.diverged, None)
        for score in SCORES:
            np.testing.assert_array_equal(
                curves.scores[score][:, : card.before], report.clean.scores[score][same, : card.before]
            )
    assert [record.diverged for record in card.records] == [0, 0, 0, 1]
    assert card.not_here == ("explosion (large): the simulator diverged in nearly all rollouts",)
    assert np.isfinite(card.of("explosion", "", "pixels").auroc)
    moved = card.of("obstacle", "large", "pixels")
    assert moved.auroc > 0.6
    assert all(0 <= each.detection.auroc <= 1 for each in card.scores)
