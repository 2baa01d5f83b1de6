"""The GL backend: what works is found by trying, what does not says why in one line, and the answer is remembered."""

import os

import pytest

from collectors import gl as backends


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No backend asked for, nothing remembered. The environment comes back afterwards."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return monkeypatch


def test_a_backend_that_cannot_render_says_why_in_one_line(monkeypatch):
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent.json")
    reason = backends.try_backend.__wrapped__("egl")
    assert reason
    assert "\n" not in reason
    assert len(reason) <= 200


def test_the_first_backend_that_renders_is_chosen_and_remembered(clean):
    tried = []

    def answer(name: str) -> str | None:
        tried.append(name)
        return None if name == "osmesa" else "no such device"

    clean.setattr(backends, "try_backend", answer)
    assert backends.choose_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]
    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == "osmesa"
    assert os.environ["LP_NUM_THREADS"] == "1"
    clean.delenv("MUJOCO_GL")
    assert backends.choose_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]


def test_what_the_user_chose_is_kept_and_pyopengl_told(clean):
    clean.setattr(backends, "try_backend", lambda name: pytest.fail("nothing is to be tried"))
    clean.setenv("MUJOCO_GL", "egl")
    clean.setenv("PYOPENGL_PLATFORM", "osmesa")
    clean.setenv("LP_NUM_THREADS", "3")
    assert backends.choose_backend() == "egl"
    assert os.environ["PYOPENGL_PLATFORM"] == "egl"
    assert os.environ["LP_NUM_THREADS"] == "3"


def test_when_nothing_renders_every_reason_is_given(clean, tmp_path):
    clean.setattr(backends, "try_backend", lambda name: f"{name} is broken")
    with pytest.raises(OSError, match=r"egl: egl is broken; osmesa: osmesa is broken.*apt-get install"):
        backends.choose_backend()
    assert not list(tmp_path.rglob("gl-*"))


GPUS = (
    backends.EglDevice(0, cuda=2, software=False),
    backends.EglDevice(1, cuda=0, software=False),
    backends.EglDevice(2, cuda=None, software=True),
    backends.EglDevice(3, cuda=1, software=False),
)


def test_workers_go_round_the_gpus_in_cudas_order():
    assert [backends.egl_device_for(worker, GPUS) for worker in range(5)] == [1, 3, 0, 1, 3]


def test_gpus_that_cuda_does_not_see_are_left_alone():
    some = tuple(backends.EglDevice(d.index, d.cuda if d.cuda == 1 else None, d.software) for d in GPUS)
    assert {backends.egl_device_for(worker, some) for worker in range(4)} == {3}


def test_gpus_of_which_cuda_says_nothing_are_all_used_and_software_is_not():
    unknown = tuple(backends.EglDevice(d.index, None, d.software) for d in GPUS)
    assert [backends.egl_device_for(worker, unknown) for worker in range(4)] == [0, 1, 3, 0]
    same = tuple(backends.EglDevice(d.index, 0 if d.cuda is not None else None, d.software) for d in GPUS)
    assert [backends.egl_device_for(worker, same) for worker in range(4)] == [0, 1, 3, 0]
    assert backends.egl_device_for(0, GPUS[2:3]) is None
    assert backends.egl_device_for(0, ()) is None


def test_each_worker_is_told_its_gpu_unless_the_user_chose_one(clean):
    clean.setattr(backends, "egl_devices", lambda: GPUS)
    assert backends.gl_environment("egl", worker=0)["MUJOCO_EGL_DEVICE_ID"] == "1"
    assert backends.gl_environment("egl", worker=2)["MUJOCO_EGL_DEVICE_ID"] == "0"
    assert "MUJOCO_EGL_DEVICE_ID" not in backends.gl_environment("egl")
    assert "MUJOCO_EGL_DEVICE_ID" not in backends.gl_environment("osmesa", worker=0)
    clean.setenv("MUJOCO_EGL_DEVICE_ID", "3")
    assert "MUJOCO_EGL_DEVICE_ID" not in backends.gl_environment("egl", worker=0)


def test_an_actor_that_chooses_for_itself_gets_its_gpu(clean):
    clean.setattr(backends, "egl_devices", lambda: GPUS)
    clean.setenv("MUJOCO_GL", "egl")
    assert backends.choose_backend(worker=1) == "egl"
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "3"


def test_the_devices_of_this_machine_can_be_asked():
    """Wherever EGL renders it has devices, in their order."""
    devices = backends.egl_devices()
    assert [device.index for device in devices] == list(range(len(devices)))
    if backends.try_backend("egl") is None:
        assert devices
    assert all(device.cuda is None for device in devices if device.software)
