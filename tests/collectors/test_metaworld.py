"""Meta-World: the simulator's own starts and rewards, upright pictures, columns that mean what they say."""

import pickle

import numpy as np
import pytest

from collectors.envs.base import EnvConfig

TASKS = (
    "assembly-v3",
    "box-close-v3",
    "coffee-push-v3",
    "door-lock-v3",
    "drawer-open-v3",
    "pick-place-v3",
    "stick-pull-v3",
    "window-close-v3",
)


@pytest.fixture
def make(gl):
    """Environments by task, closed at the end."""
    from collectors.envs import make_env

    made = []

    def make(task: str, **config):
        made.append(make_env(EnvConfig(name=f"metaworld/{task}", **config)))
        return made[-1]

    yield make
    for env in made:
        env.close()


def actions(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32)


def test_going_back_from_a_simulation_that_diverged_forgets_that_it_did(make):
    env = make("reach-v3")
    saved = env.get_state()
    env.task.data.qvel[:] = 1e12
    with pytest.raises(FloatingPointError, match="diverged"):
        env.step(np.zeros(4, np.float32))
    env.set_state(saved)
    assert np.isfinite(env.step(np.zeros(4, np.float32)))


def check_against_the_simulator(env, steps: int) -> None:
    """The same random vector and actions give the same physics, rewards and success as Meta-World by itself."""
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.types import Task

    task = env.spec.name.removeprefix("metaworld/")
    env.reset(9)
    env.step(np.ones(4, np.float32))
    env.reset(3)
    own = ENV_CLS_MAP[task]()
    vector = {"rand_vec": env.task._last_rand_vec, "env_cls": type(own), "partially_observable": False}
    own.set_task(Task(env_name=task, data=pickle.dumps(vector)))
    own.reset()
    np.testing.assert_array_equal(env.task.data.qpos, own.data.qpos)
    observation = np.empty(0)
    for action in actions(steps):
        observation, reward, _, _, info = own.step(action)
        assert env.step(action) == reward
        assert env.success() == bool(info["success"])
    np.testing.assert_array_equal(env.task.data.qpos, own.data.qpos)
    np.testing.assert_array_equal(env.task.model.body_pos, own.model.body_pos)
    np.testing.assert_array_equal(env.observation()[[0, 1, 2, 36, 37, 38]], observation[[0, 1, 2, 36, 37, 38]])


@pytest.mark.parametrize("task", TASKS)
def test_starts_and_rewards_are_the_simulators_own(make, task):
    check_against_the_simulator(make(task), steps=30)


@pytest.mark.slow
def test_starts_and_rewards_of_every_task_are_the_simulators_own(make, gl):
    from collectors.envs import environment_names

    tasks = [name.removeprefix("metaworld/") for name in environment_names() if name.startswith("metaworld/")]
    assert len(tasks) == 50
    for task in tasks:
        check_against_the_simulator(make(task), steps=100)


def test_goals_and_objects_differ_by_seed_and_come_from_the_whole_range(make):
    env = make("pick-place-v3")
    names = [column.name for column in env.spec.columns]
    where = [names.index(name) for name in ("object_x", "object_y", "goal_x", "goal_y", "goal_z")]
    starts = []
    for seed in range(40):
        env.reset(seed)
        starts.append(env.physical_state()[where])
    low, high = np.min(starts, axis=0), np.max(starts, axis=0)
    np.testing.assert_allclose(low, [-0.1, 0.6, -0.1, 0.8, 0.05], atol=0.05)
    np.testing.assert_allclose(high, [0.1, 0.7, 0.1, 0.9, 0.3], atol=0.05)


