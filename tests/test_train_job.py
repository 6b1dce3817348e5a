"""The TrainJob: its shape by Kubeflow Trainer's own models, and its very command in processes that torchrun starts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from conlst.contract.artifacts import verify
from conlst.contract.config import config_from_dict, load_config, with_settings
from conlst.contract.errors import ConfigError
from conlst.platform import objects
from pipelines.cluster import Cluster
from pipelines.local_services import S3Service
from pipelines.train_job import train_job
from tiny import tiny_backbone, tiny_config, tiny_pairs, write_tsv

IMAGE = "registry/conlst-train@sha256:" + "0" * 64
CLUSTER = Cluster(gpus=2, gpu_node_selector={"pool": "training"}, image_pull_secret="our-registry")


def made(**changes: Any) -> dict[str, Any]:
    given = {"nodes": 3, "store": "s3://bucket/models", "data": ["s3://bucket/en.tsv"], "dev": "s3://bucket/dev.tsv"} | changes
    image = given.pop("image", IMAGE)
    return dict(train_job("source", load_config("xnli-mbert"), image, CLUSTER, **given))


def test_kubeflow_trainer_knows_every_field() -> None:
    job = made()
    assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job


def test_every_gpu_of_every_node_has_a_process() -> None:
    trainer = made()["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 2)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "2"
    assert trainer["image"] == IMAGE


def test_the_pods_are_placed_and_confined_like_those_of_the_pipeline() -> None:
    (patch,) = made()["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod["nodeSelector"], pod["imagePullSecrets"]) == ({"pool": "training"}, [{"name": "our-registry"}])
    assert [taint["key"] for taint in pod["tolerations"]] == ["nvidia.com/gpu"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/scratch"}


def test_the_pods_run_as_the_account_of_the_pipeline_unless_another_is_named() -> None:
    for given, account in (({}, "conlst-pipeline"), ({"service_account": "trainer"}, "trainer")):
        (patch,) = made(**given)["spec"]["runtimePatches"]
        (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        assert job["template"]["spec"]["template"]["spec"]["serviceAccountName"] == account


def test_keys_come_by_reference_only() -> None:
    environment = {entry["name"]: entry for entry in made()["spec"]["trainer"]["env"]}
    told = {name: entry["value"] for name, entry in environment.items() if "valueFrom" not in entry}
    assert told == {"CONLST_IMAGE": IMAGE, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    assert environment["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "conlst-s3"


def test_the_pods_know_nothing_of_mlflow_where_they_record_nothing() -> None:
    names = {entry["name"] for entry in made()["spec"]["trainer"]["env"]}
    assert {"AWS_ENDPOINT_URL_S3", "HF_ENDPOINT"} <= names
    assert not [name for name in names if "MLFLOW" in name or name == "CONLST_UNTRACKED"]


def test_without_gpus_every_node_has_a_process() -> None:
    config, cluster = load_config("xnli-e5-small"), Cluster(gpus=0, gpu_node_selector={"pool": "training"})
    given = {"nodes": 2, "store": "s3://b/models", "data": ["s3://b/en.tsv"], "dev": None}
    job = dict(train_job("source", config, IMAGE, cluster, **given))
    assert job["spec"]["trainer"]["numProcPerNode"] == 1
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"].keys() == {"cpu", "memory"}
    pod = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = pod["template"]["spec"]["template"]["spec"]
    assert not pod["tolerations"]
    assert "nodeSelector" not in pod
    with pytest.raises(ConfigError, match=r"xnli-mbert has compute\.device cuda, but the cluster has gpus: 0"):
        train_job("source", load_config("xnli-mbert"), IMAGE, cluster, **given)


def test_what_pods_cannot_read_is_refused() -> None:
    for source in ("en.tsv", "/data/en.tsv", "http://host/en.tsv", "collected:s3://bucket/feedback"):
        with pytest.raises(ConfigError, match=f"^--data {source}: pods read only s3://"):
            made(data=["s3://bucket/en.tsv", source])
    with pytest.raises(ConfigError, match=r"^--dev dev\.tsv: pods read only s3://"):
        made(dev="dev.tsv")
    with pytest.raises(ConfigError, match="must name a digest"):
        made(image="registry/conlst-train:latest")


def test_pods_read_what_s3_the_hub_and_the_image_have() -> None:
    sources = ["s3://bucket/en.tsv", "hub:nyu-mll/multi_nli@main:train", "sample:en"]
    arguments = made(data=sources, dev="hub:nyu-mll/multi_nli@main:validation_matched")["spec"]["trainer"]["args"]
    assert arguments[arguments.index("--data") + 1 : arguments.index("--dev") + 2] == [
        *sources,
        *("--dev", "hub:nyu-mll/multi_nli@main:validation_matched"),
    ]


def test_a_dollar_in_the_configuration_is_not_expanded_by_kubernetes() -> None:
    config = with_settings(load_config("demo"), {"data.tests": "s3://bucket/$(HOME).tsv"})
    arguments = train_job("s", config, IMAGE, CLUSTER, nodes=1, store="s3://b/m", data=["s3://b/x.tsv"], dev=None)
    given = arguments["spec"]["trainer"]["args"]
    given = given[given.index("--config") + 1]
    assert "$$(HOME)" in given
    assert json.loads(given.replace("$$(", "$(")) == json.loads(config.to_json())


@pytest.mark.slow
def test_its_command_trains_one_model_in_two_processes_and_publishes_it(tmp_path: Path, s3: S3Service) -> None:
    data = {}
    for name, seed, count in (("en", 1, 120), ("dev", 2, 30)):
        data[name] = f"s3://{s3.bucket}/train-job/{name}.tsv"
        objects.push_file(write_tsv(tmp_path / f"{name}.tsv", tiny_pairs(count, seed)), data[name])
    config = config_from_dict(tiny_config(tiny_backbone(tmp_path / "backbone")))
    store = f"s3://{s3.bucket}/train-job/models"
    job = train_job("source", config, IMAGE, CLUSTER, nodes=1, store=store, data=[data["en"]], dev=data["dev"])
    written = tmp_path / "job.yaml"
    written.write_text(yaml.safe_dump(job))

    arguments = yaml.safe_load(written.read_text())["spec"]["trainer"]["args"]
    # the folder that the pod mounts is this test's here, and the entry point is that of this environment
    arguments = [argument.replace("/scratch", str(tmp_path)) for argument in arguments]
    arguments[arguments.index("conlst")] = str(Path(sys.executable).parent / "conlst")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, check=False, timeout=600)

    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line for line in told if "process" in line] == [{"process": 1}]
    (model,) = [line for line in told if "address" in line]
    folder = Path(objects.localize(model["address"], tmp_path / "fetched"))
    assert verify(folder, "model").digest == model["digest"]
