"""Which OpenGL backend MuJoCo renders with, found out by rendering a frame.

MuJoCo reads MUJOCO_GL when it is first imported, so the choice must be made before. A backend that imports may still
fail to render (no driver, no device), and a failed attempt cannot be undone within a process: each candidate is tried
in a process of its own, about a second each. EGL comes first: on a GPU it is the fast one.
"""

import functools
import os
import subprocess
import sys

BACKENDS = ("egl", "osmesa")

_SNIPPET = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().std() > 1, "the frame is blank"
print("rendered")
"""


def gl_environment(backend: str) -> dict[str, str]:
    """The environment variables that make MuJoCo use `backend`, one rendering thread a process.

    Software GL starts a thread a core by itself, which actors on the same cores would only fight over.
    """
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend, "LP_NUM_THREADS": "1"}


@functools.cache
def try_backend(name: str) -> str | None:
    """None if `name` (egl or osmesa) renders a frame on this machine, else the reason in one line."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _SNIPPET],
            env=os.environ | gl_environment(name),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "rendering a frame took more than a minute"
    if "rendered" in result.stdout:
        return None
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    errors = [line for line in lines if "Error" in line or "error" in line]
    return (errors or lines or [f"exit status {result.returncode}"])[0][:200]


def choose_backend() -> str:
    """Set MUJOCO_GL in this process, to what the user chose or to the first backend that renders; its name.

    Must be called before mujoco is imported. Raises RuntimeError with each backend's reason when none works.
    """
    backend = os.environ.get("MUJOCO_GL")
    if not backend:
        reasons = {}
        for candidate in BACKENDS:
            reason = try_backend(candidate)
            if reason is None:
                backend = candidate
                break
            reasons[candidate] = reason
        else:
            raise RuntimeError(
                "no OpenGL backend renders: "
                + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                + ". Install one with: apt-get install libosmesa6 libegl1"
            )
    for name, value in gl_environment(backend).items():
        os.environ.setdefault(name, value)
    return backend
