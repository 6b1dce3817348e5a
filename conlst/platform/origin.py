"""What ran: the image's commit, which its build writes, and its digest, which the pipeline was compiled with."""

import os

_VARIABLES = {"commit": "CONLST_COMMIT", "image": "CONLST_IMAGE"}


def origin() -> dict[str, str]:
    """Tags of a run or a version; without an image there are none."""
    return {tag: os.environ[variable] for tag, variable in _VARIABLES.items() if os.environ.get(variable)}
