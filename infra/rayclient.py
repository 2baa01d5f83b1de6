"""Talking to a Ray cluster: is there one at this address, and may this user use it.

Ray and its client library try for long where nothing answers, and say much where a token is missing. These checks take
seconds and end in one line. The token is the one that Ray itself would find: $RAY_AUTH_TOKEN, the file
$RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
"""

import json
import os
import re
import secrets
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ANSWER_SECONDS = 3.0


def check(dashboard: str) -> str:
    """The Ray version behind a dashboard, within seconds; a ConnectionError in one line says what is wrong."""
    found = token(needed=False)
    request = urllib.request.Request(f"{dashboard}/api/version")
    if found:
        request.add_unredirected_header("Authorization", f"Bearer {found}")
    check_port(dashboard, "Ray dashboard")
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(_host(dashboard)) else []
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=_ANSWER_SECONDS) as answer:
            version = json.load(answer)["ray_version"]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            which = "another token than this machine's" if found else "a token, and this machine has none"
            raise ConnectionError(
                f"{dashboard} wants {which}: copy the head's ~/.ray/auth_token here, or set RAY_AUTH_TOKEN_PATH"
            ) from error
        raise ConnectionError(f"{dashboard} is no Ray dashboard: HTTP status {error.code}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConnectionError(f"{dashboard} does not answer as a Ray dashboard does: {error}") from error
    use_token()
    return version


def token(*, make: bool = False, needed: bool = True) -> str:
    """The token that Ray would find. With `make` a new one is written where there is none; ValueError where it is
    `needed` and not there, else "" then."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if found or (not make and not needed):
        return found
    if not make:
        raise ValueError(f"there is no token at {path}: copy the head's ~/.ray/auth_token there")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w") as opened:
        os.fchmod(file, 0o600)
        opened.write(secrets.token_hex(32))
    return token()


def use_token() -> None:
    """Have Ray in this process show the token, where there is one and the user has not said otherwise."""
    if token(needed=False):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def direct(dashboard: str) -> Iterator[None]:
    """No proxy for a dashboard on loopback, which a proxy would look for on its own machine."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    if is_loopback(_host(dashboard)):
        os.environ |= {name: ",".join(filter(None, (value, _host(dashboard)))) for name, value in before.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_port(address: str, what: str) -> None:
    """ConnectionError unless something listens at HOST:PORT or a URL of it."""
    found = re.fullmatch(r"(?:(https?)://)?(\[[^]]+\]|[^/:]+)(?::(\d+))?/?", address)
    if found is None or not (found[3] or found[1]):
        raise ValueError(f"{address} is not HOST:PORT")
    port = int(found[3] or (443 if found[1] == "https" else 80))
    try:
        socket.create_connection((found[2].strip("[]"), port), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no {what} answers at {address}: {error}") from error


def _host(url: str) -> str:
    return re.sub(r"^https?://|(:\d+)?/?$", "", url).strip("[]")


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
