"""MLflow as the record of what was run: parent runs, child runs, parameters once, metrics by global step, figures.

Tracking never stops the work it describes, nor does every step of it wait for an answer: metrics are kept in
``<folder>/untracked.jsonl`` and sent together every few seconds. From the first failed or slow call on all events are kept there
and sent when the run ends, or later by :func:`replay`; so they are after a kill. What cannot be kept either, on a full disk, is
lost, which is said once. Every event is idempotent: a run has a key, by which it is found or created, and metrics carry the time
at which they were measured.

``MLFLOW_TRACKING_URI`` names the server; without it nothing is recorded, which is said once. Where the folder does not outlive
the process, as in a pod, ``CONLST_UNTRACKED`` names an ``s3://`` prefix that gets what is left in it.
"""

import functools
import io
import json
import logging
import os
import re
import shutil
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from conlst.contract.errors import BackendError, ConfigError
from conlst.platform.mlflow_client import database_file, open_client

log = logging.getLogger(__name__)

SPOOL = "untracked.jsonl"
_COPIES = "untracked"
# a spool in S3, and what is put beside it once it was sent
_PACKED = ".untracked.tar.gz"
_SENT = ".sent"
_KEY_TAG = "conlst.run"
_KEY = re.compile(r"[A-Za-z0-9._:/@ -]{1,200}")
# metrics that came within this time travel together
_TOGETHER_SECONDS = 5.0
# an answer that takes longer is recorded, but training does not wait for another one
_PATIENCE_SECONDS = 5.0
# what MLflow takes in one call, and how long a finished run may hold its process up to send what was kept
_BATCH = 100
_CLOSING_SECONDS = 60.0
# the server has understood and will say the same tomorrow
_FINAL_ANSWERS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")

Event = dict[str, Any]


class Recorder(Protocol):
    def record(self, event: Event) -> None: ...

    def close(self) -> None: ...


class NullTracker:
    """Tracking is off."""

    def record(self, event: Event) -> None:
        """Forget the event."""

    def close(self) -> None:
        """Nothing was kept."""