def test_columns_mean_what_they_say(make):
    env = make("pick-place-v3", action_repeat=2)
    columns = {column.name: number for number, column in enumerate(env.spec.columns)}
    env.reset(0)
    seen = env.observation()
    state = env.physical_state()
    np.testing.assert_allclose(state[:3], seen[:3], rtol=1e-6)
    np.testing.assert_allclose(state[columns["gripper_opening"]], 0.1 * seen[3], rtol=0.05)
    np.testing.assert_allclose(state[[columns[f"object_{axis}"] for axis in "xyz"]], seen[4:7], rtol=1e-6)
    np.testing.assert_allclose(state[[columns[f"goal_{axis}"] for axis in "xyz"]], seen[36:], rtol=1e-6)
    states = []
    for _ in range(10):
        env.step(np.array([0.5, 0.0, 0.5, 1.0], np.float32))
        states.append(env.physical_state())
    before, after = states[-2:]
    # Velocity is what the position did, over two control steps; the grip closed.
    for axis in "xz":
        moved = after[columns[f"hand_{axis}"]] - before[columns[f"hand_{axis}"]]
        speed = (after[columns[f"hand_velocity_{axis}"]] + before[columns[f"hand_velocity_{axis}"]]) / 2
        assert moved > 0.001
        assert moved == pytest.approx(speed * env.spec.dt, rel=0.1)
    assert after[columns["gripper_opening"]] < state[columns["gripper_opening"]] - 0.01
    assert env.spec.dt == pytest.approx(0.025)
    assert env.spec.max_steps == 250


def test_doors_and_drawers_have_their_joints(make):
    names = {task: [column.name for column in make(task).spec.columns] for task in ("door-open-v3", "hammer-v3")}
    assert "object_angle" in names["door-open-v3"]
    assert "object_angular_velocity" in names["door-open-v3"]
    assert {"object_x", "object2_x", "hammerbody_quaternion_w"} <= set(names["hammer-v3"])


def test_observability_follows_the_camera_and_what_is_drawn(make):
    def seen(task: str, camera: str | None = None) -> dict[str, str]:
        return {column.name: column.observable for column in make(task, camera=camera).spec.columns}

    shown = seen("pick-place-v3")
    assert shown["goal_x"] == shown["object_x"] == shown["hand_x"] == shown["gripper_opening"] == "one_frame"
    assert shown["hand_velocity_x"] == shown["object_velocity_x"] == "several_frames"
    on_the_hand = seen("pick-place-v3", "gripperPOV")
    assert on_the_hand["gripper_opening"] == "one_frame"
    assert on_the_hand["goal_x"] == on_the_hand["hand_x"] == on_the_hand["hand_velocity_x"] == "hidden"
    # Nothing is drawn where the lock's goal is.
    assert seen("door-lock-v3")["goal_x"] == "hidden"
    # Where the hand starts near the robot, the elbow is outside the picture.
    assert seen("hammer-v3")["right_j2_angle"] == seen("hammer-v3")["right_j2_angular_velocity"] == "hidden"


