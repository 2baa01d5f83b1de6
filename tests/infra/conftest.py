"""What the person running the tests has set does not matter."""

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("LEWM_HOME", "LEWM_DEBUG", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
