"""Cartpole: energy shaping swings the pole up (Astrom and Furuta 2000), a linear-quadratic regulator balances it.

The regulator's gains come from a finite-difference linearisation of the simulator and a Riccati iteration; those of the
swing-up were found by random search over returns of a few seeds.
"""

from typing import Any

import mujoco as _mujoco
import numpy as np

from collectors.envs.base import Env

mujoco: Any = _mujoco  # its compiled modules have no stubs


class CartpoleExpert:
    """Swings the pole up and balances it with the cart in the middle."""

    balance_angle = 0.5
    """Radians from upright within which the regulator takes over."""
    balance_speed = 2.0
    """rad/s below which it does."""

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        physics: Any = env.physics  # pyright: ignore[reportAttributeAccessIssue]
        self._data, model = physics.data.ptr, physics.model.ptr
        pole = model.body("pole_1").id
        cart = model.body("cart").id
        self._pole_mass = float(model.body_mass[pole])
        self._total_mass = float(model.body_mass[cart]) + self._pole_mass
        self._arm = float(np.linalg.norm(model.body_ipos[pole]))
        self._inertia = self._pole_mass * self._arm**2 + float(model.body_inertia[pole].max())
        self._gear = float(model.actuator_gear[0, 0])
        self._gravity = float(-model.opt.gravity[2])
        self._gain = _regulator(model)

    def act(self, env: Env) -> np.ndarray:
        (x, angle), (speed, turning) = self._data.qpos, self._data.qvel
        angle = (angle + np.pi) % (2 * np.pi) - np.pi
        if abs(angle) < self.balance_angle and abs(turning) < self.balance_speed:
            control = -float(self._gain @ np.array([x, angle, speed, turning]))
        else:
            control = self._swing_up(x, angle, speed, turning)
        return np.clip([control], -1, 1).astype(np.float32)

    def _swing_up(self, x: float, angle: float, speed: float, turning: float) -> float:
        """Accelerate the cart so that the pole's energy goes to that of standing still upright, and stay near 0."""
        potential = self._pole_mass * self._gravity * self._arm * (np.cos(angle) - 1)
        energy = 0.5 * self._inertia * turning**2 + potential
        # At rest the energy law is silent, and any push will do.
        push = 30 * energy * turning * np.cos(angle) if abs(turning) >= 0.08 else 9.3
        acceleration = float(np.clip(push, -15.7, 15.7))
        return self._total_mass * (acceleration - 8 * x - 5 * speed) / self._gear


def _regulator(model: Any) -> np.ndarray:
    """LQR gains (4,) for (x, angle, speed, turning) around upright, for one control step of the simulator."""
    integrator = model.opt.integrator
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER  # mjd_transitionFD refuses Runge-Kutta
    try:
        data = mujoco.MjData(model)
        a, b = np.zeros((4, 4)), np.zeros((4, 1))
        mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
    finally:
        model.opt.integrator = integrator
    q, r = np.diag([1.0, 1.0, 0.1, 0.1]), np.array([[0.1]])
    p = q
    gain = np.zeros((1, 4))
    for _ in range(5000):
        gain = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        following = q + a.T @ p @ (a - b @ gain)
        if np.allclose(following, p, rtol=1e-10, atol=0):
            break
        p = following
    return gain[0]
