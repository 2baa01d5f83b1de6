"""Named physical state of Meta-World's tasks, and what of it a camera shows.

Every task has the hand, the gripper, the objects that it is about, the goal and the joints of arm and objects. What is
seen is declared from geometry, at a few starts: a camera that hangs still shows what is within its picture, and the
goal only where something that is drawn marks it. What is in between is not considered. A camera on the hand shows the
gripper, and not where things are.
"""

from collections.abc import Callable, Iterator
from typing import Any

import mujoco as _mujoco
import numpy as np

from collectors.envs.joints import Reader, orientation, positions, velocities
from shards.episode import Observability, StateColumn

mujoco: Any = _mujoco  # its compiled modules have no stubs

_ARM = tuple(f"right_j{number}" for number in range(7))
_FINGERS = ("r_close", "l_close")
_STARTS = 4
_MARKED = 0.02
"""How near to the goal, in metres, the centre of what marks it is."""


def computed_state(env: Any) -> np.ndarray:
    """The values of the columns that have no reader, in their order."""
    data, motion = env.data, np.empty(6)
    hand = data.body("hand")
    mujoco.mj_objectVelocity(env.model, data, mujoco.mjtObj.mjOBJ_BODY, hand.id, motion, 0)
    opening = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos)
    return np.concatenate([hand.xpos, [opening], env._get_pos_objects(), env._target_pos, motion[3:]])


def describe(env: Any, shown: set[str]) -> Iterator[tuple[StateColumn, Reader | None]]:
    """Every column: those of `computed_state` without a reader, then those of joints with theirs.

    `shown` has the names of what the camera shows, as `shown_by` gives them.
    """

    def now(name: str) -> Observability:
        return "one_frame" if name in shown else "hidden"

    def moving(name: str) -> Observability:
        return "several_frames" if name in shown else "hidden"

    model = env.model
    for letter in "xyz":
        yield StateColumn(f"hand_{letter}", "m", "position", now("hand")), None
    yield StateColumn("gripper_opening", "m", "position", now("gripper")), None
    for name in (*(name for name, _ in _objects(env)), "goal"):
        for letter in "xyz":
            yield StateColumn(f"{name}_{letter}", "m", "position", now(name)), None
    for letter in "xyz":
        yield StateColumn(f"hand_velocity_{letter}", "m/s", "velocity", moving("hand")), None
    objects = _joint_names(model)
    for name in _ARM:
        yield from positions(model, model.joint(name).id, name, now(name))
    for joint, name in objects.items():
        # Where a free joint is, its object's columns tell.
        column_of = orientation if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE else positions
        yield from column_of(model, joint, name, now(f"joint {name}"))
    for name in _ARM:
        yield from velocities(model, model.joint(name).id, name, moving(name))
    for joint, name in objects.items():
        yield from velocities(model, joint, name, moving(f"joint {name}"))


def shown_by(env: Any, camera: int, starts: Callable[[int], None]) -> set[str]:
    """Names of what a camera shows in all of the first starts."""
    model, data = env.model, env.data
    if int(model.cam_mode[camera]) != mujoco.mjtCamLight.mjCAMLIGHT_FIXED:
        return {"gripper"}
    hidden: set[str] = set()
    names: set[str] = set()
    for start in range(_STARTS):
        starts(start)
        for name, point in _points(env):
            names.add(name)
            marked = name != "goal" or _marked(model, data, point)
            if not (marked and _in_view(model, data, camera, point)):
                hidden.add(name)
    return names - hidden


def object_joints(model: Any) -> list[int]:
    return [joint for joint in range(model.njnt) if model.joint(joint).name not in (*_ARM, *_FINGERS)]


def _objects(env: Any) -> list[tuple[str, np.ndarray]]:
    """The things that the task is about, by the names of their columns, where Meta-World says that they are."""
    rows = np.reshape(env._get_pos_objects(), (-1, 3))
    return [("object" if row == 0 else f"object{row + 1}", point) for row, point in enumerate(rows)]


def _joint_names(model: Any) -> dict[int, str]:
    """Names for the joints of objects: `object` where it is the only one."""
    joints = object_joints(model)
    if len(joints) == 1:
        return {joints[0]: "object"}
    names = {joint: model.joint(joint).name or model.body(model.jnt_bodyid[joint]).name for joint in joints}
    return {joint: name.removeprefix("goal_").lower() for joint, name in names.items()}


def _points(env: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every point whose place a column tells, by the name of what it is."""
    model, data = env.model, env.data
    yield "hand", data.body("hand").xpos
    yield "gripper", (data.body("rightclaw").xpos + data.body("leftclaw").xpos) / 2
    yield "goal", env._target_pos
    yield from _objects(env)
    for name in _ARM:
        yield name, data.joint(name).xanchor
    for joint, name in _joint_names(model).items():
        yield f"joint {name}", data.xpos[model.jnt_bodyid[joint]]


def _in_view(model: Any, data: Any, camera: int, point: np.ndarray) -> bool:
    """Whether a point is within the square picture of a camera."""
    x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ (point - data.cam_xpos[camera])
    reach = -z * np.tan(np.radians(model.cam_fovy[camera]) / 2)
    return bool(z < 0 and abs(x) <= reach and abs(y) <= reach)


def _marked(model: Any, data: Any, point: np.ndarray) -> bool:
    """Whether something that is drawn has its centre near a point."""
    drawn = np.concatenate(
        [
            data.site_xpos[(model.site_rgba[:, 3] > 0) & (model.site_group < 3)],
            data.geom_xpos[(model.geom_rgba[:, 3] > 0) & (model.geom_group < 3)],
        ]
    )
    return bool((np.linalg.norm(drawn - point, axis=1) < _MARKED).any())
