"""Which OpenGL backend MuJoCo renders with, found out by rendering a frame.

MuJoCo reads MUJOCO_GL when it is first imported, so the choice must be made before. A backend that imports may still
fail to render (no driver, no device), and a failed attempt cannot be undone within a process: each candidate is tried
in a process of its own, about a second each. EGL comes first: on a GPU it is the fast one. What was found is
remembered in the user's cache directory until this machine restarts or another mujoco is installed.

Left alone, every EGL process renders on the first device. Each worker of a fleet is therefore told its own, before it
imports mujoco. EGL counts devices in an order of its own, neither CUDA's nor nvidia-smi's, so the driver is asked.
"""

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
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


_DEVICES_SNIPPET = """
import ctypes, ctypes.util, json
egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
egl.eglGetProcAddress.restype = ctypes.c_void_p
egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
def function(name, result, *arguments):
    return ctypes.CFUNCTYPE(result, *arguments)(egl.eglGetProcAddress(name))
pointer, number = ctypes.c_void_p, ctypes.c_int
devices = function(b"eglQueryDevicesEXT", number, number, ctypes.POINTER(pointer), ctypes.POINTER(number))
attribute = function(b"eglQueryDeviceAttribEXT", number, pointer, number, ctypes.POINTER(ctypes.c_ssize_t))
extensions = function(b"eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, number)
handles, count, found = (pointer * 64)(), number(), []
devices(64, handles, ctypes.byref(count))
for handle in handles[: count.value]:
    cuda = ctypes.c_ssize_t(-1)
    known = attribute(handle, 0x323A, ctypes.byref(cuda))  # EGL_CUDA_DEVICE_NV
    software = b"EGL_MESA_device_software" in (extensions(handle, 0x3055) or b"")  # EGL_EXTENSIONS
    found.append([cuda.value if known and cuda.value >= 0 else None, software])
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class EglDevice:
    """A device as EGL lists it. `cuda` is its place among the GPUs that CUDA_VISIBLE_DEVICES leaves visible."""

    index: int
    cuda: int | None
    software: bool


@functools.cache
def egl_devices() -> tuple[EglDevice, ...]:
    """All EGL devices, asked in a process of its own (a tenth of a second); none where EGL cannot be asked."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _DEVICES_SNIPPET], capture_output=True, text=True, timeout=60, check=True
        )
        found = json.loads(result.stdout)
    except (subprocess.SubprocessError, ValueError):
        return ()
    return tuple(EglDevice(index, cuda, software) for index, (cuda, software) in enumerate(found))


def egl_device_for(worker: int, devices: tuple[EglDevice, ...]) -> int | None:
    """The EGL index of the GPU on which this worker, counted on its machine from 0, is to render; None without GPUs.

    Workers go round the GPUs that CUDA sees, in CUDA's order. A driver that does not say which these are, as where
    CUDA_VISIBLE_DEVICES is empty for workers that were given no GPU, leaves all GPUs in EGL's order.
    """
    visible = {device.cuda: device.index for device in devices if device.cuda is not None}
    known = sum(device.cuda is not None for device in devices)
    hardware = [device.index for device in devices if not device.software]
    order = [visible[cuda] for cuda in sorted(visible)] if visible and len(visible) == known else hardware
    return order[worker % len(order)] if order else None


def gl_environment(backend: str, worker: int | None = None) -> dict[str, str]:
    """The environment variables that make MuJoCo use `backend`, one rendering thread a process.

    Software GL starts a thread a core by itself, which actors on the same cores would only fight over. With `worker`,
    its number on its machine, EGL renders on that worker's GPU, unless MUJOCO_EGL_DEVICE_ID is set here already. They
    must be set before a process imports mujoco: give each actor its own, in its runtime environment.
    """
    variables = {"MUJOCO_GL": backend, "LP_NUM_THREADS": "1"}
    if backend == "egl" and worker is not None and "MUJOCO_EGL_DEVICE_ID" not in os.environ:
        device = egl_device_for(worker, egl_devices())
        variables |= {} if device is None else {"MUJOCO_EGL_DEVICE_ID": str(device)}
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


def choose_backend(worker: int | None = None) -> str:
    """Set MUJOCO_GL in this process, to what the user chose or to the first backend that renders; its name.

    With `worker`, as in `gl_environment`, also the GPU: for actors on other machines, which choose for themselves.
    Must be called before mujoco is imported. Raises OSError with each backend's reason when none works.
    """
    backend = os.environ.get("MUJOCO_GL", "").strip().lower() or _remembered() or _first_that_renders()
    variables = gl_environment(backend, worker)
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
    raise OSError(
        "no OpenGL backend renders: "
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        + f". Install one with: {'' if os.geteuid() == 0 else 'sudo '}apt-get install libosmesa6 libegl1"
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
