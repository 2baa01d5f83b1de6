"""Where files are kept that can be made again."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """$LEWM_CACHE, else `lewm` in the user's cache directory."""
    if chosen := os.environ.get("LEWM_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "lewm"
