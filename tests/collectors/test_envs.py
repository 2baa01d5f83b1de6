"""Environments: pure functions of their seed, exact states, legible upright frames, named physical state."""

import numpy as np
import pytest

from collectors.envs.base import Env, EnvConfig

SAMPLE = (
    "dmc/cartpole-swingup",
    "dmc/reacher-easy",
    "dmc/walker-walk",
    "dmc/finger-turn_hard",
    "dmc/point_mass-hard",
    "dmc/manipulator-bring_ball",
    "dmc/swimmer-swimmer6",
    "dmc/lqr-lqr_2_1",
    "metaworld/pick-place-v3",
    "metaworld/drawer-close-v3",
    "metaworld/door-open-v3",
    "metaworld/bin-picking-v3",
)


@pytest.fixture(params=SAMPLE)
def env(request, gl):
    from collectors.envs import make_env

    env = make_env(EnvConfig(name=request.param, size=64))
    yield env
    env.close()


@pytest.fixture
def cartpole(gl):
    from collectors.envs import make_env

    env = make_env(EnvConfig(name="dmc/cartpole-swingup", size=64))
    yield env
    env.close()


def drive(env: Env, steps: int, seed: int) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    rng = np.random.default_rng(seed)
    states, rewards = [], []
    for _ in range(steps):
        rewards.append(env.step(rng.uniform(-1, 1, env.spec.action_size).astype(np.float32)))
        states.append(env.physical_state())
    return states, rewards, env.render()


def test_a_saved_state_comes_back_exactly(env):
    env.reset(3)
    drive(env, 5, 0)
    saved = env.get_state()
    shown = env.render()
    states, rewards, frame = drive(env, 50, 1)
    env.reset(99)
    drive(env, 3, 2)
    env.set_state(saved)
    np.testing.assert_array_equal(env.render(), shown)
    again = drive(env, 50, 1)
    np.testing.assert_array_equal(states, again[0])
    assert rewards == again[1]
    np.testing.assert_array_equal(frame, again[2])


@pytest.mark.slow
def test_every_task_starts_steps_renders_and_comes_back_exactly(gl):
    from collectors.envs import environment_names, make_env

    names = environment_names()
    assert sum(name.startswith("dmc/") for name in names) > 45
    assert sum(name.startswith("metaworld/") for name in names) == 50
    for name in names:
        env = make_env(EnvConfig(name=name, size=32))
        try:
            test_a_saved_state_comes_back_exactly(env)
            columns = [column.name for column in env.spec.columns]
            assert len(set(columns)) == len(columns) == len(env.physical_state()), name
            assert env.spec.max_steps > 0, name
            env.randomize(np.random.default_rng(0))
            assert np.isfinite(env.physical_state()).all(), name
            test_a_reset_writes_only_what_a_saved_state_holds(env)
        finally:
            env.close()


def test_reset_is_a_function_of_the_seed(env):
    env.reset(7)
    first = env.physical_state(), drive(env, 10, 0)
    env.reset(8)
    drive(env, 10, 1)
    env.reset(7)
    second = env.physical_state(), drive(env, 10, 0)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1][0], second[1][0])
    np.testing.assert_array_equal(first[1][2], second[1][2])


