"""Fixtures that all tests share: a GL backend that renders, one local Ray, and no telemetry."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Tests compute on small tensors, for which a second thread mostly spins and, on a busy machine, waits for its turn.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_cache = tempfile.TemporaryDirectory(prefix="lewm-test-cache-", ignore_cleanup_errors=True)
os.environ["LEWM_CACHE"] = _cache.name


@pytest.fixture(scope="session")
def gl() -> str:
    """The GL backend of this process, chosen before anything imports mujoco."""
    from collectors.gl import choose_backend

    return choose_backend()


@pytest.fixture(scope="session")
def ray_local(gl: str) -> Iterator[None]:
    """One local Ray for the whole session; starting one takes seconds."""
    import ray

    from collectors.cluster import ensure_ray

    ensure_ray(cpus=2)
    yield
    ray.shutdown()
