"""Factors of variation: what an episode may change about a simulator, for data and for testing generalisation.

Values are drawn by the episode's seed when it begins, from a model as it was loaded, so that nothing drifts over
episodes. They are recorded with the episode. A strength of 0 leaves the simulator as it is, to the bit.
"""

from typing import Any

import mujoco as _mujoco
import numpy as np

from collectors.envs.base import VariationConfig

mujoco: Any = _mujoco  # its compiled modules have no stubs

_BRIGHTNESS = 0.5
"""At full strength light is weaker or stronger by up to this share."""
_TILT = 0.5
"""At full strength a light's direction changes by up to this in every coordinate, before it is normalised."""
_SHIFT = 0.1
"""At full strength the camera moves by up to this share of its distance, along each of its axes."""
_TURN = np.radians(5.0)
"""At full strength it turns by up to this about each of its axes, in radians."""
_PLAIN = (0.5, 0.5, 0.5, 1.0)
"""A geom's colour where its material's counts."""


def vary(model: Any, config: VariationConfig, camera: int, rng: np.random.Generator) -> dict[str, Any]:
    """Change `model` as an episode with this generator has it; what was drawn, as JSON can hold it."""
    drawn: dict[str, Any] = {}
    # Masses come first: the constants that follow from them include where cameras and lights are.
    if config.masses:
        drawn["masses"] = _masses(model, config.masses, rng)
    if config.friction:
        drawn["friction"] = _friction(model, config.friction, rng)
    if config.colors:
        drawn["colors"] = _colors(model, config.colors, rng)
    if config.lighting:
        drawn["lighting"] = _lighting(model, config.lighting, rng)
    if config.camera:
        drawn["camera"] = _camera(model, config.camera, camera, rng)
    return drawn


def _masses(model: Any, strength: float, rng: np.random.Generator) -> list[float]:
    """Every body's mass and inertia times a factor between 1 / (1 + strength) and 1 + strength."""
    factors = (1 + strength) ** rng.uniform(-1, 1, model.nbody)
    model.body_mass[:] *= factors
    model.body_inertia[:] *= factors[:, None]
    # What MuJoCo derives from masses when it compiles a model. The sizes by which it draws stay as they were.
    sizes = {name: np.array(getattr(model.stat, name)) for name in ("meaninertia", "meanmass", "meansize", "extent")}
    centre = model.stat.center.copy()
    mujoco.mj_setConst(model, mujoco.MjData(model))
    for name, value in sizes.items():
        setattr(model.stat, name, float(value))
    model.stat.center[:] = centre
    return factors.tolist()


def _friction(model: Any, strength: float, rng: np.random.Generator) -> float:
    """All friction of contacts times one factor between 1 / (1 + strength) and 1 + strength."""
    factor = (1 + strength) ** rng.uniform(-1, 1)
    model.geom_friction[:] *= factor
    model.pair_friction[:] *= factor
    return float(factor)


def _colors(model: Any, strength: float, rng: np.random.Generator) -> list[list[float]]:
    """Every colour of the model mixed with a random one; what had the same colour keeps having the same."""
    own = (model.geom_matid < 0) | (model.geom_rgba != _PLAIN).any(axis=1)
    tables = [(model.mat_rgba, np.arange(model.nmat)), (model.geom_rgba, np.flatnonzero(own))]
    before = np.concatenate([table[rows, :3] for table, rows in tables])
    colors, which = np.unique(before, axis=0, return_inverse=True)
    colors = (1 - strength) * colors + strength * rng.uniform(size=colors.shape)
    start = 0
    for table, rows in tables:
        table[rows, :3] = colors[which.reshape(-1)[start : start + len(rows)]]
        start += len(rows)
    return colors.tolist()


def _lighting(model: Any, strength: float, rng: np.random.Generator) -> dict[str, Any]:
    """Brightness of all light together, and the direction of every lamp."""
    brightness = 1 + strength * rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    for light in (model.light_diffuse, model.vis.headlight.diffuse, model.vis.headlight.ambient):
        light[:] *= brightness
    tilt = strength * rng.uniform(-_TILT, _TILT, (model.nlight, 3))
    for direction in (model.light_dir, model.light_dir0):
        tilted = direction + tilt
        direction[:] = tilted / np.maximum(np.linalg.norm(tilted, axis=1, keepdims=True), 1e-9)
    return {"brightness": float(brightness), "tilt": tilt.tolist()}


def _camera(model: Any, strength: float, camera: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """A shift in metres and a turn in radians, along and about the camera's right, up and backward axes."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    distance = np.linalg.norm(data.cam_xpos[camera] - model.stat.center)
    shift = strength * distance * rng.uniform(-_SHIFT, _SHIFT, 3)
    turn = strength * rng.uniform(-_TURN, _TURN, 3)
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_quat2Mat(matrix, model.cam_quat[camera])
    model.cam_pos[camera] += matrix.reshape(3, 3) @ shift
    mujoco.mju_euler2Quat(quaternion, turn, "xyz")
    mujoco.mju_mulQuat(model.cam_quat[camera], model.cam_quat[camera].copy(), quaternion)
    # Cameras that follow a body have their place in the world besides.
    follower = model.cam_mat0[camera].reshape(3, 3)
    for place in (model.cam_pos0, model.cam_poscom0):
        place[camera] += follower @ shift
    mujoco.mju_quat2Mat(matrix, quaternion)
    model.cam_mat0[camera] = (follower @ matrix.reshape(3, 3)).reshape(-1)
    return {"shift": shift.tolist(), "turn": turn.tolist()}
