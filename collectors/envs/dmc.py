"""dm_control suite tasks as environments.

Physical state columns follow the model's joints: a slide or hinge joint gives a position or angle and a velocity, a
free or ball joint its pose and velocities. Well-known domains get better names. What a camera that follows the body
cannot show (the root's place in the world) is declared hidden.
"""

import importlib.metadata
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mujoco as _mujoco
import numpy as np
from dm_control import suite

from collectors.envs.base import EnvConfig, EnvEntry, EnvSpec
from collectors.rendering import FrameRenderer
from shards.episode import StateColumn

mujoco: Any = _mujoco  # its compiled modules have no stubs

ACTION_REPEAT = 2
_CONTROL_STEPS = 1000
"""Length of an episode where the suite sets no limit, as of all its other tasks."""
_RANGE = 0.7
"""Share of a limited joint's range, about its middle, that random configurations cover: stops would only collide."""
_HINGE_SPEED, _SLIDE_SPEED = 2.0, 0.2
"""Standard deviations of a random configuration's velocities, in rad/s and m/s."""
_PREFIX = "dmc/"
_JOINT_NAMES = {"cartpole": {"slider": "cart", "hinge_1": "pole", "hinge_2": "pole_2", "hinge_3": "pole_3"}}
_ROOT_SLIDES = ("rootx", "root_x", "rooty", "root_y")
_MODEL_FIELDS = (
    "geom_pos", "geom_quat", "geom_size", "geom_rgba", "geom_friction", "body_pos", "body_quat", "body_mass",
    "body_inertia", "site_pos", "site_size", "mat_rgba", "light_pos", "cam_pos", "cam_quat", "dof_damping",
    "actuator_gear", "wrap_prm", "hfield_data",
)  # fmt: skip
"""Everything in a model that a task's reset may write: targets, sizes, terrain, tendons, colours."""


@dataclass(frozen=True, slots=True)
class DMControlState:
    """A saved simulator: MuJoCo's integration state, the model fields, and the task with its random generator."""

    integration: np.ndarray
    model: dict[str, np.ndarray]
    task: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Where a column's value is: an index into qpos or qvel, or the coordinate of a geom relative to nothing."""

    array: str
    index: int
    axis: int | None = None


def task_names() -> list[str]:
    """`dmc/<domain>-<task>` for the whole suite; underscores of dm_control's names stay."""
    return sorted(f"{_PREFIX}{domain}-{task}" for domain, task in suite.ALL_TASKS)


def entry(name: str) -> EnvEntry:
    """What the list of environments says of a task."""
    env = _load(name)
    model = env.physics.model.ptr
    return EnvEntry(name, env.action_spec().shape[0], tuple(_cameras(model)))


class DMControlEnv:
    """One dm_control task with a renderer of its own, made at the first frame.

    dm_control's render thread is never started. The task's end is not obeyed: an episode has the length asked for.
    """

    def __init__(self, config: EnvConfig) -> None:
        self._env = _load(config.name)
        self._physics = self._env.physics
        self._physics._make_rendering_contexts = lambda: None  # a task would open one, only to load terrain into it
        model = self._physics.model.ptr
        cameras = _cameras(model)
        camera = config.camera or cameras[0]
        if camera not in cameras:
            raise ValueError(f"{config.name} has no camera {camera!r}: choose from {', '.join(cameras)}")
        action = self._env.action_spec()
        self._low, self._high = action.minimum, action.maximum
        repeat = config.action_repeat or ACTION_REPEAT
        domain = config.name.removeprefix(_PREFIX).split("-")[0]
        described = list(_describe(model, domain, follows=_follows(model, cameras.index(camera))))
        self._readers = [reader for _, reader in described]
        # Episodes are as long as the collector wants; the suite's own limit is where they end by default.
        limit = int(min(self._env._step_limit, _CONTROL_STEPS))
        self._env._step_limit = float("inf")
        self.spec = EnvSpec(
            name=config.name,
            action_size=action.shape[0],
            columns=tuple(column for column, _ in described),
            camera=camera,
            size=config.size,
            quality=config.quality,
            action_repeat=repeat,
            dt=float(self._env.control_timestep() * repeat),
            max_steps=limit // repeat,
            versions={
                "mujoco": mujoco.__version__,
                "dm_control": importlib.metadata.version("dm-control"),
            },
        )
        self._camera = cameras.index(camera)
        self._renderer: FrameRenderer | None = None

    @property
    def physics(self) -> Any:
        """dm_control's physics, for scripted policies."""
        return self._physics

    def reset(self, seed: int) -> None:
        self._env.task._random = np.random.RandomState(seed)
        self._env.reset()
        self._reload_terrain()

    def randomize(self, rng: np.random.Generator) -> None:
        model, data = self._physics.model.ptr, self._physics.data.ptr
        hinge, slide = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
        for joint in range(model.njnt):
            kind, limited = model.jnt_type[joint], model.jnt_limited[joint]
            if kind not in (hinge, slide) or (kind == slide and not limited):
                continue
            low, high = model.jnt_range[joint]
            centre, half = (low + high) / 2, (high - low) / 2
            bounds = (centre - _RANGE * half, centre + _RANGE * half) if limited else (-np.pi, np.pi)
            data.qpos[model.jnt_qposadr[joint]] = rng.uniform(*bounds)
            data.qvel[model.jnt_dofadr[joint]] = rng.normal(0.0, _HINGE_SPEED if kind == hinge else _SLIDE_SPEED)
        data.qacc_warmstart[:] = 0  # of the configuration that was left
        self._physics.after_reset()

    def step(self, action: np.ndarray) -> float:
        scaled = self._low + (np.clip(action, -1.0, 1.0) + 1.0) * 0.5 * (self._high - self._low)
        reward = 0.0
        for _ in range(self.spec.action_repeat):
            reward += self._env.step(scaled).reward
            self._env._reset_next_step = False
        return float(reward)

    def render(self) -> np.ndarray:
        if self._renderer is None:
            spec = self.spec
            self._renderer = FrameRenderer(
                self._physics.model.ptr, size=spec.size, camera=self._camera, quality=spec.quality
            )
        return self._renderer.render(self._physics.data.ptr)

    def physical_state(self) -> np.ndarray:
        data = self._physics.data.ptr
        values = [
            getattr(data, reader.array)[reader.index]
            if reader.axis is None
            else getattr(data, reader.array)[reader.index, reader.axis]
            for reader in self._readers
        ]
        return np.array(values, dtype=np.float32)

    def get_state(self) -> DMControlState:
        model, data = self._physics.model.ptr, self._physics.data.ptr
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        integration = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, integration, kind)
        fields = {name: np.array(getattr(model, name)) for name in _MODEL_FIELDS}
        return DMControlState(integration, fields, deepcopy(vars(self._env.task)))

    def set_state(self, state: DMControlState) -> None:
        model, data = self._physics.model.ptr, self._physics.data.ptr
        for name, value in state.model.items():
            getattr(model, name)[:] = value
        vars(self._env.task).update(deepcopy(state.task))
        mujoco.mj_setState(model, data, state.integration, mujoco.mjtState.mjSTATE_INTEGRATION)
        # Derived quantities (what is rendered and rewarded) follow from the state; the warm start must survive this.
        warm_start = data.qacc_warmstart.copy()
        mujoco.mj_forward(model, data)
        data.qacc_warmstart[:] = warm_start
        self._env._reset_next_step = False
        self._reload_terrain()

    def success(self) -> bool | None:
        return None

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()

    def _reload_terrain(self) -> None:
        if self._renderer is not None:
            self._renderer.reload_terrain()


