"""glibc's heap, which keeps what was freed."""

import ctypes
import sys


def give_back() -> None:
    """Return to the system what is free already.

    Opening a session leaves holes as large as its weights, and training steps of ever new shapes leave holes that the next shape
    does not fit into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    # musl has no such function and no such holes
    if trim is not None:
        trim(0)
