"""The GL backend: what works is found by trying, what does not says why in one line, and the answer is remembered."""

import os

import pytest

from collectors import gl as backends


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No backend asked for, nothing remembered. The environment comes back afterwards."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS"):
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
    with pytest.raises(RuntimeError, match=r"egl: egl is broken; osmesa: osmesa is broken.*apt-get install"):
        backends.choose_backend()
    assert not list(tmp_path.rglob("gl-*"))