def _load(name: str) -> Any:
    domain, task = name.removeprefix(_PREFIX).split("-", 1)
    return suite.load(domain, task, task_kwargs={"random": 0})


def _cameras(model: Any) -> list[str]:
    return [model.camera(index).name or str(index) for index in range(model.ncam)]


def _follows(model: Any, camera: int) -> bool:
    """Whether a camera moves with a body, which hides where the body is."""
    following = (mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)
    return int(model.cam_mode[camera]) in map(int, following)


def _describe(model: Any, domain: str, *, follows: bool) -> Iterator[tuple[StateColumn, _Reader]]:
    """Every column with its reader: positions of all joints, then their velocities, then what the task adds."""
    names = [_JOINT_NAMES.get(domain, {}).get(model.joint(joint).name, "") for joint in range(model.njnt)]
    names = [name or model.joint(joint).name or f"joint{joint}" for joint, name in enumerate(names)]
    for joint, name in enumerate(names):
        yield from _positions(model, joint, name, follows)
    for joint, name in enumerate(names):
        yield from _velocities(model, joint, name)
    if domain == "reacher":
        for geom in ("finger", "target"):
            for axis, letter in enumerate("xy"):
                column = StateColumn(f"{geom}_{letter}", "m", "position", "one_frame")
                yield column, _Reader("geom_xpos", model.geom(geom).id, axis)


def _positions(model: Any, joint: int, name: str, follows: bool) -> Iterator[tuple[StateColumn, _Reader]]:
    address, kind = int(model.jnt_qposadr[joint]), model.jnt_type[joint]
    if kind == mujoco.mjtJoint.mjJNT_SLIDE:
        seen = "hidden" if follows and name in _ROOT_SLIDES else "one_frame"
        yield StateColumn(f"{name}_position", "m", "position", seen), _Reader("qpos", address)
    elif kind == mujoco.mjtJoint.mjJNT_HINGE:
        periodic = not model.jnt_limited[joint]
        yield StateColumn(f"{name}_angle", "rad", "angle", "one_frame", periodic), _Reader("qpos", address)
    else:
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            for axis, letter in enumerate("xyz"):
                seen = "hidden" if follows and letter != "z" else "one_frame"
                yield StateColumn(f"{name}_{letter}", "m", "position", seen), _Reader("qpos", address + axis)
            address += 3
        for axis, letter in enumerate("wxyz"):
            column = StateColumn(f"{name}_quaternion_{letter}", "1", "orientation", "one_frame")
            yield column, _Reader("qpos", address + axis)


def _velocities(model: Any, joint: int, name: str) -> Iterator[tuple[StateColumn, _Reader]]:
    address, kind = int(model.jnt_dofadr[joint]), model.jnt_type[joint]
    seen = "several_frames"
    if kind == mujoco.mjtJoint.mjJNT_SLIDE:
        yield StateColumn(f"{name}_velocity", "m/s", "velocity", seen), _Reader("qvel", address)
    elif kind == mujoco.mjtJoint.mjJNT_HINGE:
        yield StateColumn(f"{name}_angular_velocity", "rad/s", "angular_velocity", seen), _Reader("qvel", address)
    else:
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            for axis, letter in enumerate("xyz"):
                yield StateColumn(f"{name}_velocity_{letter}", "m/s", "velocity", seen), _Reader("qvel", address + axis)
            address += 3
        for axis, letter in enumerate("xyz"):
            column = StateColumn(f"{name}_angular_velocity_{letter}", "rad/s", "angular_velocity", seen)
            yield column, _Reader("qvel", address + axis)
