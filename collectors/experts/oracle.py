"""An oracle for any dm_control task: predictive sampling on the true simulator (Howell et al. 2022, section 3).

Plans are splines of a few knots, linear between them, and the next plan is the best of the last one and noisy copies of
it. Rollouts run in MuJoCo's own threads; rewards are the task's own, and since each takes a `forward` and some Python,
they are asked for at a few moments of a plan only. Nothing is learned, so a task whose reward lies beyond the horizon
is not solved. The environment is only read.
"""

from typing import Any

import mujoco as _mujoco
import numpy as np
from mujoco import rollout

from collectors.envs.base import Env
from collectors.policies import OracleConfig

mujoco: Any = _mujoco  # its compiled modules have no stubs

_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)


class Oracle:
    """Plans with the simulator itself. Works for dm_control environments."""

    def __init__(self, config: OracleConfig) -> None:
        self.config = config

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng, self._env = rng, env
        physics: Any = env.physics  # pyright: ignore[reportAttributeAccessIssue]
        self._task: Any = env.task  # pyright: ignore[reportAttributeAccessIssue]
        self._physics = physics
        # Rewards are read from a simulator of its own, which shares the model.
        self._scratch = physics.copy(share_model=True)
        self._data = [mujoco.MjData(physics.model.ptr) for _ in range(self.config.threads)]
        self._substeps = round(env.spec.dt / physics.timestep())
        self._horizon = max(round(self.config.horizon / env.spec.dt), self.config.replan, 2)
        moments = np.linspace(0, self._horizon, min(self.config.rewards, self._horizon) + 1)[1:]
        self._rewarded = np.round(moments).astype(int) * self._substeps - 1
        self._knots = np.zeros((self.config.knots, env.spec.action_size))
        self._step = 0

    def act(self, env: Env) -> np.ndarray:
        since = self._step % self.config.replan
        if since == 0:
            if self._step:
                self._knots = self._shifted(self.config.replan)
            self._improve()
        self._step += 1
        return np.clip(self._actions(self._knots[None])[0, since], -1, 1).astype(np.float32)

    def _improve(self) -> None:
        config = self.config
        noise = config.scale * self._rng.normal(size=(config.samples, *self._knots.shape))
        noise[0] = 0.0
        plans = np.clip(self._knots + noise, -1, 1)
        self._knots = plans[int(np.argmax(self._returns(plans)))]

    def _returns(self, plans: np.ndarray) -> np.ndarray:
        """Sum of the task's rewards (S,) at the chosen moments under spline plans (S, knots, A)."""
        model, data = self._physics.model.ptr, self._physics.data.ptr
        state = np.empty(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, state, _STATE)
        control = self._env.control(self._actions(plans))  # pyright: ignore[reportAttributeAccessIssue]
        control = np.repeat(control, self._substeps, axis=1)
        states: Any = rollout.rollout(
            model, self._data, state[None], control, initial_warmstart=data.qacc_warmstart.copy()[None]
        )[0]
        scratch = self._scratch.data.ptr
        returns = np.zeros(len(plans))
        for sample in range(len(plans)):
            for step in self._rewarded:
                mujoco.mj_setState(model, scratch, states[sample, step], _STATE)
                scratch.ctrl[:] = control[sample, step]
                mujoco.mj_forward(model, scratch)
                returns[sample] += self._task.get_reward(self._scratch)
        return returns

    def _actions(self, plans: np.ndarray) -> np.ndarray:
        """Actions (S, horizon, A) of spline plans (S, knots, A)."""
        at = np.linspace(0, len(self._knots) - 1, self._horizon)
        left = np.minimum(at.astype(int), len(self._knots) - 2)
        weight = (at - left)[:, None]
        return (1 - weight) * plans[:, left] + weight * plans[:, left + 1]

    def _shifted(self, decisions: int) -> np.ndarray:
        """The plan from `decisions` later on; its last action goes on."""
        knots, horizon = len(self._knots), self._horizon
        times = np.linspace(0, horizon - 1, knots)
        later = np.minimum(times + decisions, horizon - 1)
        return np.stack([np.interp(later, times, column) for column in self._knots.T], axis=1)
