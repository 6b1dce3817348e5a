"""A real PostgreSQL from Debian's package, on 127.0.0.1, for the length of a block."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.local_services import free_port

# made by Debian's package; the server refuses to run as root
_USER = "postgres"


def programs() -> Path | None:
    """The folder with initdb and postgres, of the newest version, which Debian keeps off PATH; ``None`` if there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda folder: int(re.sub(r"\D", "", folder.parent.name) or 0))
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


class Database:
    """A server that can be stopped and started over the same data. ``environment`` is what libpq needs to reach it."""

    def __init__(self, folder: Path) -> None:
        """Make the data in an empty folder below one that everybody may enter."""
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self.environment = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(free_port()),
            "PGUSER": "mlflow",
            "PGPASSWORD": secrets.token_hex(24),
        }
        folder.mkdir(mode=0o700)
        password = folder / "password"
        password.write_text(self.environment["PGPASSWORD"])
        if os.geteuid() == 0:
            for path in (folder, password):
                shutil.chown(path, _USER, _USER)
        self._run("initdb", "-D", str(folder / "data"), "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(password))

    def start(self) -> None:
        """Returns when the server answers."""
        options = [f"listen_addresses={self.environment['PGHOST']}", f"unix_socket_directories={self._folder}"]
        command = ["-D", str(self._folder / "data"), "-p", self.environment["PGPORT"], *(x for o in options for x in ("-c", o))]
        with (self._folder.parent / "postgres.log").open("ab") as log:
            self._server = subprocess.Popen([self._program("postgres"), *command], stdout=log, stderr=log, **_as_user())
        deadline = time.monotonic() + 60
        while self._run("pg_isready", "-d", "postgres", check=False):
            assert self._server.poll() is None, (self._folder.parent / "postgres.log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL is not ready after 60 s"
            time.sleep(0.1)

    def create(self, name: str) -> None:
        """Make a database."""
        self._run("createdb", name)

    def stop(self, *, orderly: bool = True) -> None:
        """End the server, or break it off: what was committed is found again at the next start."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT if orderly else signal.SIGQUIT)
            self._server.wait(60)
            self._server = None

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        command = [self._program(program), *arguments]
        environment = os.environ | self.environment
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **_as_user())
        assert not check or not done.returncode, done.stderr
        return done.returncode

    def _program(self, name: str) -> str:
        folder = programs()
        assert folder is not None
        return str(folder / name)


@contextmanager
def postgresql(folder: Path) -> Iterator[Database]:
    """A running server with its data in a new folder at ``folder``."""
    database = Database(folder)
    database.start()
    try:
        yield database
    finally:
        database.stop()


def _as_user() -> dict[str, Any]:
    return {"user": _USER, "group": _USER, "extra_groups": (), "cwd": "/"} if os.geteuid() == 0 else {}