def moved(env, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Centre (row, column) of the pixels that changed, weighted by how much."""
    change = np.abs(after.astype(int) - before.astype(int)).sum(axis=2).astype(float)
    return np.array([(change.sum(axis=1) @ np.arange(len(change))), (change.sum(axis=0) @ np.arange(len(change)))]) / (
        change.sum()
    )


@pytest.mark.parametrize("camera", ["corner4", "corner", "corner2", "corner3", "behindGripper"])
def test_pictures_are_upright(make, camera):
    """The goal, a ball, is further up in the picture when it is further up in space."""
    env = make("pick-place-v3", camera=camera, size=128)
    from collectors.envs.state import refresh

    env.reset(0)
    rows = []
    for height in (0.05, 0.3):
        env.task.model.site("goal").pos[2] = height
        refresh(env.task.model, env.task.data)
        shown = env.render()
        env.task.model.site("goal").rgba[3] = 0
        rows.append(moved(env, env.render(), shown)[0])
        env.task.model.site("goal").rgba[3] = 1
    assert rows[1] < rows[0] - 5


@pytest.mark.parametrize(("camera", "right"), [("corner4", (0, 1)), ("corner", (0, -1)), ("topview", (1, 0))])
def test_pictures_are_not_mirrored(make, camera, right):
    """Seen from the right of the table its far side is on the right, seen from the left it is on the left."""
    env = make("pick-place-v3", camera=camera, size=128)
    from collectors.envs.state import refresh

    env.reset(0)
    columns = []
    for side in (-0.1, 0.1):
        env.task.model.site("goal").pos[:] = (side * right[0], 0.7 + side * right[1], 0.1)
        refresh(env.task.model, env.task.data)
        shown = env.render()
        env.task.model.site("goal").rgba[3] = 0
        columns.append(moved(env, env.render(), shown)[1])
        env.task.model.site("goal").rgba[3] = 1
    assert columns[1] > columns[0] + 5


def test_the_default_camera_shows_object_goal_and_grip_at_64_pixels(make):
    """Painting any of them changes pixels, in either quality."""
    for quality in ("fast", "full"):
        env = make("pick-place-v3", quality=quality)
        env.reset(1)
        shown = env.render().astype(int)
        model = env.task.model
        for colors, name in (
            (model.geom_rgba, "objGeom"),
            (model.site_rgba, "goal"),
            (model.geom_rgba, "leftpad_geom"),
        ):
            row = (model.site if name == "goal" else model.geom)(name).id
            before = colors[row].copy()
            colors[row] = (1, 1, 0, 1) if name != "leftpad_geom" else (1, 0, 0, 1)
            changed = (np.abs(env.render().astype(int) - shown).sum(axis=2) > 20).sum()
            colors[row] = before
            assert changed >= 2, (quality, name)


def test_an_episode_may_be_longer_than_the_simulators_limit(make):
    env = make("reach-v3")
    env.reset(0)
    rewards = [env.step(np.zeros(4, np.float32)) for _ in range(520)]
    assert np.isfinite(rewards).all()
    assert env.spec.max_steps == 500


def test_success_is_of_the_present_state(make):
    env = make("reach-v3")
    env.reset(0)
    assert env.success() is False
    solved = []
    for _ in range(100):
        hand, goal = env.observation()[:3], env.observation()[36:]
        env.step(np.clip(np.append(10 * (goal - hand), 0), -1, 1).astype(np.float32))
        solved.append(env.success())
    assert solved[-1]
    assert not solved[0]
    saved = env.get_state()
    for _ in range(60):
        env.step(np.array([0, -1, 0, 0], np.float32))
    assert env.success() is False
    env.set_state(saved)
    assert env.success() is True


def test_a_saved_state_also_fits_another_environment_of_the_task(make):
    env, other = make("box-close-v3"), make("box-close-v3")
    env.reset(0)
    for action in actions(20):
        env.step(action)
    other.set_state(pickle.loads(pickle.dumps(env.get_state())))
    np.testing.assert_array_equal(env.render(), other.render())
    for action in actions(20, seed=1):
        assert env.step(action) == other.step(action)
        np.testing.assert_array_equal(env.observation(), other.observation())


def test_random_configurations_move_hand_and_door(make):
    env = make("door-close-v3")
    names = [column.name for column in env.spec.columns]
    where = [names.index(name) for name in ("hand_x", "hand_y", "hand_z", "object_angle")]
    rng, states = np.random.default_rng(0), []
    for _ in range(20):
        env.reset(0)
        env.randomize(rng)
        states.append(env.physical_state()[where])
    assert (np.std(states, axis=0) > (0.1, 0.05, 0.05, 0.1)).all()


def test_physics_that_diverges_is_an_error_and_not_a_new_start(make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo keeps a log of this in the working directory
    env = make("reach-v3")
    env.reset(0)
    env.task.data.qvel[:] = 1e12
    with pytest.raises(FloatingPointError, match="diverged"):
        env.step(np.zeros(4, np.float32))
