"""Builds the images for real with podman and runc, on a base made from Debian's packages: no registry of images is asked.

The base stands for python:3.11-slim-bookworm: the same distribution and Python, and no compiler in either.
"""

import ast
import configparser
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from conlst import __version__
from machine import needs

ROOT = Path(__file__).parents[1]
# always the same one, so that a build takes from the last what did not change
COMMIT = "0c" * 20
LOCKS = {
    "train": ROOT / "requirements.lock",
    "test": ROOT / "requirements.lock",
    "serve": ROOT / "serving" / "requirements.lock",
    "mlflow": ROOT / "infra" / "mlflow.lock",
}

_PROGRAMS = ("podman", "runc", "mmdebstrap")
# higher limits than this machine's are refused; Debian's crun fails where cgroups are of version 1
_CONTAINERS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# what infra/base gives a pod and what its policies hold it to: nothing may be written but what is mounted
LOCKED_DOWN = (
    *("--network", "none", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges", "--tmpfs", "/tmp:rw,nosuid,nodev,size=1g"),
)

needs_podman = needs(all(map(shutil.which, _PROGRAMS)) and os.geteuid() == 0, f"{', '.join(_PROGRAMS)} with root's rights")


def lock_digest(target: str) -> str:
    """sha256 of the file that a target's packages come from."""
    return hashlib.sha256(LOCKS[target].read_bytes()).hexdigest()


@dataclass
class Podman:
    """podman in the machine's own store, so that layers that did not change are not built again.

    Attributes:
        folder: for its settings and the base's archive.
        base: the base image by digest, once :meth:`make_base` made it.
    """

    folder: Path
    base: str = ""

    def __post_init__(self) -> None:
        (self.folder / "containers.conf").write_text(_CONTAINERS)

    def run(self, *arguments: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``podman arguments``; with ``check`` an exit code other than 0 fails the test with what was said."""
        environment = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        done = subprocess.run(
            ["podman", *arguments], input=given, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
        )
        assert not check or done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def make_base(self) -> None:
        """Debian's Python and what it needs. The same packages give the same archive, and so the same layer."""
        context = self.folder / "base"
        context.mkdir()
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-venv", "bookworm", "base.tar"]
        made = subprocess.run(
            command, cwd=context, env={**os.environ, "SOURCE_DATE_EPOCH": "0"}, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr[-4000:]
        (context / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
        self.run("build", "--isolation", "oci", "--tag", "localhost/conlst-base:test", str(context))
        shutil.rmtree(context)
        self.base = f"localhost/conlst-base@{self.digest('localhost/conlst-base:test')}"

    def digest(self, image: str) -> str:
        return self.run("image", "inspect", "--format", "{{.Digest}}", image).stdout.strip()

    def build(self, target: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Build a target of the Dockerfile as localhost/conlst-<target>:test; ``changes`` are other build arguments."""
        arguments = {"BASE": self.base, "VERSION": __version__, "COMMIT": COMMIT, "LOCK": lock_digest(target), **changes}
        return self.run(
            *("build", "--isolation", "oci", "--network", "host", "--pull=never", "--target", target),
            *("--tag", f"localhost/conlst-{target}:test"),
            *(part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")),
            *(part for mount in _pip_mounts(self.folder / "pip.conf") for part in ("--volume", f"{mount}:ro")),
            str(ROOT),
            check=not changes,
        )

    def image(self, target: str) -> str:
        """Build a target and name it by digest."""
        self.build(target)
        return f"localhost/conlst-{target}@{self.digest(f'localhost/conlst-{target}:test')}"

    def until_ready(self, container: str, script: str) -> str:
        """What a script for the container's Python prints, once it ends well; at the most a minute."""
        deadline = time.monotonic() + 60
        while True:
            asked = self.run("exec", "--interactive", container, "python", "-", given=script, check=False)
            if asked.returncode == 0:
                return asked.stdout
            assert time.monotonic() < deadline, self.run("logs", container).stderr + asked.stderr
            time.sleep(0.5)


def _pip_mounts(file: Path) -> list[str]:
    """This machine's pip settings as a file for the build, with the indexes and certificates on disk that they name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    for key, _, value in (line.partition("=") for line in listed.splitlines()):
        kind, name = key.rsplit(".", 1)
        # pip lets a variable win over a file
        if kind == ":env:" or (kind == "global" and f":env:.{name}=" not in listed):
            settings[name] = " ".join(ast.literal_eval(value).split())
    written = configparser.RawConfigParser()
    written["global"] = settings
    with file.open("w") as opened:
        written.write(opened)
    mounts = [f"{file}:/etc/pip.conf"]
    for word in {word for value in settings.values() for word in value.split()}:
        # the pages of an index name files that lie beside them
        path = Path(urlsplit(word).path).parent if word.startswith("file:") else Path(word)
        if path.is_absolute() and path.exists():
            mounts.append(f"{path}:{path}")
    return mounts
