"""Objects of a bucket, `s3://` or `gs://`, through pyarrow.fs: ranged reads, retries, whole downloads.

Endpoint, region and credentials are those of the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ... for
S3). What fails for a while is tried again, up to `ATTEMPTS` times with growing, random pauses; what is not there or not
allowed is not. A response shorter than what was asked for counts as a failure. `gs://` is the same code, untested.
"""

import errno
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from pyarrow import fs as _fs

fs: Any = _fs  # its compiled modules have no stubs

SCHEMES = ("s3://", "gs://")
ATTEMPTS = 6
_PAUSE = 0.1
"""Seconds before the second attempt; each further pause is twice as long, and a random half to all of it is waited."""
_CHUNK = 8 << 20
_REFUSED = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE|UNRECOGNIZED_CLIENT|"
    "AUTHENTICATION_TOKEN|EXPIRED_TOKEN|HTTP status 40[013]"
)
"""What an answer says that will be the same the next time."""
_TIMEOUT = 20.0
"""Seconds without an answer after which a request has failed."""

Result = TypeVar("Result")


def is_remote(location: Path | str) -> bool:
    """Whether a location is a URI of a bucket."""
    return isinstance(location, str) and location.startswith(SCHEMES)


class Remote:
    """Everything below a URI. Errors are OSErrors that name the object."""

    def __init__(self, uri: str) -> None:
        if not is_remote(uri):
            raise ValueError(f"{uri} is no URI of a bucket: it must begin with {' or '.join(SCHEMES)}")
        self.uri = uri.rstrip("/")
        scheme, _, self._root = self.uri.partition("://")
        if not self._root or any(part in ("", ".", "..") for part in self._root.split("/")):
            raise ValueError(f"{uri} is no URI of a bucket: write {scheme}://BUCKET/PATH")
        self._fs = _s3() if scheme == "s3" else fs.GcsFileSystem()

    def __repr__(self) -> str:
        return f"Remote({self.uri!r})"

    def names(self, prefix: str = "") -> dict[str, int]:
        """Names and sizes of the objects below the URI, or below a directory there; empty when there are none."""
        root = "/".join(part for part in (self._root, prefix) if part)
        selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
        found = self._retry(prefix, lambda: self._fs.get_file_info(selector))
        return {
            info.path.removeprefix(self._root).lstrip("/"): info.size for info in found if info.type == fs.FileType.File
        }

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """An object's bytes, or `size` of them from `offset`; fewer only where the object ends."""

        def once() -> bytes:
            with self._fs.open_input_file(f"{self._root}/{name}") as file:
                length = max(0, file.size() - offset)
                wanted = length if size is None else min(size, length)
                data = file.read_at(wanted, offset)
            if len(data) != wanted:
                raise OSError(f"{len(data)} of {wanted} bytes came")
            return data

        return self._retry(name, once)

    def download(self, name: str, file: IO[bytes], size: int, sha256: str | None) -> None:
        """Write an object to the beginning of a file, part by part. OSError (EIO) when the object has not the size and
        sha256 (None for any) that it should have, also at the second time."""
        for attempt in (1, 2):
            file.seek(0)
            digest, at = hashlib.sha256(), 0
            while at < size and (data := self.read(name, at, min(_CHUNK, size - at))):
                digest.update(data)
                file.write(data)
                at += len(data)
            if at == size and sha256 in (None, digest.hexdigest()):
                return
            if attempt == 2:
                wrong = "its bytes do not have its sha256" if at == size else f"it has {at} bytes, not {size}"
                raise _error(OSError, f"{self._place(name)}: {wrong}", errno.EIO)

    def upload(self, path: Path, name: str) -> None:
        """Store a file as an object. Nobody sees a part of it: an object appears when it is complete."""

        def once() -> None:
            with path.open("rb") as source, self._fs.open_output_stream(f"{self._root}/{name}") as target:
                while data := source.read(_CHUNK):
                    target.write(data)

        self._retry(name, once)

    def write(self, name: str, data: bytes) -> None:
        """Store bytes as an object."""

        def once() -> None:
            with self._fs.open_output_stream(f"{self._root}/{name}") as target:
                target.write(data)

        self._retry(name, once)

    def _place(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    def _retry(self, name: str, call: Callable[[], Result]) -> Result:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except OSError as error:
                text = f"{self._place(name)}: {_first_line(error)}"
                if isinstance(error, FileNotFoundError):
                    raise _error(FileNotFoundError, text, errno.ENOENT) from error
                if isinstance(error, PermissionError) or _REFUSED.search(str(error)):
                    raise _error(PermissionError, text, errno.EACCES) from error
                if attempt == ATTEMPTS:
                    raise OSError(f"{text} ({ATTEMPTS} attempts)") from error
            time.sleep(_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")


def _error(kind: type[OSError], text: str, number: int) -> OSError:
    """An OSError whose text is `text` alone."""
    error = kind(text)
    error.errno = number
    return error


def _s3() -> Any:
    options: dict[str, Any] = {"connect_timeout": _TIMEOUT, "request_timeout": _TIMEOUT}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options["scheme"], _, options["endpoint_override"] = endpoint.rstrip("/").rpartition("://")
        options["scheme"] = options["scheme"] or "https"
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    # The attempts are counted here, where they can be named.
    return fs.S3FileSystem(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1), **options)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
