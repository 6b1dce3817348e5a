"""Write requirements.lock, from what is installed here, and the parts of it that other images need: ``python -m infra.lock``.

Run it in an environment in which the tests passed. It asks PyPI for the digests of each version's files: an install takes these
files or none. torch is not among them: the index decides whether it comes with CUDA, and torch.lock pins it.
"""

import json
import re
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions, requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK, SERVING_LOCK, MLFLOW_LOCK = (
    ROOT / name for name in ("requirements.lock", "serving/requirements.lock", "infra/mlflow.lock")
)
# the server of infra/base/mlflow.yaml: with users, on PostgreSQL and S3
_MLFLOW = ["mlflow[auth]", "psycopg2-binary", "boto3"]
# pip comes with the environment, conlst is the checkout
_ELSEWHERE = {"conlst", "pip", "torch"}
# of the wheels those that somebody may install: CPython on Linux, macOS on Arm, or any machine
_WHEELS = re.compile(
    r"-(py2\.py3|py3|cp311|cp312|cp313|cp3\d+-abi3)\b.*-(any|.*manylinux.*(x86_64|aarch64)|macosx.*(arm64|universal2))\.whl$"
)
_SIMPLE = "application/vnd.pypi.simple.v1+json"


def whole_lock() -> str:
    """The text of requirements.lock. Asks pypi.org.

    Raises:
        SystemExit: if PyPI has no file of a version that is installed.
    """
    installed = {canonicalize_name(found.name): found.version for found in distributions()}
    wanted = sorted((name, version) for name, version in installed.items() if name not in _ELSEWHERE)
    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(lambda package: _digests(*package), wanted))
    header = (
        "# Versions that were tested together, with the digests of their files. Made by infra/lock.py; do not edit.\n"
        "#   pip install --no-deps --require-hashes -r requirements.lock && pip install -r torch.lock"
    )
    return _text(header, ((f"{name}=={version}", found) for (name, version), found in zip(wanted, digests, strict=True)))


def serving_lock() -> str:
    """The text of serving/requirements.lock: what serving/bentofile.yaml names and what that stands on."""
    return _part(yaml.safe_load((ROOT / "serving" / "bentofile.yaml").read_text())["python"]["packages"])


def mlflow_lock() -> str:
    """The text of infra/mlflow.lock."""
    return _part(_MLFLOW)


def _part(roots: list[str]) -> str:
    """Of requirements.lock what some packages stand on, themselves included.

    Raises:
        SystemExit: if something is needed that requirements.lock does not pin.
    """
    names = _needed(roots)
    pinned = pins(LOCK)
    if missing := sorted(names - pinned.keys()):
        raise SystemExit(f"requirements.lock does not pin {', '.join(missing)}; install them and run python -m infra.lock")
    return _text(
        "# Made from requirements.lock by infra/lock.py; do not edit.", (pinned[name] for name in pinned if name in names)
    )


def pins(lock: Path) -> dict[str, tuple[str, list[str]]]:
    """Of each package of a lock file, by canonical name: ``name==version`` and the digests of its files."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in lock.read_text().splitlines():
        if "==" in line:
            pin = line.split()[0]
            digests: list[str] = []
            found[canonicalize_name(pin.split("==")[0])] = (pin, digests)
        elif "--hash=" in line:
            digests.append(line.split("sha256:")[1].split()[0])
    return found


def _text(header: str, packages: Iterable[tuple[str, list[str]]]) -> str:
    entries = (" \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in digests)]) for pin, digests in packages)
    return "\n".join([header, *entries]) + "\n"


def _digests(name: str, version: str) -> list[str]:
    request = urllib.request.Request(f"https://pypi.org/simple/{name}/", headers={"Accept": _SIMPLE})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    # a file's name writes the package its own way
    of_version = re.compile(
        re.sub("-", "[-_.]+", re.escape(name).replace(r"\-", "-")) + "-" + re.escape(version) + r"(-|\.tar\.gz$|\.zip$)", re.I
    )
    ours = [file for file in files if of_version.match(file["filename"])]
    kept = [file for file in ours if not file["filename"].endswith(".whl") or _WHEELS.search(file["filename"])]
    if not kept:
        raise SystemExit(f"PyPI has no file of {name} {version}")
    return sorted(file["hashes"]["sha256"] for file in kept)


def _needed(roots: list[str]) -> set[str]:
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


if __name__ == "__main__":
    LOCK.write_text(whole_lock())
    SERVING_LOCK.write_text(serving_lock())
    MLFLOW_LOCK.write_text(mlflow_lock())
