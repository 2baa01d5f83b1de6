"""Meta-World's 50 tasks (v3) as environments.

An episode's start is what Meta-World's own `set_task` and `reset` give for a random vector, and the vector is drawn
from the episode's seed. Meta-World keeps two kinds of state besides the simulator's, both restored with it: places of
objects and goals written into the model, and attributes of its Python objects that rewards read.

Cameras: several of Meta-World's hang upside down, so that pictures come mirrored on both axes. They are rolled upright
once, in the model, when it is loaded; nothing flips frames. The default, corner4, is corner2 moved nearer to the table,
as is usual for learning from pixels.
"""

import functools
import importlib.metadata
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mujoco as _mujoco
import numpy as np
from metaworld.env_dict import ENV_CLS_MAP

from collectors.envs.base import EnvConfig, EnvEntry, EnvSpec, VariationConfig
from collectors.envs.joints import read_columns
from collectors.envs.metaworld_columns import computed_state, describe, object_joints, shown_by
from collectors.envs.state import read_integration, read_model, refresh, write_integration, write_model
from collectors.envs.variation import vary
from collectors.rendering import FrameRenderer

mujoco: Any = _mujoco  # its compiled modules have no stubs

ACTION_REPEAT = 1
_PREFIX = "metaworld/"
_DEFAULT_CAMERA = "corner4"
_CORNER4 = ("corner2", (0.75, 0.075, 0.7))
"""The camera that corner4 is, and where it is moved to."""
_COPIED = (bool, int, float, np.generic, np.ndarray, list, type(None))
"""Types of the attributes by which a task remembers things; the others are the simulator, spaces and settings."""
_DIVERGED = [
    int(kind)
    for kind in (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
]
_RESTING_STEPS = 50
"""Control steps in which the hand reaches a random configuration, as many as Meta-World's own reset takes."""
_RANGE = 0.7
"""Share of a range, about its middle, that random configurations cover."""


@dataclass(frozen=True, slots=True)
class MetaWorldState:
    """A saved simulator: MuJoCo's integration state, the model fields, and what the task remembers."""

    integration: np.ndarray
    model: dict[str, np.ndarray]
    task: dict[str, Any]
    observation: np.ndarray
    success: bool
    variation: Mapping[str, Any]


def task_names() -> list[str]:
    """`metaworld/<task>` for all tasks."""
    return sorted(f"{_PREFIX}{task}" for task in ENV_CLS_MAP)


def entry(name: str) -> EnvEntry:
    """What the list of environments says of a task. All have the same arm and cameras, so one is loaded for all."""
    return EnvEntry(name, *_robot())


@functools.cache
def _robot() -> tuple[int, tuple[str, ...]]:
    env = ENV_CLS_MAP["reach-v3"]()
    return env.action_space.shape[0], tuple(_cameras(env.model))


class MetaWorldEnv:
    """One Meta-World task with a renderer of its own, made at the first frame.

    Rewards are Meta-World's. The limit of 500 steps is not obeyed: an episode has the length asked for.
    """

    def __init__(self, config: EnvConfig) -> None:
        env: Any = ENV_CLS_MAP[config.name.removeprefix(_PREFIX)]()
        self._env = env
        self._model, self._data = env.model, env.data
        cameras = _cameras(self._model)
        camera = config.camera or _DEFAULT_CAMERA
        if camera not in cameras:
            raise ValueError(f"{config.name} has no camera {camera!r}: choose from {', '.join(cameras)}")
        _upright(self._model)
        if camera == _DEFAULT_CAMERA:
            base, position = _CORNER4
            self._model.camera(base).pos = position
        self._camera = self._model.camera(_CORNER4[0] if camera == _DEFAULT_CAMERA else camera).id
        limit, env.max_path_length = env.max_path_length, sys.maxsize
        # Scripted experts read the goal. The world model never sees this observation.
        env._partially_observable = False
        del env.sawyer_observation_space  # bounds of an observation without the goal, to which steps would clip
        env._set_task_called = env.seeded_rand_vec = True
        self._unused = read_model(self._model), self._memory()
        self._factors, self._variation = VariationConfig(), {}
        described = list(describe(env, shown_by(env, self._camera, self.reset)))
        self._readers = [reader for _, reader in described if reader is not None]
        repeat = config.action_repeat or ACTION_REPEAT
        self.spec = EnvSpec(
            name=config.name,
            action_size=env.action_space.shape[0],
            columns=tuple(column for column, _ in described),
            camera=camera,
            size=config.size,
            quality=config.quality,
            action_repeat=repeat,
            dt=float(env.dt * repeat),
            max_steps=limit // repeat,
            versions={"mujoco": mujoco.__version__, "metaworld": importlib.metadata.version("metaworld")},
        )
        self._renderer: FrameRenderer | None = None
        self._factors = config.variation
        self.reset(0)

    @property
    def camera(self) -> int:
        """Number, in MuJoCo's model, of the camera that frames are rendered by."""
        return self._camera

    @property
    def task(self) -> Any:
        """Meta-World's own environment, for scripted policies. Looking is free, stepping it is not foreseen."""
        return self._env

    def observation(self) -> np.ndarray:
        """The observation (39,) float64 that Meta-World's scripted experts read, goal included.

        Hand (3), gripper opening and objects (14), the same of the step before, and the goal (3).
        """
        return self._observation.copy()

    def reset(self, seed: int) -> None:
        env = self._env
        fields, memory = self._unused
        write_model(self._model, fields)
        self._remember(memory)
        self._variation = vary(self._model, self._factors, self._camera, np.random.default_rng([seed, 2]))
        # The random vector is drawn as Meta-World draws its tasks: in a reset, which rejects some vectors.
        env.np_random = np.random.default_rng(seed)
        env._freeze_rand_vec = False
        self._reset_model()
        env._freeze_rand_vec = True
        self._reset_model()
        self._finish_reset()

    def variation(self) -> Mapping[str, Any]:
        return self._variation

    def randomize(self, rng: np.random.Generator) -> None:
        """Move to a random configuration: the hand anywhere in its range with a random grip, doors and the like too."""
        env, model, data = self._env, self._model, self._data
        for joint in object_joints(model):
            if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE and model.jnt_limited[joint]:
                low, high = model.jnt_range[joint]
                data.qpos[model.jnt_qposadr[joint]] = _inside(low, high, rng)
        hand, grip = _inside(env.mocap_low, env.mocap_high, rng), rng.uniform(-1, 1)
        for _ in range(_RESTING_STEPS):
            data.mocap_pos[:] = hand
            env.do_simulation([grip, -grip], env.frame_skip)
        self._finish_reset()

    def step(self, action: np.ndarray) -> float:
        clipped, total = np.clip(action, -1.0, 1.0), 0.0
        for _ in range(self.spec.action_repeat):
            self._observation, reward, _, _, info = self._env.step(clipped)
            total += float(reward)
            self._success = bool(info["success"])
        # MuJoCo begins again by itself where the physics diverges, and only counts that.
        if self._data.warning.number[_DIVERGED].any():
            raise FloatingPointError("the physics diverged")
        return total

    def render(self) -> np.ndarray:
        if self._renderer is None:
            spec = self.spec
            self._renderer = FrameRenderer(self._model, size=spec.size, camera=self._camera, quality=spec.quality)
        return self._renderer.render(self._data)

    def physical_state(self) -> np.ndarray:
        return np.concatenate([computed_state(self._env), read_columns(self._data, self._readers)]).astype(np.float32)

    def get_state(self) -> MetaWorldState:
        return MetaWorldState(
            read_integration(self._model, self._data),
            read_model(self._model),
            self._memory(),
            self._observation.copy(),
            self._success,
            self._variation,
        )

    def set_state(self, state: MetaWorldState) -> None:
        write_model(self._model, state.model)
        self._remember(state.task)
        write_integration(self._model, self._data, state.integration)
        self._observation, self._success = state.observation.copy(), state.success
        self._variation = state.variation

    def success(self) -> bool:
        """Whether the last step ended in a state that Meta-World counts as success; False right after a reset."""
        return self._success

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()

    def _reset_model(self) -> None:
        mujoco.mj_resetData(self._model, self._data)
        self._env.curr_path_length = 0
        self._env.reset_model()

    def _finish_reset(self) -> None:
        """Begin with what was placed last where it is shown, and no step before this one."""
        refresh(self._model, self._data)
        env = self._env
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._observation, self._success = env._get_obs(), False

    def _memory(self) -> dict[str, Any]:
        """The attributes by which the task remembers. Views into the simulator follow it by themselves."""
        attributes = {name: value for name, value in vars(self._env).items() if isinstance(value, _COPIED)}
        return deepcopy({name: value for name, value in attributes.items() if not _is_view(value)})

    def _remember(self, memory: dict[str, Any]) -> None:
        vars(self._env).update(deepcopy(memory))


def _cameras(model: Any) -> list[str]:
    return [_DEFAULT_CAMERA, *(model.camera(index).name for index in range(model.ncam))]


def _upright(model: Any) -> None:
    """Roll every camera whose upper edge is below its lower one by half a turn about its line of sight."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for camera in range(model.ncam):
        if data.cam_xmat[camera].reshape(3, 3)[2, 1] < -1e-6:
            w, x, y, z = model.cam_quat[camera]
            model.cam_quat[camera] = (-z, y, -x, w)
            model.cam_mat0[camera] *= (-1, -1, 1) * 3  # a camera that tracks a body keeps this orientation


def _inside(low: Any, high: Any, rng: np.random.Generator) -> Any:
    """Uniform over most of a range."""
    low, high = np.asarray(low), np.asarray(high)
    centre, half = (low + high) / 2, _RANGE * (high - low) / 2
    return rng.uniform(centre - half, centre + half)


def _is_view(value: Any) -> bool:
    """Whether an array is a view into the simulator's memory, which MuJoCo and not numpy owns."""
    while isinstance(value, np.ndarray) and value.base is not None:
        value = value.base
    return not isinstance(value, _COPIED)
