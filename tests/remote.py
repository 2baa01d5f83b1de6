"""A bucket for tests: moto's server as a process on loopback, and a proxy before it that fails on request."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "lewm-test"
Fault = Callable[[str, str], str | None]
"""(method, path of the request) to "error", "forbid", "reset", "truncate" or None."""


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to a port of loopback, and fails those that `fault` says. `requests` lists (method, path,
    Range header) of all."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.fault = port, (lambda method, path: None)
        self.requests: list[tuple[str, str, str]] = []

    fault: Fault

    def handle_error(self, request, client_address) -> None:
        """A client that goes away while it is answered is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        proxy = self.server
        assert isinstance(proxy, FaultyProxy)
        body = self._body()
        proxy.requests.append((self.command, self.path, self.headers.get("Range", "")))
        fault = proxy.fault(self.command, self.path)
        if fault in ("error", "forbid"):
            self.send_response(500 if fault == "error" else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=30)
        dropped = ("transfer-encoding", "expect", "content-length", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        stated = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", stated or "0")
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@contextmanager
def bucket_server(patch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A running server with an empty bucket; the environment names the proxy before it as the S3 endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    proxy = FaultyProxy(port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        _create_bucket(process, port)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            patch.setenv(name, value)
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        process.terminate()
        process.wait()


def _create_bucket(process: "subprocess.Popen[bytes]", port: int) -> None:
    while True:
        assert process.poll() is None, "the S3 server ended"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("PUT", f"/{BUCKET}", headers={"Host": "s3.amazonaws.com"})
            assert connection.getresponse().status == 200
            return
        except OSError:
            time.sleep(0.05)
