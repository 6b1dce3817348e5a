"""The compiled pipeline: what Kubeflow is told to run, where, and what it may remember."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kfp import compiler

from components.due import due
from components.ingest import ingest_pools
from conlst.contract.config import Adapt, Config, config_from_json, load_config, profile_names
from conlst.contract.errors import ConfigError
from conlst.data.pairs import read_pairs
from pipelines.adaptation import adaptation
from pipelines.cluster import Cluster, compile_for_cluster, read_cluster
from pipelines.local import on_this_machine

pytestmark = pytest.mark.usefixtures("quick_kfp")

IMAGE = "registry.example:5000/team/conlst-train@sha256:" + "0a" * 32
TRAINING = {"source-model", "calibrate", "self-train", "evaluate-zero-shot", "evaluate", "evaluate-2"}
OTHERS = {
    "due",
    "anything",
    "nothing-due",
    "ingest",
    "ingest-2",
    "ingest-3",
    "ingest-4",
    "export",
    "register",
    "promote",
    "summarize",
}
# what reads the world or changes it
FRESH = {"due", "ingest", "ingest-pools", "source-model", "calibrate", "self-train", "register", "promote"}
_SECRET = re.compile("secret|passw|token(?!izers)|credential|access_?key|api_?key", re.IGNORECASE)


@dataclass(frozen=True)
class Compiled:
    file: Path
    config: Config
    pipeline: dict[str, Any]
    kubernetes: dict[str, Any]

    def tasks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every task with its name, those inside loops too."""
        for component in (self.pipeline["root"], *self.pipeline["components"].values()):
            for name, task in component.get("dag", {}).get("tasks", {}).items():
                if not name.startswith(("for-loop", "condition")):
                    yield name, task

    def loop(self) -> dict[str, Any]:
        """The task that goes over the languages."""
        components = self.pipeline["components"].values()
        (loop,) = (
            task for each in components for task in each.get("dag", {}).get("tasks", {}).values() if "parameterIterator" in task
        )
        return loop

    def container(self, task: str) -> dict[str, Any]:
        return self.pipeline["deploymentSpec"]["executors"][f"exec-{task}"]["container"]

    def pod(self, task: str) -> dict[str, Any]:
        return self.kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task}"]


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    file = tmp_path_factory.mktemp("cluster") / "pipeline.yaml"
    config = load_config("xnli-e5-small")
    compile_for_cluster(config, file, IMAGE)
    pipeline, kubernetes = documents(file)
    return Compiled(file, config, pipeline, kubernetes)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    file = tmp_path_factory.mktemp("local") / "pipeline.yaml"
    compiler.Compiler().compile(adaptation(Adapt(), on_this_machine(2)), str(file))
    (pipeline,) = documents(file)
    return Compiled(file, load_config("xnli-e5-small"), pipeline, {})


def producer(task: dict[str, Any], artifact: str) -> str:
    """The task that an artifact comes from, in the same loop or outside of it."""
    given = task["inputs"]["artifacts"][artifact]
    found = given.get("taskOutputArtifact", {}).get("producerTask")
    # one from outside is handed in as pipelinechannel--<task>-<output>
    outside = re.fullmatch(r"pipelinechannel--(.+)-\w+", given.get("componentInputArtifact", ""))
    return str(found or (outside and outside[1]))


def inputs(task: dict[str, Any]) -> list[str]:
    return [producer(task, name) for name in task.get("inputs", {}).get("artifacts", {})]


def role(task: dict[str, Any]) -> str | None:
    constant = task.get("inputs", {}).get("parameters", {}).get("role", {}).get("runtimeValue", {}).get("constant")
    return str(constant) if constant else None


