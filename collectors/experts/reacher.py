"""Reacher: inverse kinematics of the two-link arm finds the joint angles, a PD controller goes there.

The arm is so light that a decision at full torque turns it by radians a second, so the controller asks for an
acceleration, and the simulator's mass matrix says which torque that takes.
"""

from typing import Any

import mujoco as _mujoco
import numpy as np

from collectors.envs.base import Env

mujoco: Any = _mujoco  # its compiled modules have no stubs


class ReacherExpert:
    """Turns the finger to the target, by whichever bend of the elbow is nearer."""

    frequency = 12.0
    """Of the critically damped approach, in rad/s; a decision lasts 0.04 s."""

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        physics: Any = env.physics  # pyright: ignore[reportAttributeAccessIssue]
        self._data, self._model = physics.data.ptr, physics.model.ptr
        model = self._model
        forearm, finger = model.body("hand"), model.body("finger")
        self._upper, self._lower = float(forearm.pos[0]), float(finger.pos[0])
        self._bend = model.joint("wrist").range
        self._goal = self._angles(*model.geom("target").pos[:2])

    def act(self, env: Env) -> np.ndarray:
        error = self._goal - self._data.qpos
        error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi
        data, model = self._data, self._model
        acceleration = self.frequency**2 * error - 2 * self.frequency * data.qvel
        mass = np.empty((model.nv, model.nv))
        mujoco.mj_fullM(model, data, mass)
        torque = mass @ acceleration + data.qfrc_bias - data.qfrc_passive
        return np.clip(torque / model.actuator_gear[:, 0], -1, 1).astype(np.float32)

    def _angles(self, x: float, y: float) -> np.ndarray:
        """Shoulder and wrist angles (2,) that bring the finger to a place, as near as the arm reaches."""
        distance = np.hypot(x, y)
        cosine = (distance**2 - self._upper**2 - self._lower**2) / (2 * self._upper * self._lower)
        wrist = np.arccos(np.clip(cosine, np.cos(self._bend[1]), 1.0))
        options = []
        for bend in (wrist, -wrist):
            inner = np.arctan2(self._lower * np.sin(bend), self._upper + self._lower * np.cos(bend))
            turn = np.arctan2(y, x) - inner - self._data.qpos[0]
            shoulder = self._data.qpos[0] + (turn + np.pi) % (2 * np.pi) - np.pi
            options.append(np.array([shoulder, bend]))
        return min(options, key=lambda angles: float(np.abs(angles - self._data.qpos).max()))
