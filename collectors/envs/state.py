"""Saving and restoring a MuJoCo simulator exactly, model included.

MuJoCo's integration state (positions, velocities, activations, time, controls, warm start, mocap bodies) decides what
comes next only together with the model, and tasks write into the model at reset: targets, object sizes, terrain.
"""

from operator import attrgetter
from typing import Any

import mujoco as _mujoco
import numpy as np

mujoco: Any = _mujoco  # its compiled modules have no stubs

MODEL_FIELDS = (
    # What tasks write: targets, sizes, terrain, tendons, colours.
    "geom_pos", "geom_quat", "geom_size", "geom_rgba", "body_pos", "body_quat", "site_pos", "site_quat", "site_size",
    "site_rgba", "mat_rgba", "light_pos", "dof_damping", "actuator_gear", "eq_data", "wrap_prm", "hfield_data",
    # What variation writes.
    "geom_friction", "pair_friction", "light_diffuse", "light_dir", "light_dir0", "light_poscom0",
    "vis.headlight.diffuse", "vis.headlight.ambient", "cam_pos", "cam_quat", "cam_pos0", "cam_poscom0", "cam_mat0",
    "body_mass", "body_inertia",
    # What follows from masses.
    "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "tendon_invweight0", "actuator_acc0",
)  # fmt: skip
"""Everything in a model that the beginning of an episode may write."""


def read_model(model: Any) -> dict[str, np.ndarray]:
    """Copies of MODEL_FIELDS."""
    return {name: np.array(attrgetter(name)(model)) for name in MODEL_FIELDS}


def write_model(model: Any, fields: dict[str, np.ndarray]) -> None:
    """Put back what `read_model` gave."""
    for name, value in fields.items():
        attrgetter(name)(model)[:] = value


def read_integration(model: Any, data: Any) -> np.ndarray:
    """MuJoCo's integration state, one float64 vector."""
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    return integration


def write_integration(model: Any, data: Any, integration: np.ndarray) -> None:
    """Go back to what `read_integration` gave, with all that follows from it."""
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    data.warning.number[:] = 0  # of what is undone, such as a simulation that diverged
    refresh(model, data)


def refresh(model: Any, data: Any) -> None:
    """Bring what is rendered and rewarded up to date with the state, without changing what comes next."""
    warm_start = data.qacc_warmstart.copy()
    mujoco.mj_forward(model, data)
    data.qacc_warmstart[:] = warm_start
