"""Things that happen to a simulator and that no action explains: what surprise must notice.

    obstacle   a ball appears in front of the camera; it is drawn into MuJoCo's scene (mjvScene) by the renderer, as a
               geom that no model has: it is seen and collides with nothing
    teleport   something that slides or floats is elsewhere: by 10, 30 or 70 % of half the picture's height
    pose       something that turns has turned: by 0.1, 0.3 or 0.7 pi
    colors     every colour of the model is another
    light      lamps have half their brightness
    gravity    points up
    friction   contacts rub ten times as much, and joints lose what speed they have in a tenth of a second
    actuator   what is commanded is done with the opposite sign
    shuffled   what is done is what was recorded for another moment of the episode

The first five are there at once, and then part of the scene; the others go on. None moves what a camera that follows
the body cannot show, as the columns declare it (a walker's root x). A change of state keeps velocities, keeps within
the joint's range and the picture, and does not press things into each other: of several draws the first good one
counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import mujoco as _mujoco
import numpy as np

from collectors.envs.base import Env, Quality, VariationConfig
from collectors.envs.state import refresh
from collectors.envs.variation import vary
from collectors.rendering import FrameRenderer

mujoco: Any = _mujoco  # its compiled modules have no stubs

Size = Literal["small", "medium", "large", ""]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
_SHARE: dict[Size, float] = {"small": 0.1, "medium": 0.3, "large": 0.7}
"""How far things go: of half the picture's height, or of pi."""
_RADIUS: dict[Size, float] = {"small": 0.08, "medium": 0.16, "large": 0.3}
"""The obstacle's radius, of half the picture's height."""
_NEARER = 0.7
"""Where the obstacle is between camera (0) and the scene's middle (1)."""
_DRAWS = 24
_PRESSED = 0.01
"""Metres by which a change of state may press things into each other more than they were."""
_DECAY = 0.1
"""Seconds in which friction takes a joint's speed."""
_HINGE, _SLIDE, _FREE = (
    int(kind) for kind in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_FREE)
)


class NotHere(ValueError):
    """The environment has nothing that an event could happen to."""


@dataclass(frozen=True, slots=True)
class Ball:
    """A sphere in the world."""

    position: np.ndarray
    radius: float
    rgba: np.ndarray


