"""Run by the Dockerfile where it labels an image: refuses arguments that were not given or that are not true of what is inside.

``BASE``, ``VERSION``, ``COMMIT`` and ``LOCK`` are read from the environment, the package from the working folder. The commit is
the one thing that nothing inside can prove: only its form is checked. Standard library only, for the image of ``serve``.
"""

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

# without these nothing of an image can be told afterwards, and no two builds are known to be alike
_FORMS = {
    "BASE": (r".+@sha256:[0-9a-f]{64}", "an image by digest, name@sha256:<64 hex digits>"),
    "COMMIT": (r"[0-9a-f]{40}", 'the full commit, "$(git rev-parse HEAD)"'),
}


def wrong(arguments: Mapping[str, str], lock: Path, package: Path) -> list[str]:
    """What must be given otherwise.

    Args:
        lock: the file that the packages were installed from.
        package: ``__init__.py`` with the version.
    """
    version = re.search(r'^__version__ = "(.+)"$', package.read_text(), re.MULTILINE)
    assert version, f"{package} has no __version__"
    inside = {"VERSION": version[1], "LOCK": hashlib.sha256(lock.read_bytes()).hexdigest()}
    found = [
        f"{name} is {arguments.get(name, '')!r}; give --build-arg {name}= {what}"
        for name, (form, what) in _FORMS.items()
        if not re.fullmatch(form, arguments.get(name, ""))
    ]
    found += [
        f"{name} is {arguments.get(name, '')!r}; give --build-arg {name}={value}, which is what the checkout has"
        for name, value in inside.items()
        if arguments.get(name) != value
    ]
    return found


if __name__ == "__main__":
    if problems := wrong(os.environ, Path(sys.argv[1]), Path("conlst/__init__.py")):
        raise SystemExit("\n".join(problems))
