"""A real MLflow server over a home's store, which tests can stop and start again at the same address."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

from infra.home import Home
from infra.ports import LOOPBACK, any_free


class MlflowServer:
    """Not running until it is started. Stopping kills it, and what it was doing."""

    def __init__(self, home: Home) -> None:
        self.home, self.port = home, any_free()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.home.database}"]
        words += ["--artifacts-destination", self.home.artifacts.as_uri(), "--host", LOOPBACK]
        words += ["--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            words,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with direct.open(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.1)
        raise AssertionError("the server did not answer")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
