"""One renderer a process, with the offscreen buffer at the image's size.

Software GL spends 90 to 97 % of its time in shadow maps, multisampling and reflections. `fast` leaves them out and is
the default for training data; `full` is the simulator's own look. The quality is recorded with every episode.
"""

import weakref
from typing import Any

import mujoco as _mujoco
import numpy as np

from collectors.envs.base import Quality

mujoco: Any = _mujoco  # its compiled modules have no stubs


class FrameRenderer:
    """Renders (size, size, 3) uint8 RGB frames, upright, of one model through one camera."""

    def __init__(self, model: Any, *, size: int, camera: int, quality: Quality) -> None:
        self.size, self.camera, self.quality = size, camera, quality
        # Buffer size and multisampling are read from the model when the context is made.
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if quality == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self._renderer = mujoco.Renderer(model, size, size)
        # An open context prints a traceback when the interpreter ends; this closes it before.
        self._close = weakref.finalize(self, self._renderer.close)
        if quality == "fast":
            flags = self._renderer.scene.flags
            flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def render(self, data: Any) -> np.ndarray:
        """The frame of a simulator state, in memory of its own."""
        self._renderer.update_scene(data, camera=self.camera)
        return self._renderer.render()

    def reload_terrain(self) -> None:
        """Take over height fields that changed in the model. MuJoCo copies them to the GPU once, with the context."""
        model = self._renderer.model
        if model.nhfield:
            self._renderer._gl_context.make_current()
        for field in range(model.nhfield):
            mujoco.mjr_uploadHField(model, self._renderer._mjr_context, field)

    def close(self) -> None:
        """Free the GL context, in the thread that made it."""
        self._close()
