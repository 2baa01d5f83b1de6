"""dm_control suite tasks as environments.

Physical state columns follow the model's joints: a slide or hinge joint gives a position or angle and a velocity, a
free or ball joint its pose and velocities. Well-known domains get better names. What a camera that follows the body
cannot show (the root's place in the world) is declared hidden.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mujoco as _mujoco
import numpy as np
from dm_control import suite

from collectors.envs.base import EnvConfig, EnvEntry, EnvSpec
from collectors.envs.joints import Reader, place, positions, read_columns, velocities
from collectors.envs.state import read_integration, read_model, write_integration, write_model
from collectors.envs.variation import vary
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


@dataclass(frozen=True, slots=True)
class DMControlState:
    """A saved simulator: MuJoCo's integration state, the model fields, and the task with its random generator."""

    integration: np.ndarray
    model: dict[str, np.ndarray]
    task: dict[str, Any]
    variation: Mapping[str, Any]


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
        self._factors, self._unvaried, self._variation = config.variation, read_model(model), {}
        self._renderer: FrameRenderer | None = None

    @property
    def physics(self) -> Any:
        """dm_control's physics, for scripted policies."""
        return self._physics

    @property
    def camera(self) -> int:
        """Number, in MuJoCo's model, of the camera that frames are rendered by."""
        return self._camera

    @property
    def task(self) -> Any:
        """dm_control's task, for policies that ask for its reward."""
        return self._env.task

    def control(self, action: np.ndarray) -> np.ndarray:
        """The simulator's controls for actions (..., A) in [-1, 1]."""
        return self._low + (np.clip(action, -1.0, 1.0) + 1.0) * 0.5 * (self._high - self._low)

    def observation(self) -> np.ndarray:
        """What the task shows of its state (N,) float32, its parts in the order in which it gives them."""
        shown = self._env.task.get_observation(self._physics)
        return np.concatenate([np.ravel(part) for part in shown.values()]).astype(np.float32)

    def reset(self, seed: int) -> None:
        model = self._physics.model.ptr
        write_model(model, self._unvaried)
        self._variation = vary(model, self._factors, self._camera, np.random.default_rng([seed, 2]))
        self._env.task._random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
        self._env.reset()
        self._reload_terrain()

    def variation(self) -> Mapping[str, Any]:
        return self._variation

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
        control = self.control(action)
        reward = 0.0
        for _ in range(self.spec.action_repeat):
            reward += self._env.step(control).reward
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
        return read_columns(self._physics.data.ptr, self._readers)

    def get_state(self) -> DMControlState:
        model, data = self._physics.model.ptr, self._physics.data.ptr
        task = deepcopy(vars(self._env.task))
        return DMControlState(read_integration(model, data), read_model(model), task, self._variation)

    def set_state(self, state: DMControlState) -> None:
        model, data = self._physics.model.ptr, self._physics.data.ptr
        write_model(model, state.model)
        vars(self._env.task).update(deepcopy(state.task))
        write_integration(model, data, state.integration)
        self._variation = state.variation
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


def _describe(model: Any, domain: str, *, follows: bool) -> Iterator[tuple[StateColumn, Reader]]:
    """Every column with its reader: positions of all joints, then their velocities, then what the task adds."""
    names = [_JOINT_NAMES.get(domain, {}).get(model.joint(joint).name, "") for joint in range(model.njnt)]
    names = [name or model.joint(joint).name or f"joint{joint}" for joint, name in enumerate(names)]
    for joint, name in enumerate(names):
        lost = follows and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE and name in _ROOT_SLIDES
        seen = "hidden" if lost else "one_frame"
        yield from positions(model, joint, name, seen, hidden="xy" if follows else "")
    for joint, name in enumerate(names):
        yield from velocities(model, joint, name, "several_frames")
    if domain == "reacher":
        for geom in ("finger", "target"):
            yield from place(geom, "geom_xpos", model.geom(geom).id, "one_frame", axes="xy")