def test_frames_and_columns_are_what_the_spec_says(env):
    env.reset(0)
    frame = env.render()
    assert frame.shape == (64, 64, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 5
    state = env.physical_state()
    assert state.shape == (len(env.spec.columns),)
    assert state.dtype == np.float32
    assert len({column.name for column in env.spec.columns}) == len(env.spec.columns)
    assert env.spec.versions["mujoco"]


def test_cartpole_columns_mean_what_they_say(cartpole):
    names = [column.name for column in cartpole.spec.columns]
    assert names == ["cart_position", "pole_angle", "cart_velocity", "pole_angular_velocity"]
    assert cartpole.spec.columns[1].periodic
    assert cartpole.spec.dt == pytest.approx(0.02)
    cartpole.reset(0)
    before = cartpole.physical_state()
    cartpole.step(np.ones(1, np.float32))
    after = cartpole.physical_state()
    # Pushing right accelerates the cart to the right, and velocity is what the position did.
    assert after[2] > before[2]
    assert after[0] - before[0] == pytest.approx(cartpole.spec.dt * (before[2] + after[2]) / 2, rel=0.1, abs=1e-4)


def test_the_picture_is_upright_and_not_mirrored(cartpole):
    """An upright pole is in the upper half and a hanging one below; a cart further right is further right."""

    def picture(position: float, angle: float) -> np.ndarray:
        with cartpole.physics.reset_context():
            cartpole.physics.data.qpos[:] = (position, angle)
        return cartpole.render().astype(int)

    cartpole.reset(0)
    up, down, right = picture(0.0, 0.3), picture(0.0, np.pi + 0.3), picture(1.0, 0.3)
    # The pole is brighter than what is behind it.
    assert np.argmax((up - down).sum(axis=(1, 2))) < 32 < np.argmax((down - up).sum(axis=(1, 2)))
    assert np.argmax((right - up).sum(axis=(0, 2))) > 32
    # Leaning by a positive angle tips the pole towards positive positions, to the right.
    left_half, right_half = (up - down)[:28, :32].clip(0).sum(), (up - down)[:28, 32:].clip(0).sum()
    assert right_half > 3 * left_half


def test_what_a_following_camera_hides_is_declared(gl):
    from collectors.envs import make_env

    env = make_env(EnvConfig(name="dmc/walker-walk"))
    seen = {column.name: column.observable for column in env.spec.columns}
    env.close()
    assert seen["rootx_position"] == "hidden"
    assert seen["rooty_angle"] == seen["rootz_position"] == "one_frame"
    assert seen["right_hip_angle"] == "one_frame"
    assert seen["right_hip_angular_velocity"] == "several_frames"


def test_quality_changes_the_picture_and_not_the_physics(gl):
    from collectors.envs import make_env

    pictures, states = [], []
    for quality in ("fast", "full"):
        env = make_env(EnvConfig(name="dmc/walker-walk", quality=quality))
        env.reset(0)
        states.append(drive(env, 5, 0)[0])
        pictures.append(env.render().astype(int))
        env.close()
    np.testing.assert_array_equal(states[0], states[1])
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.1


def test_bad_names_and_cameras_are_refused_with_a_hint(gl):
    from collectors.envs import make_env

    with pytest.raises(ValueError, match="dmc/cartpole-swingup"):
        make_env(EnvConfig(name="dmc/cartpole-swingupp"))
    for near in ("pick-place", "dmc/pick-place-v3", "metaworld/pick-plac-v3"):
        with pytest.raises(ValueError, match="metaworld/pick-place-v3"):
            make_env(EnvConfig(name=near))
    with pytest.raises(ValueError, match="corner2"):
        make_env(EnvConfig(name="metaworld/reach-v3", camera="lookatcart"))
    with pytest.raises(ValueError, match="lookatcart"):
        make_env(EnvConfig(name="dmc/cartpole-swingup", camera="top"))
    with pytest.raises(ValueError, match="size"):
        EnvConfig(name="dmc/cartpole-swingup", size=4)
    with pytest.raises(ValueError, match="fast, full"):
        EnvConfig(name="dmc/cartpole-swingup", quality="pretty")  # pyright: ignore[reportArgumentType]


def test_terrain_that_a_reset_draws_is_what_is_shown(gl):
    """MuJoCo copies height fields when a renderer is made; later ones must be handed over."""
    from collectors.envs import make_env

    def terrain(seed: int, *, before: int | None = None, restored: bool = False) -> np.ndarray:
        env = make_env(EnvConfig(name="dmc/quadruped-escape"))
        try:
            if before is not None:
                env.reset(before)
                env.render()
            env.reset(seed)
            if restored:
                saved = env.get_state()
                env.reset(seed + 1)
                env.render()
                env.set_state(saved)
            return env.render()
        finally:
            env.close()

    shown = terrain(1)
    np.testing.assert_array_equal(shown, terrain(1, before=2))
    np.testing.assert_array_equal(shown, terrain(1, restored=True))
    assert not np.array_equal(shown, terrain(3))


def test_a_task_that_ends_early_does_not_begin_again_within_an_episode(cartpole, monkeypatch):
    cartpole.reset(0)
    expected = drive(cartpole, 4, 0)
    cartpole.reset(0)
    monkeypatch.setattr(cartpole._env.task, "get_termination", lambda physics: 0.0)
    states, rewards, _ = drive(cartpole, 4, 0)
    np.testing.assert_array_equal(states, expected[0])
    assert rewards == expected[1]


def test_a_random_configuration_leaves_the_rest_as_reset_put_it(gl):
    from collectors.envs import make_env

    env = make_env(EnvConfig(name="dmc/manipulator-bring_ball"))
    names = [column.name for column in env.spec.columns]
    ball = [names.index(f"ball_{axis}_position") for axis in "xz"]
    env.reset(0)
    before = env.physical_state()
    env.randomize(np.random.default_rng(0))
    after = env.physical_state()
    env.close()
    np.testing.assert_array_equal(before[ball], after[ball])
    assert not np.array_equal(before, after)


def test_random_configurations_cover_the_circle(cartpole):
    rng = np.random.default_rng(0)
    angles, positions = [], []
    for _ in range(100):
        cartpole.reset(0)
        cartpole.randomize(rng)
        state = cartpole.physical_state()
        angles.append(np.sign(np.cos(state[1])))
        positions.append(state[0])
    assert 0.3 < np.mean(np.array(angles) > 0) < 0.7
    assert min(positions) < -1
    assert max(positions) > 1


def test_a_reset_writes_only_what_a_saved_state_holds(env):
    """Any other field of the model that changed would be lost with a saved state."""
    from collectors.envs.state import MODEL_FIELDS

    model = env.task.model if env.spec.name.startswith("metaworld/") else env.physics.model.ptr

    def fields() -> dict[str, np.ndarray]:
        # What a model refuses to show as an array is of no interest.
        names = [name for name in dir(type(model)) if isinstance(getattr(model, name, None), np.ndarray)]
        return {name: getattr(model, name).copy() for name in names if name not in MODEL_FIELDS}

    before = fields()
    assert len(before) > 100
    for seed in (1, 2):
        env.reset(seed)
        drive(env, 2, seed)
    for name, value in fields().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.slow
def test_the_list_has_every_environment_with_its_cameras(gl):
    from collectors.envs import environment_names, list_environments

    entries = {entry.name: entry for entry in list_environments()}
    assert list(entries) == environment_names()
    assert entries["metaworld/pick-place-v3"].action_size == 4
    assert {"corner4", "topview", "gripperPOV"} <= set(entries["metaworld/pick-place-v3"].cameras)
    assert entries["dmc/walker-walk"].cameras == ("side", "back")
