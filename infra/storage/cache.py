"""Where this user keeps what can be made again: indexes, fetched files, fingerprints."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of this package in the user's cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "olmo2"
