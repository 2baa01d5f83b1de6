"""Named physical state that follows from a model's joints, for both simulators.

A slide or hinge joint gives a position or angle and a velocity, a ball joint an orientation and an angular velocity, a
free joint a position and a velocity besides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mujoco as _mujoco
import numpy as np

from shards.episode import Observability, StateColumn

mujoco: Any = _mujoco  # its compiled modules have no stubs

_HINGE, _SLIDE = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
_FREE = mujoco.mjtJoint.mjJNT_FREE


@dataclass(frozen=True, slots=True)
class Reader:
    """Where a column's value is: an array of MuJoCo's data, and an index into it as a flat one."""

    array: str
    index: int


def read_columns(data: Any, readers: list[Reader]) -> np.ndarray:
    """The values (S,) float32 of columns."""
    return np.array([getattr(data, reader.array).flat[reader.index] for reader in readers], dtype=np.float32)


def place(
    name: str, array: str, index: int, seen: Observability, axes: str = "xyz"
) -> Iterator[tuple[StateColumn, Reader]]:
    """A position in space, from row `index` of an array (N, 3)."""
    for axis, letter in enumerate(axes):
        yield StateColumn(f"{name}_{letter}", "m", "position", seen), Reader(array, 3 * index + axis)


def positions(
    model: Any, joint: int, name: str, seen: Observability, hidden: str = ""
) -> Iterator[tuple[StateColumn, Reader]]:
    """Where a joint is. Of a free joint's position, the axes in `hidden` are declared so."""
    address, kind = int(model.jnt_qposadr[joint]), model.jnt_type[joint]
    if kind == _SLIDE:
        yield StateColumn(f"{name}_position", "m", "position", seen), Reader("qpos", address)
    elif kind == _HINGE:
        periodic = not model.jnt_limited[joint]
        yield StateColumn(f"{name}_angle", "rad", "angle", seen, periodic), Reader("qpos", address)
    else:
        if kind == _FREE:
            for axis, letter in enumerate("xyz"):
                column = StateColumn(f"{name}_{letter}", "m", "position", "hidden" if letter in hidden else seen)
                yield column, Reader("qpos", address + axis)
        yield from orientation(model, joint, name, seen)


def orientation(model: Any, joint: int, name: str, seen: Observability) -> Iterator[tuple[StateColumn, Reader]]:
    """The unit quaternion of a free or ball joint."""
    address = int(model.jnt_qposadr[joint]) + (3 if model.jnt_type[joint] == _FREE else 0)
    for axis, letter in enumerate("wxyz"):
        yield StateColumn(f"{name}_quaternion_{letter}", "1", "orientation", seen), Reader("qpos", address + axis)


def velocities(model: Any, joint: int, name: str, seen: Observability) -> Iterator[tuple[StateColumn, Reader]]:
    """How fast a joint moves. A free joint's angular velocity is in its body's frame, as MuJoCo has it."""
    address, kind = int(model.jnt_dofadr[joint]), model.jnt_type[joint]
    if kind == _SLIDE:
        yield StateColumn(f"{name}_velocity", "m/s", "velocity", seen), Reader("qvel", address)
    elif kind == _HINGE:
        yield StateColumn(f"{name}_angular_velocity", "rad/s", "angular_velocity", seen), Reader("qvel", address)
    else:
        if kind == _FREE:
            for axis, letter in enumerate("xyz"):
                yield StateColumn(f"{name}_velocity_{letter}", "m/s", "velocity", seen), Reader("qvel", address + axis)
            address += 3
        for axis, letter in enumerate("xyz"):
            column = StateColumn(f"{name}_angular_velocity_{letter}", "rad/s", "angular_velocity", seen)
            yield column, Reader("qvel", address + axis)
