"""Print the part of requirements.lock that serving needs: ``python infra/lock_serving.py > serving/requirements.lock``.

Run it where requirements.lock is installed. It starts from the packages that serving/bentofile.yaml names and follows what the
installed packages say they need, so both ways to an image have the same beginning and serving has the versions that were tested.
"""

import sys
from importlib.metadata import requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def needed(roots: list[str]) -> set[str]:
    """Canonical names of the packages that ``roots`` stand on, themselves included."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        package = waiting.pop()
        extras = tuple(sorted(package.extras))
        if (package.name, extras) in seen:
            continue
        seen.add((package.name, extras))
        for text in requires(package.name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(inner)
    return {canonicalize_name(name) for name, _ in seen}


def serving_lock() -> str:
    """The text of serving/requirements.lock.

    Raises:
        SystemExit: if something is needed that requirements.lock does not pin.
    """
    roots = yaml.safe_load((ROOT / "serving" / "bentofile.yaml").read_text())["python"]["packages"]
    names = needed(roots)
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    pinned = {canonicalize_name(line.split("==")[0]): line for line in pins}
    if missing := sorted(names - pinned.keys()):
        raise SystemExit(f"requirements.lock does not pin {', '.join(missing)}; add them there first")
    header = "# Made from requirements.lock by infra/lock_serving.py; do not edit."
    return "\n".join([header, *(line for name, line in pinned.items() if name in names)]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(serving_lock())
