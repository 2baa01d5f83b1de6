"""One renderer a process, with the offscreen buffer at the image's size.

Software GL spends 90 to 97 % of its time in shadow maps, multisampling and reflections. `fast` leaves them out and is
the default for training data; `full` is the simulator's own look. The quality is recorded with every episode.
"""

from typing import Any

import mujoco
import numpy as np

from collectors.envs.base import QUALITIES, Quality


class FrameRenderer:
    """Renders (size, size, 3) uint8 RGB frames, upright, of one model through one camera."""

    def __init__(self, model: Any, *, size: int, camera: int, quality: Quality) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"quality {quality!r} is not one of {', '.join(QUALITIES)}")
        self.size, self.camera, self.quality = size, camera, quality
        # Buffer size and multisampling are read from the model when the context is made.
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if quality == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self._renderer = mujoco.Renderer(model, size, size)
        if quality == "fast":
            flags = self._renderer.scene.flags
            flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def render(self, data: Any) -> np.ndarray:
        """The frame of a simulator state, in memory of its own."""
        self._renderer.update_scene(data, camera=self.camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the GL context, in the thread that made it."""
        self._renderer.close()
