"""Meta-World's own scripted experts, one a task. They read the observation that includes the goal."""

import warnings

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from collectors.envs.base import Env


class MetaWorldExpert:
    """The script of a task, its actions clipped to [-1, 1]."""

    def __init__(self, name: str) -> None:
        self._script = ENV_POLICY_MAP[name.removeprefix("metaworld/")]

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._policy = self._script()  # some remember how far they are

    def act(self, env: Env) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that an action leaves the range, which is clipped here
            action = self._policy.get_action(env.observation())
        return np.clip(action, -1, 1).astype(np.float32)
