"""One look for the log, on stderr, in the command line and in every component."""

import logging
import sys
import warnings

# other libraries' news is not ours
_QUIET = (
    "alembic",
    "asyncio",
    "botocore",
    "filelock",
    "fsspec",
    "httpx",
    "onnx_ir",
    "onnxscript",
    "torch.onnx",
    "transformers",
    "urllib3",
)


def set_up_logging(verbose: bool = False, prefix: str = "") -> None:
    """Log conlst's own messages at INFO (DEBUG when ``verbose``), other libraries' warnings; ``prefix`` begins every line."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stderr,
        format=f"{prefix}%(asctime)s %(levelname).1s %(name)s  %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
