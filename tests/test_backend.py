import json
from collections.abc import Iterator

import pytest

from conlst.cli import main
from conlst.contract.errors import BackendError, ConfigError
from kfp_backend import KfpBackend, serve
from pipelines import backend
from pipelines.local_services import free_port

pytestmark = pytest.mark.usefixtures("quick_kfp")

IMAGE = f"registry/conlst@sha256:{'1' * 64}"
COMPILED = ("--config", "demo", "--image", IMAGE, "--store", "s3://bucket/models")


@pytest.fixture(autouse=True)
def outside_a_cluster(monkeypatch, tmp_path):
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def cluster() -> KfpBackend:
    return KfpBackend()


@pytest.fixture
def host(cluster) -> Iterator[str]:
    with serve(cluster) as address:
        yield address


def conlst(capsys, *arguments: str) -> dict:
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_submit_sends_both_documents_and_what_the_pipeline_asks_for(cluster, host, capsys):
    told = conlst(capsys, "submit", *COMPILED, "--host", host, "--service-account", "trainer", "--run-name", "first")
    run = cluster.runs[told["run"]]
    assert (run["display_name"], run["service_account"]) == ("first", "trainer")
    assert run["runtime_config"]["parameters"] == {"store": "s3://bucket/models"}
    assert set(run["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}
    assert IMAGE in json.dumps(run["pipeline_spec"]["pipeline_spec"])
    assert "securityContext" in json.dumps(run["pipeline_spec"]["platform_spec"])
    experiment = cluster.experiments[run["experiment_id"]]
    assert experiment["display_name"] == "conlst"


def test_a_second_run_goes_into_the_same_experiment_and_namespace(cluster, host, capsys):
    for _ in range(2):
        conlst(capsys, "submit", *COMPILED, "--host", host, "--namespace", "nli")
    assert len(cluster.runs) == 2
    assert [experiment["namespace"] for experiment in cluster.experiments.values()] == ["nli"]


def test_a_schedule_runs_one_at_a_time_and_makes_up_for_nothing(cluster, host, capsys):
    told = conlst(capsys, "schedule", "create", "weekly", "--cron", "0 3 * * 1", *COMPILED, "--host", host)
    (made,) = cluster.schedules.values()
    assert told["create"] == {"name": "weekly", "id": made["recurring_run_id"], "cron": "0 0 3 * * 1", "enabled": True}
    assert (made["max_concurrency"], made["no_catchup"]) == (1, True)
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert made["runtime_config"]["parameters"] == {"store": "s3://bucket/models"}
    assert "platform_spec" in made["pipeline_spec"]


def test_schedules_are_listed_paused_resumed_and_deleted_by_name(cluster, host, capsys):
    for name in ("c", "a", "b"):
        conlst(capsys, "schedule", "create", name, "--cron", "0 0 3 * * 1", *COMPILED, "--host", host)
    # the server gives two a page
    assert [found["name"] for found in conlst(capsys, "schedule", "list", "--host", host)["schedules"]] == ["a", "b", "c"]
    assert conlst(capsys, "schedule", "pause", "b", "--host", host)["pause"]["enabled"] is False
    assert [found["status"] for found in cluster.schedules.values()] == ["ENABLED", "ENABLED", "DISABLED"]
    assert conlst(capsys, "schedule", "resume", "b", "--host", host)["resume"]["enabled"] is True
    assert conlst(capsys, "schedule", "delete", "b", "--host", host)["delete"]["name"] == "b"
    assert {found["display_name"] for found in cluster.schedules.values()} == {"a", "c"}


def test_a_name_is_taken_once_and_an_unknown_one_is_told(cluster, host, capsys):
    conlst(capsys, "schedule", "create", "weekly", "--cron", "0 3 * * 1", *COMPILED, "--host", host)
    assert main(["schedule", "create", "weekly", "--cron", "0 3 * * 1", *COMPILED, "--host", host]) == 1
    assert "there is a schedule 'weekly'" in capsys.readouterr().err
    assert main(["schedule", "pause", "daily", "--host", host]) == 1
    assert "no schedule 'daily'; there are: weekly" in capsys.readouterr().err
    assert len(cluster.schedules) == 1


@pytest.mark.parametrize("cron", ["3 * *", "0 0 3 * * 1 2026", ""])
def test_a_cron_of_another_form_is_refused_before_anything_is_made(cluster, host, tmp_path, cron):
    with pytest.raises(ConfigError, match="give five"):
        backend.create_schedule(backend.Backend(host), tmp_path / "none.yaml", {}, "weekly", cron)
    assert not cluster.schedules


def test_the_token_comes_from_the_file_that_a_pod_has(cluster, host, tmp_path, monkeypatch):
    cluster.token = "projected"
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", host)
    with pytest.raises(BackendError, match=rf"at {host} answered 401 .*the token is missing or expired"):
        backend.list_schedules(backend.Backend(namespace="nli"))
    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert backend.list_schedules(backend.Backend()) == []
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(BackendError, match="gone, which is no file"):
        backend.list_schedules(backend.Backend())


def test_an_absent_backend_is_named():
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(BackendError, match=f"{address} cannot be reached.*give --host"):
        backend.list_schedules(backend.Backend(address))
