"""Which OpenGL backend MuJoCo renders with, found out by rendering a frame.

MuJoCo reads MUJOCO_GL when it is first imported, so the choice must be made before. A backend that imports may still
fail to render (no driver, no device), and a failed attempt cannot be undone within a process: each candidate is tried
in a process of its own, about a second each. EGL comes first: on a GPU it is the fast one. What was found is
remembered in the user's cache directory until this machine restarts or another mujoco is installed.
"""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from shards.atomic import write_atomically

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
    variables = {"MUJOCO_GL": backend, "LP_NUM_THREADS": "1"}
    # MuJoCo refuses to import when PyOpenGL was told another of the two; it uses PyOpenGL for no other backend.
    return variables | {"PYOPENGL_PLATFORM": backend} if backend in BACKENDS else variables


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
    backend = os.environ.get("MUJOCO_GL", "").strip().lower() or _remembered() or _first_that_renders()
    variables = gl_environment(backend)
    threads = os.environ.get("LP_NUM_THREADS", variables["LP_NUM_THREADS"])
    os.environ.update(variables | {"LP_NUM_THREADS": threads})
    return backend


def _first_that_renders() -> str:
    reasons = {}
    for name in BACKENDS:
        reason = try_backend(name)
        if reason is None:
            _remember(name)
            return name
        reasons[name] = reason
    raise RuntimeError(
        "no OpenGL backend renders: "
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        + ". Install one with: apt-get install libosmesa6 libegl1"
    )


def _cache_file() -> Path | None:
    """Named by what the answer depends on: host or container, boot, mujoco. None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except (OSError, RuntimeError):
        return None
    version = importlib.metadata.version("mujoco")
    return directory / "lewm" / f"gl-{platform.node()}-{boot}-mujoco-{version}"


def _remembered() -> str | None:
    path = _cache_file()
    with suppress(OSError):
        name = path.read_text() if path else ""
        return name if name in BACKENDS else None
    return None


def _remember(name: str) -> None:
    """Only what works is remembered. A cache that cannot be written costs seconds, and nothing else."""
    path = _cache_file()
    with suppress(OSError):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, name.encode())
