import errno
import http.server
import json
import logging
import multiprocessing
import shutil
import socket
import threading
import uuid
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from conlst.contract.errors import BackendError, ConfigError
from conlst.platform import tracking
from pipelines.local_services import free_port
from services import environment, real_mlflow


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """One for all tests, because MLflow takes seconds to open a new one; experiments keep the tests apart."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.fixture
def up(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return MlflowClient(database)


@pytest.fixture
def down(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def experiment(request) -> str:
    return request.node.name


def runs(client: MlflowClient, experiment: str) -> dict:
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])} if found else {}


def history(client, run, name) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def record(experiment, folder, key: str | None = None) -> None:
    """What a pipeline run with one language and one stage logs, from two tasks that happen to share a folder."""
    key = key or uuid.uuid4().hex
    here = {"experiment": experiment, "folder": folder}
    picture = folder / "reliability.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(b"png")
    with tracking.run("sw", key=f"{key}/sw", parent=key, params={"threshold": 0.9}, **here) as stage:
        for step in range(3):
            stage.metrics({"loss": 1.0 - step / 10, "band/high": step}, step)
        stage.figure(picture)
    with tracking.run("pipeline", key=key, params={"seed": 13}, tags={"commit": "abc"}, **here) as whole:
        whole.metrics({"accuracy": 0.7})
    picture.unlink()


def assert_recorded(client, experiment) -> None:
    found = runs(client, experiment)
    assert set(found) == {"pipeline", "sw"}
    top, child = found["pipeline"], found["sw"]
    assert (top.data.params, top.data.tags["commit"], top.data.metrics) == ({"seed": "13"}, "abc", {"accuracy": 0.7})
    assert child.data.params == {"threshold": "0.9"}
    assert child.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert history(client, child, "loss") == [(0, 1.0), (1, 0.9), (2, 0.8)]
    assert [item.path for item in client.list_artifacts(child.info.run_id, "figures")] == ["figures/reliability.png"]
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_run_with_a_part(up, experiment, tmp_path):
    record(experiment, tmp_path)
    assert_recorded(up, experiment)
    assert not list(tmp_path.iterdir())


def test_artifacts_lie_beside_the_database_and_not_in_the_working_directory(up, database, experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(experiment, tmp_path / "run")
    folder = database.removeprefix("sqlite:///").removesuffix("mlflow.db")
    assert up.get_experiment_by_name(experiment).artifact_location.startswith(f"{folder}mlartifacts/")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_failing_block_ends_the_run_so(up, experiment, tmp_path, error, status):
    with pytest.raises(error), tracking.run("pipeline", experiment=experiment, folder=tmp_path):
        raise error
    assert runs(up, experiment)["pipeline"].info.status == status


def test_a_part_that_fails_ends_the_whole_until_another_try_ends_it_well(up, experiment, tmp_path):
    whole = {"experiment": experiment, "folder": tmp_path, "key": "pipeline-8"}
    part = {"experiment": experiment, "folder": tmp_path, "key": "pipeline-8/sw", "parent": "pipeline-8"}

    def statuses() -> list[str]:
        return [run.info.status for run in sorted(runs(up, experiment).values(), key=lambda run: run.info.start_time)]

    with pytest.raises(ValueError, match="once"), tracking.run("sw", **part):
        raise ValueError("once")
    assert statuses() == ["FAILED", "FAILED"]
    with tracking.run("sw", **part):
        pass
    with tracking.run("pipeline", **whole):
        pass
    assert statuses() == ["FINISHED", "FINISHED"]


def test_a_key_continues_a_run_after_a_restart(up, experiment, tmp_path):
    for step in (0, 1):
        with tracking.run("sw", experiment=experiment, folder=tmp_path, key="abc/sw", params={"seed": 13}) as run:
            run.metrics({"loss": 1.0}, step)
    found = runs(up, experiment)
    assert list(found) == ["sw"]
    assert history(up, found["sw"], "loss") == [(0, 1.0), (1, 1.0)]
    assert found["sw"].info.status == "FINISHED"


def test_other_parameters_on_resume_are_tags_and_no_failure(up, experiment, tmp_path, caplog):
    for seed, extra in ((13, {}), (14, {"new": "1"})):
        with tracking.run("sw", experiment=experiment, folder=tmp_path, key="k", params={"seed": seed} | extra):
            pass
    found = runs(up, experiment)["sw"]
    assert found.data.params == {"seed": "13", "new": "1"}
    assert found.data.tags["resumed.seed"] == "14"
    assert found.info.status == "FINISHED"
    assert "other parameters" in caplog.text


def test_without_a_key_every_run_is_new(up, experiment, tmp_path):
    for name in ("first", "second"):
        with tracking.run(name, experiment=experiment, folder=tmp_path):
            pass
    assert set(runs(up, experiment)) == {"first", "second"}


def test_children_and_parents_of_other_processes_meet_by_key(up, experiment, tmp_path):
    """A child may even be recorded before its parent, whose events wait in a folder of another process."""
    with tracking.run("sw", experiment=experiment, folder=tmp_path, parent="pipeline-7"):
        pass
    with tracking.run("pipeline", experiment=experiment, folder=tmp_path, key="pipeline-7", params={"seed": 1}):
        pass
    found = runs(up, experiment)
    assert found["sw"].data.tags["mlflow.parentRunId"] == found["pipeline"].info.run_id
    assert found["pipeline"].data.params == {"seed": "1"}


def test_many_parameters_go_in_parts(up, experiment, tmp_path):
    params = {f"p{number}": number for number in range(250)}
    with tracking.run("sw", experiment=experiment, folder=tmp_path, params=params):
        pass
    assert len(runs(up, experiment)["sw"].data.params) == 250


def test_without_a_server_nothing_happens_and_that_is_said_once(experiment, tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracking._say_off.cache_clear()
    with caplog.at_level(logging.INFO):
        record(experiment, tmp_path)
        record(experiment, tmp_path)
    assert caplog.text.count("MLFLOW_TRACKING_URI is not set") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("down")
def test_a_server_that_is_down_stops_nothing_and_is_told_once(experiment, tmp_path, caplog):
    record(experiment, tmp_path)
    # by each of the two tasks
    assert caplog.text.count("from here on the record is kept in") == 2
    events = [json.loads(line) for line in (tmp_path / tracking.SPOOL).read_text().splitlines()]
    assert [event["kind"] for event in events] == [
        "start", "metrics", "metrics", "metrics", "artifact", "end", "start", "metrics", "end"
    ]  # fmt: skip


def test_replay_sends_everything_later(database, experiment, tmp_path, monkeypatch, down):  # noqa: ARG001
    record(experiment, tmp_path / "run")
    with pytest.raises(BackendError, match=f"took 0 of 9 events.*{tracking.SPOOL}"):
        tracking.replay(tmp_path / "run")
    # the folder may have been moved meanwhile, and the figure is gone
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    kept = (tmp_path / "moved" / tracking.SPOOL).read_text()
    assert tracking.replay(tmp_path / "moved") == 9
    assert_recorded(MlflowClient(database), experiment)
    assert not list((tmp_path / "moved").iterdir())
    assert tracking.replay(tmp_path / "moved") == 0
    # a replay that was killed just before it could forget its events
    (tmp_path / "moved" / tracking.SPOOL).write_text(kept)
    assert tracking.replay(tmp_path / "moved") == 9
    assert_recorded(MlflowClient(database), experiment)


def test_what_a_pod_could_not_send_outlives_its_disk(
    database,
    experiment,
    tmp_path,
    monkeypatch,
    bucket,
    down,  # noqa: ARG001
):
    stored = f"{bucket}/untracked"
    monkeypatch.setenv("CONLST_UNTRACKED", stored)
    record(experiment, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(BackendError, match=r"took 0 of [69] events"):
        tracking.replay_stored(stored)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    # the second task stored what the first one had left in their folder once more
    assert tracking.replay_stored(stored) == 6 + 9
    assert_recorded(MlflowClient(database), experiment)
    assert tracking.replay_stored(stored) == 0


def test_neither_server_answers_and_the_work_goes_on(experiment, tmp_path, monkeypatch, bucket, caplog, down):  # noqa: ARG001
    monkeypatch.setenv("CONLST_UNTRACKED", bucket.replace("conlst", "nowhere") + "/untracked")
    record(experiment, tmp_path)
    assert "could not be kept either" in caplog.text
    assert (tmp_path / tracking.SPOOL).exists()


@pytest.mark.usefixtures("down")
def test_a_folder_that_takes_nothing_stops_nothing_and_is_told_once(experiment, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("CONLST_UNTRACKED", "s3://bucket/untracked")
    (tmp_path / "file").write_text("in the way")
    with tracking.run("sw", experiment=experiment, folder=tmp_path / "file" / "sw") as run:
        for step in range(3):
            run.metrics({"loss": 1.0}, step)
        run.artifact(tmp_path / "file")
    assert caplog.text.count("is lost, it cannot be kept in") == 1


@pytest.mark.usefixtures("down")
def test_a_full_disk_at_the_end_stops_nothing(experiment, tmp_path, caplog, monkeypatch, bucket):
    monkeypatch.setenv("CONLST_UNTRACKED", f"{bucket}/untracked")

    def full(*_args, **_rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    with tracking.run("sw", experiment=experiment, folder=tmp_path) as run:
        run.metrics({"loss": 1.0})
        monkeypatch.setattr(tracking, "_rewrite", full)
        monkeypatch.setattr(tracking.tarfile, "open", full)
    assert "could not be kept either: [Errno 28] No space left" in caplog.text


@pytest.mark.usefixtures("down", "bucket")
def test_a_mistyped_endpoint_stops_nothing(experiment, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("CONLST_UNTRACKED", "s3://conlst/untracked")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio:9000")
    with tracking.run("sw", experiment=experiment, folder=tmp_path):
        pass
    assert "Invalid endpoint: minio:9000" in caplog.text


def test_a_part_without_a_run_ends_the_whole_if_it_fails(up, experiment, tmp_path):
    part = {"experiment": experiment, "folder": tmp_path}
    with tracking.part_of("pipeline-9", **part):
        pass
    assert runs(up, experiment) == {}
    # even before the whole is there
    for error, status in ((ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), tracking.part_of("pipeline-9", **part):
            raise error
        assert [run.info.status for run in runs(up, experiment).values()] == [status]
    with tracking.run("sw", parent="pipeline-9", **part):
        pass
    assert {name: run.info.status for name, run in runs(up, experiment).items()} == {"pipeline-9": "KILLED", "sw": "FINISHED"}
    with tracking.run("pipeline", key="pipeline-9", **part):
        pass
    assert {name: run.info.status for name, run in runs(up, experiment).items()} == {"pipeline": "FINISHED", "sw": "FINISHED"}


def test_a_deleted_experiment_is_named_with_its_cure(up, database, experiment, tmp_path):
    number = up.create_experiment(experiment, str(tmp_path / "artifacts"))
    up.delete_experiment(number)
    record(experiment, tmp_path)
    with pytest.raises(BackendError, match=f"was deleted; mlflow experiments restore --experiment-id {number}"):
        tracking.replay(tmp_path)
    up.restore_experiment(number)
    assert tracking.replay(tmp_path) == 9
    assert_recorded(MlflowClient(database), experiment)


def test_kept_metrics_are_sent_in_few_calls(database, experiment, tmp_path, monkeypatch, down):  # noqa: ARG001
    with tracking.run("sw", experiment=experiment, folder=tmp_path) as run:
        for step in range(150):
            run.metrics({"loss": 1.0}, step)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    calls = []
    log_batch = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **more: (calls.append(1), log_batch(*args, **more)))
    assert tracking.replay(tmp_path) == 152
    assert len(calls) == 1 + 2  # the start, and 150 points by the hundred
    client = MlflowClient(database)
    assert len(history(client, runs(client, experiment)["sw"], "loss")) == 150


def test_a_running_stage_sends_its_metrics_together(up, experiment, tmp_path, monkeypatch):
    calls = []
    log_batch = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **more: (calls.append(1), log_batch(*args, **more)))
    with tracking.run("sw", experiment=experiment, folder=tmp_path) as run:
        for step in range(50):
            run.metrics({"loss": 1.0}, step)
        assert len(calls) == 1  # the start
        # what a kill at this moment would leave for a replay
        assert len((tmp_path / tracking.SPOOL).read_text().splitlines()) == 50
        monkeypatch.setattr(tracking, "_TOGETHER_SECONDS", 0.0)
        run.metrics({"loss": 1.0}, 50)
        assert len(history(up, runs(up, experiment)["sw"], "loss")) == 51
        assert not (tmp_path / tracking.SPOOL).exists()
    assert len(calls) == 2


def test_a_server_that_fails_midway_gets_the_rest_at_the_end(up, experiment, tmp_path, monkeypatch, caplog):
    log_batch, attempts = MlflowClient.log_batch, []

    def failing_once(*args, **more):
        attempts.append(1)
        if len(attempts) == 4:
            raise ConnectionError("gone for a moment")
        return log_batch(*args, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", failing_once)
    record(experiment, tmp_path)
    assert "gone for a moment" in caplog.text
    assert_recorded(up, experiment)
    assert not list(tmp_path.iterdir())


def test_what_a_replay_could_not_send_is_still_kept(database, experiment, tmp_path, monkeypatch, down):  # noqa: ARG001
    record(experiment, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)

    def failing(*_args):
        raise ConnectionError("gone again")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", failing)
        with pytest.raises(BackendError, match="took 4 of 9 events"):
            tracking.replay(tmp_path)
    assert tracking.replay(tmp_path) == 5
    assert_recorded(MlflowClient(database), experiment)


def test_a_slow_server_is_not_waited_for(up, experiment, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", -1.0)
    record(experiment, tmp_path)
    assert caplog.text.count("is slow; from here on the record is kept") == 2
    assert_recorded(up, experiment)


def test_a_finished_run_does_not_wait_for_ever(up, experiment, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(tracking, "_CLOSING_SECONDS", -1.0)
    record(experiment, tmp_path)
    assert "not all was sent within" in caplog.text
    tracking.replay(tmp_path)
    assert_recorded(up, experiment)


def test_a_server_that_never_answers_stops_nothing(experiment, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        record(experiment, tmp_path)
    assert len((tmp_path / tracking.SPOOL).read_text().splitlines()) == 9


def test_a_server_that_answers_500_stops_nothing(experiment, tmp_path, monkeypatch):
    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        record(experiment, tmp_path)
        server.shutdown()
    assert len((tmp_path / tracking.SPOOL).read_text().splitlines()) == 9


def test_what_the_server_refuses_for_good_is_told_and_not_kept(up, experiment, tmp_path, caplog):
    with tracking.run("sw", experiment=experiment, folder=tmp_path) as run:
        run.metrics({"loss*": 1.0})
        run.metrics({"loss": 2.0})
    assert "refuses to record metrics" in caplog.text
    assert runs(up, experiment)["sw"].data.metrics == {"loss": 2.0}
    assert not (tmp_path / tracking.SPOOL).exists()


def test_a_missing_figure_is_told_and_stops_nothing(up, experiment, tmp_path, caplog):
    with tracking.run("sw", experiment=experiment, folder=tmp_path) as run:
        run.figure(tmp_path / "absent.png")
    assert "absent.png is not a file" in caplog.text
    assert runs(up, experiment)["sw"].info.status == "FINISHED"


def test_a_torn_line_is_told_and_left_out(database, experiment, tmp_path, monkeypatch, caplog, down):  # noqa: ARG001
    record(experiment, tmp_path)
    with (tmp_path / tracking.SPOOL).open("a") as file:
        file.write('{"kind": "metr')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert tracking.replay(tmp_path) == 9
    assert "no event" in caplog.text
    assert_recorded(MlflowClient(database), experiment)


def _record_in_a_process(uri: str, experiment: str, folder: Path) -> None:
    with environment({"MLFLOW_TRACKING_URI": uri}):
        record(experiment, folder)


@pytest.mark.slow
def test_processes_may_open_a_new_database_at_once(experiment, tmp_path):
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    folders = [tmp_path / name for name in ("a", "b", "c")]
    processes = [context.Process(target=_record_in_a_process, args=(uri, experiment, folder)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not [path for folder in folders for path in folder.iterdir()]
    client = MlflowClient(uri)
    assert len(client.search_runs([client.get_experiment_by_name(experiment).experiment_id])) == 6


def test_replay_needs_an_address(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BackendError, match="set MLFLOW_TRACKING_URI"):
        tracking.replay(tmp_path)


@pytest.mark.parametrize("key", ["it's", "", "a" * 201, "ünder"])
def test_keys_that_cannot_be_searched_for_are_refused(tmp_path, key):
    for keys in ({"key": key}, {"parent": key}):
        refused = pytest.raises(ConfigError, match="cannot be a run's key")
        with refused, tracking.run("x", experiment="x", folder=tmp_path, **keys):
            pass


@pytest.mark.slow
def test_over_a_real_server(mlflow_uri, experiment, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    record(experiment, tmp_path, key="abc")
    record(experiment, tmp_path, key="abc")
    client = MlflowClient(mlflow_uri)
    found = runs(client, experiment)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert [item.path for item in client.list_artifacts(found["sw"].info.run_id, "figures")] == ["figures/reliability.png"]
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_real_server_started_afterwards_gets_everything(s3, experiment, tmp_path, monkeypatch, down):  # noqa: ARG001
    record(experiment, tmp_path / "run")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with real_mlflow(tmp_path / "server", s3) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking.replay(tmp_path / "run") == 9
        assert_recorded(MlflowClient(uri), experiment)
