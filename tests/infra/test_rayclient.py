"""Whom the token is shown to."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from infra import rayclient
from infra.ports import LOOPBACK, any_free


def test_the_token_is_not_sent_on_to_where_an_address_redirects(monkeypatch):
    seen: list[tuple[str, str | None]] = []
    port = any_free()

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            if self.path == "/elsewhere":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"ray_version": "1"}')
            else:
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{port}/elsewhere")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with HTTPServer((LOOPBACK, port), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert rayclient.check(f"http://{LOOPBACK}:{port}") == "1"
        finally:
            server.shutdown()
            thread.join()
    assert seen == [("/api/version", "Bearer secret"), ("/elsewhere", None)]