def strings(value: Any) -> Iterator[str]:
    """Every string in a document, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def test_the_tasks_are_those_of_the_whole_way(cluster: Compiled, local: Compiled) -> None:
    assert {name for name, _ in cluster.tasks()} == TRAINING | OTHERS
    assert {name for name, _ in local.tasks()} == TRAINING | OTHERS
    loop = cluster.loop()
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--due-Output"}
    assert loop["iteratorPolicy"]["parallelismLimit"] == 4


SHAPES = {
    "joint": ("adapt.joint=true",),
    "joint, stage 2 alone": ("adapt.joint=true", "adapt.stages=[selftrain]"),
    "stage 1 alone": ("adapt.stages=[calibrate]",),
    "stage 2 alone": ("adapt.stages=[selftrain]",),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_keep_the_same_rules(tmp_path: Path, shape: str) -> None:
    config = load_config("xnli-e5-small", SHAPES[shape])
    compile_for_cluster(config, tmp_path / "p.yaml", IMAGE)
    compiled = Compiled(tmp_path / "p.yaml", config, *documents(tmp_path / "p.yaml"))
    tasks = dict(compiled.tasks())
    stages = {"calibrate": "calibrate", "selftrain": "self-train"}
    trained = [stages[stage] for stage in config.adapt.stages]
    assert set(stages.values()) & set(tasks) == set(trained)
    # each stage starts from the one before, and the last one is exported
    for earlier, task in zip(["source-model", *trained], [*trained, "export"], strict=True):
        assert producer(tasks[task], "model") == earlier
    assert producer(tasks["register"], "served") == "export"
    assert ("ingest-pools" in tasks) == config.adapt.joint
    in_loop = next(
        set(c["dag"]["tasks"]) for c in compiled.pipeline["components"].values() if "promote" in c.get("dag", {}).get("tasks", {})
    )
    assert set(trained).isdisjoint(in_loop) == config.adapt.joint

    (test,) = (name for name, task in tasks.items() if role(task) == "test")
    readers = {name for name, task in tasks.items() for given in inputs(task) if given == test}
    assert {re.sub(r"-\d+$", "", name) for name in readers} == {"evaluate-zero-shot", "evaluate", "export"}
    for name, task in tasks.items():
        kind = re.sub(r"-\d+$", "", name)
        assert ("accelerator" in compiled.container(name)["resources"]) == (kind in TRAINING), name
        assert task["cachingOptions"].get("enableCache", False) == (kind not in FRESH), name
        assert task["retryPolicy"]["maxRetryCount"] == 2, name
        assert compiled.pod(name)["securityContext"]["runAsNonRoot"] is True, name
        assert int(compiled.pod(name)["activeDeadlineSeconds"]) > 0, name


@pytest.mark.parametrize("changed", ["adapt.joint=true", "adapt.stages=[selftrain]"])
def test_a_pipeline_refuses_a_configuration_that_it_was_not_compiled_for(changed: str) -> None:
    compiled_for = Adapt().model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"adapt is .*, but this pipeline was compiled for .*; compile it"):
        due.python_func(load_config("demo", (changed,)).to_json(), ["sw"], compiled_for)
    assert due.python_func(load_config("demo").to_json(), ["sw"], compiled_for) == ["sw"]


@pytest.mark.parametrize(("languages", "spoken"), [(["sw"], "sw"), (["sw", "ur"], "mul")])
def test_a_joint_pool_says_what_its_model_s_language_is(tmp_path: Path, languages: list[str], spoken: str) -> None:
    pool = SimpleNamespace(path=str(tmp_path / "pool"), metadata={})
    assert ingest_pools.python_func(load_config("demo").to_json(), "1", languages, pool) == spoken
    assert pool.metadata == {"pairs": 180 * len(languages), "languages": len(languages)}
    assert set(read_pairs(tmp_path / "pool")["language"]) == set(languages)


def test_every_image_is_named_by_digest(cluster: Compiled) -> None:
    images = [executor["container"]["image"] for executor in cluster.pipeline["deploymentSpec"]["executors"].values()]
    assert len(images) == len(TRAINING | OTHERS)
    assert set(images) == {IMAGE}
    # for the record: a container cannot see its own digest
    for executor in cluster.pipeline["deploymentSpec"]["executors"].values():
        assert {"name": "CONLST_IMAGE", "value": IMAGE} in executor["container"]["env"]
    # nor does a tag stand anywhere else, the platform's document included
    mentions = [text for text in (*strings(cluster.pipeline), *strings(cluster.kubernetes)) if "conlst-train" in text]
    assert all("@sha256:" in text for text in mentions)


@pytest.mark.parametrize(
    "image",
    [
        "conlst-train",
        "registry.example/conlst-train:1.2",
        "registry.example/conlst-train:latest",
        "registry.example/conlst-train@sha256:abc",
        "registry.example/conlst-train@sha256:" + "G" * 64,
        "@sha256:" + "0" * 64,
        IMAGE + "0",
        "",
    ],
)
def test_an_image_without_a_digest_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(ConfigError, match="must name a digest"):
        compile_for_cluster(load_config("demo"), tmp_path / "p.yaml", image)
    assert not (tmp_path / "p.yaml").exists()


def test_nothing_is_installed_at_run_time(cluster: Compiled, local: Compiled) -> None:
    for compiled in (cluster, local):
        for name in TRAINING | OTHERS:
            command = " ".join(compiled.container(name)["command"])
            assert "executor_main" in command
            assert not re.search(r"pip3?\s+install|ensurepip|apt-get|curl|wget|uv pip", command), name


@pytest.mark.parametrize("task", sorted(TRAINING))
def test_training_tasks_ask_for_a_gpu_by_type_and_count(cluster: Compiled, task: str) -> None:
    resources = cluster.container(task)["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "1"
    pod = cluster.pod(task)
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    (shm,) = pod["emptyDirMounts"]
    assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "2Gi")


@pytest.mark.parametrize("task", sorted(OTHERS))
def test_the_other_tasks_leave_the_gpus_alone(cluster: Compiled, task: str) -> None:
    assert "accelerator" not in cluster.container(task)["resources"]
    assert "tolerations" not in cluster.pod(task)


@pytest.mark.parametrize("task", sorted(TRAINING | OTHERS))
def test_every_pod_is_bounded_and_not_root(cluster: Compiled, task: str) -> None:
    resources = cluster.container(task)["resources"]
    assert {"resourceCpuLimit", "resourceCpuRequest", "resourceMemoryLimit", "resourceMemoryRequest"} <= resources.keys()
    pod = cluster.pod(task)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert int(pod["securityContext"]["runAsUser"]) > 0
    assert int(pod["activeDeadlineSeconds"]) > 0


def test_every_task_is_tried_again(cluster: Compiled) -> None:
    for name, task in cluster.tasks():
        assert task["retryPolicy"]["maxRetryCount"] == 2, name


def test_what_reads_the_world_or_changes_it_is_never_cached(cluster: Compiled, local: Compiled) -> None:
    fresh = {name for name in TRAINING | OTHERS if re.sub(r"-\d+$", "", name) in FRESH}
    for compiled in (cluster, local):
        cached = {name for name, task in compiled.tasks() if task["cachingOptions"].get("enableCache")}
        assert cached.isdisjoint(fresh)
        assert cached == (TRAINING | OTHERS) - fresh


def test_secrets_come_from_the_cluster_and_never_as_a_parameter(cluster: Compiled) -> None:
    definitions = [cluster.pipeline["root"], *cluster.pipeline["components"].values()]
    names = {name for each in definitions for name in each.get("inputDefinitions", {}).get("parameters", {})}
    assert {"config", "languages", "store"} <= names
    assert not [name for name in names if _SECRET.search(name)]
    for task in TRAINING | OTHERS:
        assert not [entry["name"] for entry in cluster.container(task).get("env", []) if _SECRET.search(entry["name"])]
        s3, mlflow = cluster.pod(task)["secretAsEnv"]
        assert {entry["envVar"] for entry in s3["keyToEnv"]} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert {entry["envVar"] for entry in mlflow["keyToEnv"]} == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}


def test_the_configuration_has_no_place_for_a_secret() -> None:
    def keys(value: dict[str, Any]) -> Iterator[str]:
        for key, inner in value.items():
            yield key
            if isinstance(inner, dict):
                yield from keys(inner)

    found = set(keys(load_config("default").to_dict()))
    assert "batch_tokens" in found
    # these are tokens of text
    assert not [key for key in found - {"batch_tokens"} if _SECRET.search(key)]


def test_no_test_pair_reaches_a_training(cluster: Compiled) -> None:
    roles = {
        name: task["inputs"]["parameters"]["role"]["runtimeValue"]["constant"]
        for name, task in cluster.tasks()
        if name.startswith("ingest")
    }
    assert sorted(roles.values()) == ["pool", "source", "source_dev", "test"]
    (test,) = [name for name, role in roles.items() if role == "test"]
    readers = {
        name
        for name, task in cluster.tasks()
        for given in task.get("inputs", {}).get("artifacts", {}).values()
        if given.get("taskOutputArtifact", {}).get("producerTask") == test
    }
    # none of them trains: the export only chooses a precision by labels
    assert readers == {"evaluate-zero-shot", "evaluate", "evaluate-2", "export"}


def test_what_is_promoted_is_what_was_registered(cluster: Compiled) -> None:
    tasks = dict(cluster.tasks())
    assert tasks["promote"]["inputs"]["parameters"]["version"]["taskOutputParameter"]["producerTask"] == "register"
    served = tasks["register"]["inputs"]["artifacts"]
    assert served["served"]["taskOutputArtifact"]["producerTask"] == "export"
    assert tasks["export"]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]["producerTask"] == "self-train"
    evaluated = served["evaluation"]["taskOutputArtifact"]["producerTask"]
    assert tasks[evaluated]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]["producerTask"] == "self-train"


def test_the_configuration_travels_as_one_parameter(cluster: Compiled) -> None:
    parameters = cluster.pipeline["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"config", "languages", "store"}
    assert config_from_json(parameters["config"]["defaultValue"]) == cluster.config
    assert parameters["languages"]["defaultValue"] == list(cluster.config.languages)
    assert "defaultValue" not in parameters["store"]


@pytest.mark.parametrize("profile", [name for name in profile_names() if load_config(name).languages])
def test_every_profile_compiles_small_and_carries_itself(tmp_path: Path, profile: str) -> None:
    file = tmp_path / "p.yaml"
    compile_for_cluster(load_config(profile), file, IMAGE)
    assert file.stat().st_size < 200_000
    parameters = documents(file)[0]["root"]["inputDefinitions"]["parameters"]
    assert config_from_json(parameters["config"]["defaultValue"]) == load_config(profile)


def test_the_compiled_pipeline_is_small_enough_for_etcd(cluster: Compiled) -> None:
    assert cluster.file.stat().st_size < 200_000


SPECIAL = """
gpu: amd.com/gpu
gpus: 4
gpu_tolerations: [{key: dedicated, operator: Equal, value: training, effect: NoExecute}]
gpu_node_selector: {pool: training}
shm: 8Gi
train: {cpu_request: "8", cpu_limit: "16", memory_request: 64Gi, memory_limit: 96Gi}
at_once: 2
hours: 3
retries: 5
backoff_seconds: 30
config_map: ours
s3_secret: our-s3
image_pull_secret: our-registry
"""


def test_a_cluster_has_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(SPECIAL)
    file = tmp_path / "pipeline.yaml"
    compile_for_cluster(load_config("demo"), file, IMAGE, read_cluster(tmp_path / "cluster.yaml"))
    compiled = Compiled(file, load_config("demo"), *documents(file))
    accelerator = compiled.container("calibrate")["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("amd.com/gpu", "4")
    assert compiled.container("calibrate")["resources"]["resourceMemoryLimit"] == "96Gi"
    assert compiled.container("export")["resources"]["resourceMemoryLimit"] == "8Gi"
    pod = compiled.pod("calibrate")
    assert pod["tolerations"] == [{"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoExecute"}]
    assert pod["nodeSelector"] == {"labels": {"pool": "training"}}
    assert pod["emptyDirMounts"][0]["sizeLimit"] == "8Gi"
    assert pod["imagePullSecret"][0]["secretName"] == "our-registry"
    assert int(pod["activeDeadlineSeconds"]) == 3 * 3600
    assert {entry["configMapName"] for entry in pod["configMapAsEnv"]} == {"ours"}
    assert pod["secretAsEnv"][0]["secretName"] == "our-s3"
    for name, task in compiled.tasks():
        assert task["retryPolicy"]["maxRetryCount"] == 5, name
        assert task["retryPolicy"]["backoffDuration"] == "30s", name
    assert compiled.loop()["iteratorPolicy"]["parallelismLimit"] == 2


def test_without_gpus_every_task_runs_on_any_node(tmp_path: Path) -> None:
    config, cluster = load_config("xnli-e5-small"), Cluster(gpus=0, gpu_node_selector={"pool": "training"})
    compile_for_cluster(config, tmp_path / "p.yaml", IMAGE, cluster)
    compiled = Compiled(tmp_path / "p.yaml", config, *documents(tmp_path / "p.yaml"))
    for task in TRAINING:
        assert "accelerator" not in compiled.container(task)["resources"], task
        assert not {"tolerations", "nodeSelector"} & compiled.pod(task).keys(), task
        assert compiled.container(task)["resources"]["resourceMemoryLimit"] == "32Gi", task
    with pytest.raises(ConfigError, match=r"xnli-mbert has compute\.device cuda, but the cluster has gpus: 0"):
        compile_for_cluster(load_config("xnli-mbert"), tmp_path / "other.yaml", IMAGE, cluster)
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize(("text", "told"), [("gpus: -1", "gpus: "), ("gpu_count: 1", "gpu_count: "), ("[", "as YAML")])
def test_wrong_cluster_settings_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_cluster(tmp_path / "cluster.yaml")


def test_compiling_again_in_another_process_gives_the_same_bytes(cluster: Compiled, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    command = [sys.executable, "-m", "conlst.cli", "compile", "--config", "xnli-e5-small", "--image", IMAGE, "--out", str(again)]
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {"pipeline": str(again), "image": IMAGE}
    assert again.read_bytes() == cluster.file.read_bytes()


def test_a_profile_without_languages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="default names no languages"):
        compile_for_cluster(load_config("default"), tmp_path / "p.yaml", IMAGE)


def test_components_hold_no_path_of_this_machine(cluster: Compiled, local: Compiled) -> None:
    for compiled in (cluster, local):
        assert str(Path(__file__).parents[1]) not in compiled.file.read_text()


def test_the_same_components_run_locally_and_on_the_cluster(cluster: Compiled, local: Compiled) -> None:
    for name in TRAINING | OTHERS:
        for part in ("command", "args"):
            assert cluster.container(name)[part] == local.container(name)[part]