@dataclass(frozen=True, slots=True)
class Simulator:
    """MuJoCo's own objects behind an environment, and how it is seen."""

    model: Any
    data: Any
    camera: int
    hidden: frozenset[str]
    """Names of state columns that the camera cannot show."""
    movable: tuple[int, ...]
    """Joints that may be moved by hand: all, but an arm that follows its target."""

    @staticmethod
    def of(env: Env) -> "Simulator":
        from collectors.envs.dmc import DMControlEnv
        from collectors.envs.metaworld import MetaWorldEnv
        from collectors.envs.metaworld_columns import object_joints

        hidden = frozenset(column.name for column in env.spec.columns if column.observable == "hidden")
        if isinstance(env, DMControlEnv):
            model, data = env.physics.model.ptr, env.physics.data.ptr
            return Simulator(model, data, env.camera, hidden, tuple(range(model.njnt)))
        assert isinstance(env, MetaWorldEnv)
        model, data = env.task.model, env.task.data
        return Simulator(model, data, env.camera, hidden, tuple(object_joints(model)))

    def view(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Where the camera is, its axes (right, up, back) as columns, and half the picture's height a metre away."""
        axes = self.data.cam_xmat[self.camera].reshape(3, 3)
        return self.data.cam_xpos[self.camera], axes, float(np.tan(np.radians(self.model.cam_fovy[self.camera]) / 2))

    def depth(self, point: np.ndarray) -> float:
        """Metres that a point is in front of the camera."""
        position, axes, _ = self.view()
        return float(-(axes.T @ (point - position))[2])

    def shows(self, point: np.ndarray) -> bool:
        """Whether a point is within the square picture."""
        position, axes, reach = self.view()
        x, y, z = axes.T @ (point - position)
        return bool(z < 0 and max(abs(x), abs(y)) < -z * reach)


@dataclass(frozen=True, slots=True)
class Change:
    """What an event leaves behind besides a changed simulator."""

    ball: Ball | None = None
    gain: float = 1.0
    """By which actions are multiplied before they are done."""
    shuffle: bool = False


Apply = Callable[[Simulator, np.random.Generator, Size], Change]


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event at one size. `lasting` ones go on; the others are over once every frame shows them."""

    name: str
    size: Size
    lasting: bool
    apply: Apply

    @property
    def label(self) -> str:
        return f"{self.name} ({self.size})" if self.size else self.name


def _obstacle(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    position, axes, reach = simulator.view()
    depth = _NEARER * max(simulator.depth(_middle(simulator)), 4 * float(simulator.model.vis.map.znear))
    x, y = rng.uniform(-0.6, 0.6, 2) * depth * reach
    rgba = np.array([*rng.uniform(size=3), 1.0], np.float32)
    return Change(Ball(position + axes @ np.array([x, y, -depth]), _RADIUS[size] * depth * reach, rgba))


def _middle(simulator: Simulator) -> np.ndarray:
    """The middle of what can move and is shown, else of the model."""
    data, model = simulator.data, simulator.model
    bodies = [data.xpos[model.jnt_bodyid[joint]] for joint in simulator.movable]
    shown = [point for point in bodies if simulator.shows(point)]
    return np.mean(shown, axis=0) if shown else np.asarray(model.stat.center)


def _teleport(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    return _displace(simulator, rng, size, (_SLIDE, _FREE))


def _pose(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    return _displace(simulator, rng, size, (_HINGE,))


def _displace(simulator: Simulator, rng: np.random.Generator, size: Size, kinds: tuple[int, ...]) -> Change:
    """Move one joint of these kinds, keeping what `_DRAWS` draws offer: in range, in the picture, not pressed."""
    model, data = simulator.model, simulator.data
    joints = [joint for joint in simulator.movable if int(model.jnt_type[joint]) in kinds]
    axes = {joint: _axes(simulator, joint) for joint in joints}
    joints = [joint for joint in joints if axes[joint]]
    if not joints:
        raise NotHere("nothing that the camera shows can be moved so")
    before, pressed = data.qpos.copy(), _pressed(data)
    best, least = before, np.inf
    for _ in range(_DRAWS):
        joint = joints[rng.integers(len(joints))]
        data.qpos[:] = before
        _move(simulator, joint, axes[joint], _SHARE[size], rng)
        refresh(model, data)
        more = _pressed(data) - pressed
        if not simulator.shows(_place(simulator, joint)):
            more += 1.0
        if more < least:
            best, least = data.qpos.copy(), more
        if more <= _PRESSED:
            break
    data.qpos[:] = best
    refresh(model, data)
    return Change()


def _axes(simulator: Simulator, joint: int) -> tuple[int, ...]:
    """Along which of its axes a joint may move: those whose column is not hidden."""
    model = simulator.model
    name, kind = model.joint(joint).name, int(model.jnt_type[joint])
    if kind == _FREE:
        return tuple(axis for axis, letter in enumerate("xyz") if f"{name}_{letter}" not in simulator.hidden)
    return () if f"{name}_position" in simulator.hidden else (0,)


def _move(simulator: Simulator, joint: int, axes: tuple[int, ...], share: float, rng: np.random.Generator) -> None:
    """Move a joint by `share` one way or, where its range ends before, to where more room is, at most to the end."""
    model, data = simulator.model, simulator.data
    address, kind = int(model.jnt_qposadr[joint]), int(model.jnt_type[joint])
    _, _, reach = simulator.view()
    metres = share * reach * simulator.depth(_place(simulator, joint))
    if kind == _FREE:
        # Along the ground where both of its directions are shown, else along what is.
        level = [axis for axis in axes if axis < 2] or list(axes)
        direction = rng.normal(size=len(level))
        data.qpos[np.add(address, level)] += metres * direction / np.linalg.norm(direction)
        return
    step = rng.choice([-1.0, 1.0]) * (share * np.pi if kind == _HINGE else metres)
    value = float(data.qpos[address])
    if model.jnt_limited[joint]:
        low, high = model.jnt_range[joint]
        if not low <= value + step <= high:
            step = abs(step) if high - value > value - low else -abs(step)
        data.qpos[address] = np.clip(value + step, low, high)
    else:
        data.qpos[address] = value + step


def _place(simulator: Simulator, joint: int) -> np.ndarray:
    return simulator.data.xpos[simulator.model.jnt_bodyid[joint]]


def _pressed(data: Any) -> float:
    """How deep the deepest contact is, in metres."""
    return max(0.0, *(-float(contact.dist) for contact in data.contact[: data.ncon])) if data.ncon else 0.0


def _colors(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    vary(simulator.model, VariationConfig(colors=1.0), simulator.camera, rng)
    return Change()


def _light(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    model = simulator.model
    for light in (model.light_diffuse, model.vis.headlight.diffuse, model.vis.headlight.ambient):
        light[:] *= 0.5
    return Change()


def _gravity(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    simulator.model.opt.gravity[:] *= -1
    return Change()


def _friction(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    model = simulator.model
    model.geom_friction[:] *= 10
    model.pair_friction[:] *= 10
    model.dof_damping[:] += model.dof_M0 / _DECAY
    return Change()


def _actuator(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    return Change(gain=-1.0)


def _shuffled(simulator: Simulator, rng: np.random.Generator, size: Size) -> Change:
    return Change(shuffle=True)


EVENTS: tuple[Event, ...] = (
    *(Event("obstacle", size, False, _obstacle) for size in SIZES),
    *(Event("teleport", size, False, _teleport) for size in SIZES),
    *(Event("pose", size, False, _pose) for size in SIZES),
    Event("colors", "", False, _colors),
    Event("light", "", False, _light),
    Event("gravity", "", True, _gravity),
    Event("friction", "", True, _friction),
    Event("actuator", "", True, _actuator),
    Event("shuffled", "", True, _shuffled),
)


class SceneRenderer(FrameRenderer):
    """The environment's picture with a ball in it: `ball` is drawn after the model, with the model's own light."""

    def __init__(self, simulator: Simulator, *, size: int, quality: Quality) -> None:
        super().__init__(simulator.model, size=size, camera=simulator.camera, quality=quality)
        self.ball: Ball | None = None

    def render(self, data: Any) -> np.ndarray:
        if self.ball is None:
            return super().render(data)
        self._renderer.update_scene(data, camera=self.camera)
        scene = self._renderer.scene
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.full(3, self.ball.radius),
            self.ball.position,
            np.eye(3).reshape(-1),
            self.ball.rgba,
        )
        scene.ngeom += 1
        return self._renderer.render()
