"""Where things that can be made again are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$ALIGNSCOPE_CACHE, else `alignscope` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    named = os.environ.get("ALIGNSCOPE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignscope"