class Tracker:
    """Sends events to the server at ``uri``, metrics some at a time; from the first failure on, keeps them in ``folder``."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri = uri
        self._folder = Path(folder)
        self._keeping = False
        self._losing = False
        self._sender: _Sender | None = None
        self._sent = time.monotonic()

    def record(self, event: Event) -> None:
        if self._keeping or event["kind"] == "metrics":
            self._keep(event)
            if not self._keeping and time.monotonic() - self._sent > _TOGETHER_SECONDS:
                self._try()
        elif not self._try(event):
            self._keep(event)

    def close(self) -> None:
        """Send what was kept, if the server is back; if not, leave it for :func:`replay`."""
        try:
            _send_kept(self._folder, self._uri, _CLOSING_SECONDS)
        except (BackendError, OSError) as error:
            log.warning("not all that is kept in %s was sent: %s", self._folder, error)

    def _keep(self, event: Event) -> None:
        try:
            _keep(self._folder, event)
        except OSError as error:
            if not self._losing:
                log.error("what MLflow does not take at once is lost, it cannot be kept in %s either: %s", self._folder, error)
            self._losing = True

    def _try(self, event: Event | None = None) -> bool:
        """Send what waits, then ``event``; from the first failure or slow answer on no more is tried. Whether it was sent."""
        try:
            # opening a new database takes seconds, once; that is not slowness
            self._sender = self._sender or _Sender(self._uri)
            started = time.monotonic()
            _send_kept(self._folder, self._uri, _PATIENCE_SECONDS, self._sender)
            if event is not None:
                self._sender.send(event)
        except Exception as error:  # whatever the client library throws, training goes on and the event is kept
            self._keep_from_now_on(f"does not answer ({error})")
            return False
        self._sent = time.monotonic()
        if self._sent - started > _PATIENCE_SECONDS:
            self._keep_from_now_on("is slow")
        return True

    def _keep_from_now_on(self, reason: str) -> None:
        self._keeping = True
        log.warning("the tracking server %s %s; from here on the record is kept in %s", self._uri, reason, self._folder / SPOOL)


class Run:
    """A run to log to. ``key`` finds it again, from other processes and after a restart."""

    def __init__(self, recorder: Recorder, experiment: str, key: str) -> None:
        self.key = key
        self._recorder = recorder
        self._experiment = experiment

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a global step: one that counts on over restarts."""
        now = _milliseconds()
        self._record("metrics", points=[[name, float(value), step, now] for name, value in values.items()])

    def figure(self, path: Path) -> None:
        """Log an image, under ``figures``."""
        self.artifact(path, "figures")

    def artifact(self, path: Path, under: str = "") -> None:
        """Log a small file. Models do not go through MLflow: log their address as a tag."""
        if not Path(path).is_file():
            log.warning("%s is not a file and is not recorded in run %s", path, self.key)
            return
        self._record("artifact", path=str(Path(path).resolve()), under=under)

    @contextmanager
    def _open(
        self, name: str, parent: str | None, tags: Mapping[str, str] | None, params: Mapping[str, Any] | None
    ) -> Iterator[None]:
        noted = {key: str(value) for key, value in (tags or {}).items()}
        chosen = {key: str(value) for key, value in (params or {}).items()}
        self._record("start", name=name, parent=parent, tags=noted, params=chosen)
        whole = Run(self._recorder, self._experiment, parent)._ended_by_failure() if parent else nullcontext()
        with whole, self._ended_by_failure():
            yield
        self._record("end", status="FINISHED")

    @contextmanager
    def _ended_by_failure(self) -> Iterator[None]:
        # nobody else may be left to end it; what succeeds after another try ends it anew
        try:
            yield
        except BaseException as error:
            self._record("end", status="KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def _record(self, kind: str, **details: Any) -> None:
        self._recorder.record({"kind": kind, "experiment": self._experiment, "run": self.key, "time": _milliseconds(), **details})


@contextmanager
def run(
    name: str,
    *,
    experiment: str,
    folder: Path,
    key: str | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """Record a run for the length of the block; it ends as FINISHED, or as FAILED if the block raises.

    Args:
        folder: where events are kept while the server is away; not inside an artifact folder.
        key: identity of the run within the experiment. A run of this key is continued, else a new one begins; then the
            parameters of the first time stand, and others are noted as tags ``resumed.<name>``.
        parent: key of the run that this one is a part of; it ends together with a part that fails.

    Raises:
        ConfigError: if a key holds other characters than letters, digits, blanks and ``._:/@-``.
    """
    current_key = _checked_key(uuid.uuid4().hex if key is None else key)
    parent_key = None if parent is None else _checked_key(parent)
    with _recorder(folder) as recorder:
        current = Run(recorder, experiment, current_key)
        with current._open(name, parent_key, tags, params):
            yield current


@contextmanager
def part_of(key: str, *, experiment: str, folder: Path) -> Iterator[None]:
    """A part without a run of its own: if the block raises, the run of ``key`` ends as FAILED, and else nothing is recorded.

    Args:
        key, experiment, folder: as of :func:`run`. If there is no such run yet, one is made that has failed.

    Raises:
        ConfigError: as :func:`run`.
    """
    whole = _checked_key(key)
    with _recorder(folder) as recorder, Run(recorder, experiment, whole)._ended_by_failure():
        yield


@contextmanager
def _recorder(folder: Path) -> Iterator[Recorder]:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    recorder: Recorder = Tracker(uri, folder) if uri else NullTracker()
    if not uri:
        _say_off()
    try:
        yield recorder
    finally:
        recorder.close()
        _store(Path(folder))


def replay_stored(prefix: str) -> int:
    """Send what runs left below an ``s3://`` prefix, as :func:`replay` does; each spool once.

    Raises:
        BackendError: as :func:`replay`, or if S3 fails.
    """
    from conlst.platform import objects

    found = objects.list_objects(prefix)
    sent = 0
    for uri in found:
        if not uri.endswith(_PACKED) or f"{uri}{_SENT}" in found:
            continue
        with TemporaryDirectory() as scratch:
            with tarfile.open(objects.fetch_file(uri, Path(scratch))) as packed:
                packed.extractall(Path(scratch) / "spool", filter="data")
            sent += replay(Path(scratch) / "spool")
        objects.put_new(b"", f"{uri}{_SENT}")
    return sent


def replay(folder: Path) -> int:
    """Send what a run in ``folder`` could not send, and forget it there. Repeating a part that arrived before does no harm.

    Returns:
        how many events were sent.

    Raises:
        BackendError: if no server is named or it fails; what it did not take is still kept.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise BackendError(f"nowhere to send {Path(folder) / SPOOL}: set MLFLOW_TRACKING_URI")
    sent = _send_kept(Path(folder), uri, float("inf"))
    log.info("%d kept events were sent to %s", sent, uri)
    return sent


class _Sender:
    """Carries events out on a tracking server. Every method may be repeated."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = open_client(uri)
        self._experiments: dict[str, str] = {}
        self._runs: dict[tuple[str, str], str] = {}

    def send(self, event: Event) -> None:
        run_id = self._run_id(event["experiment"], event["run"], event["time"])
        try:
            match event["kind"]:
                case "start":
                    self._start(run_id, event)
                case "metrics":
                    points = [Metric(name, value, at, step) for name, value, step, at in event["points"]]
                    self._log(run_id, metrics=points)
                case "artifact" if not Path(event["path"]).is_file():
                    log.warning("%s is gone and is not recorded in run %s", event["path"], event["run"])
                case "artifact":
                    self._client.log_artifact(run_id, event["path"], event["under"] or None)
                case "end":
                    self._client.set_terminated(run_id, event["status"], event["time"])
        except MlflowException as error:
            if error.error_code not in _FINAL_ANSWERS:
                raise
            if len(event.get("points", ())) > 1:
                # the others of its batch are not at fault
                for point in event["points"]:
                    self.send(event | {"points": [point]})
                return
            log.warning("the tracking server refuses to record %s of run %s: %s", event["kind"], event["run"], error)

    def _start(self, run_id: str, event: Event) -> None:
        found = self._client.get_run(run_id)
        known, params = found.data.params, event["params"]
        changed = {name: value for name, value in params.items() if known.get(name, value) != value}
        if changed:
            log.warning("run %s goes on with other parameters than it began with: %s", event["run"], ", ".join(changed))
        tags = event["tags"] | {f"resumed.{name}": value for name, value in changed.items()}
        tags["mlflow.runName"] = event["name"]
        if event["parent"]:
            tags["mlflow.parentRunId"] = self._run_id(event["experiment"], event["parent"], event["time"])
        self._log(
            run_id,
            params=[Param(name, value) for name, value in params.items() if name not in known],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        if found.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        for first in range(0, max(len(metrics), len(params), len(tags)), _BATCH):
            part = slice(first, first + _BATCH)
            self._client.log_batch(run_id, metrics[part], params[part], tags[part])

    def _run_id(self, experiment: str, key: str, time_ms: int) -> str:
        # a child may come before its parent, whose own events then wait in another process's folder
        if (experiment, key) not in self._runs:
            experiment_id = self._experiment_id(experiment)
            found = self._client.search_runs(
                [experiment_id], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1, order_by=["attributes.start_time ASC"]
            )
            made = found[0] if found else self._client.create_run(experiment_id, time_ms, {_KEY_TAG: key}, run_name=key)
            self._runs[experiment, key] = made.info.run_id
        return self._runs[experiment, key]

    def _experiment_id(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found and found.lifecycle_stage == "deleted":
                # MLflow finds it all the same, and then takes no run
                raise BackendError(
                    f"the experiment {name!r} was deleted; mlflow experiments restore --experiment-id {found.experiment_id}"
                )
            self._experiments[name] = found.experiment_id if found else self._create_experiment(name)
        return self._experiments[name]

    def _create_experiment(self, name: str) -> str:
        # without a server MLflow would put artifacts into the working directory; keep them beside the database
        database = database_file(self._uri)
        location = None if database is None else str(database.parent / "mlartifacts" / uuid.uuid4().hex)
        try:
            return str(self._client.create_experiment(name, location))
        except MlflowException as error:
            # two processes began at once
            found = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return str(found.experiment_id)


def _keep(folder: Path, event: Event) -> None:
    if event["kind"] == "artifact":
        # the file may be gone or renamed by the time it is sent
        copy = folder / _COPIES / uuid.uuid4().hex / Path(event["path"]).name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(event["path"], copy)
        event = event | {"path": str(copy.relative_to(folder))}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SPOOL).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def _store(folder: Path) -> None:
    """Bring a spool, if one is left, to ``$CONLST_UNTRACKED``, if that is set: a pod's disk goes with the pod."""
    prefix = os.environ.get("CONLST_UNTRACKED")
    if not prefix:
        return
    from conlst.platform import objects

    content = io.BytesIO()
    uri = f"{prefix.rstrip('/')}/{uuid.uuid4().hex}{_PACKED}"
    try:
        if not (folder / SPOOL).exists():
            return
        with tarfile.open(fileobj=content, mode="w:gz") as packed:
            packed.add(folder, arcname=".")
        objects.put_new(content.getvalue(), uri)
    except (BackendError, OSError) as error:  # as with MLflow: the work that is described goes on
        log.error("what MLflow did not take could not be kept either: %s", error)
        return
    log.warning("what MLflow did not take is kept at %s; send it with conlst replay %s", uri, prefix)


def _send_kept(folder: Path, uri: str, seconds: float, sender: _Sender | None = None) -> int:
    spool = folder / SPOOL
    if not spool.exists():
        return 0
    lines = spool.read_text(encoding="utf-8").splitlines()
    events = [event for line in lines if (event := _parsed(line, spool))]
    deadline = time.monotonic() + seconds
    sent = 0
    try:
        sender = sender or _Sender(uri)
        for event, count in _merged(events):
            if time.monotonic() > deadline:
                raise BackendError(f"not all was sent within {seconds:g} s")
            sender.send(event | {"path": str(folder / event["path"])} if event["kind"] == "artifact" else event)
            sent += count
    except Exception as error:  # as in Tracker.record: whatever the client library throws, the rest is kept
        _rewrite(spool, events[sent:])
        raise BackendError(
            f"the tracking server {uri} took {sent} of {len(events)} events ({error}); the rest is kept in {spool}, "
            f"send it with conlst replay {folder}"
        ) from error
    spool.unlink(missing_ok=True)
    shutil.rmtree(folder / _COPIES, ignore_errors=True)
    return sent


def _merged(events: list[Event]) -> Iterator[tuple[Event, int]]:
    """Join the metrics that follow each other in a run, with the number of events joined."""
    first = 0
    while first < len(events):
        last = first + 1
        head = events[first]
        if head["kind"] == "metrics":
            alike = {key: head[key] for key in ("kind", "experiment", "run")}
            while last < len(events) and alike.items() <= events[last].items():
                last += 1
            head = head | {"points": [point for event in events[first:last] for point in event["points"]]}
        yield head, last - first
        first = last


def _parsed(line: str, spool: Path) -> Event | None:
    try:
        event: Event = json.loads(line)
    except ValueError:
        # the process was killed while it wrote this line
        log.warning("%s holds a line that is no event and is left out: %.80s", spool, line)
        return None
    return event


def _rewrite(spool: Path, events: list[Event]) -> None:
    partial = spool.with_name(f".{spool.name}.{uuid.uuid4().hex}.partial")
    partial.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    partial.replace(spool)


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{key!r} cannot be a run's key: use letters, digits, blanks and ._:/@-, at most 200")
    return key


@functools.cache
def _say_off() -> None:
    log.info("MLFLOW_TRACKING_URI is not set: nothing is recorded in MLflow")


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
