"""Where things are kept that can be fetched or made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$CONLST_CACHE``, or ``~/.cache/conlst``."""
    configured = os.environ.get("CONLST_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "conlst"
