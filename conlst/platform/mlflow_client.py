"""MLflow clients, for a server's address or a database file."""

import fcntl
from pathlib import Path

from mlflow.tracking import MlflowClient


def open_client(uri: str) -> MlflowClient:
    """A client of tracking and registry at ``uri``; a ``sqlite:///`` database is made if it is not there.

    MLflow makes its tables in hundreds of steps without a lock: two processes that open a new file at once, as parallel
    pipeline steps do, would both fail and leave it broken. So the first one locks the others out.
    """
    database = database_file(uri)
    if database is None:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def database_file(uri: str) -> Path | None:
    """The file of a ``sqlite:///`` address, or ``None`` for any other."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path).resolve()
