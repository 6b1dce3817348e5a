"""Everything that a pod needs from the cluster, in one place: :class:`Cluster`, whose defaults suit a pool of NVIDIA GPUs."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from kfp import compiler, dsl, kubernetes
from pydantic import Field, ValidationError

from conlst.contract.config import Config, Section, problems
from conlst.contract.errors import ConfigError
from pipelines.adaptation import Placement, adaptation, check_languages

_DIGEST = re.compile(r"[\w./:-]+@sha256:[0-9a-f]{64}")
# as the Dockerfile has it
USER = 10001


class Toleration(Section):
    """A taint that pods may run beside."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Resources(Section):
    """Requests and limits of a pod, as Kubernetes writes quantities."""

    cpu_request: str
    cpu_limit: str
    memory_request: str
    memory_limit: str


class Cluster(Section):
    """What tasks ask of the cluster.

    Attributes:
        gpu, gpus: resource name and count of a task that trains or evaluates a model; with 0 it runs on any node, on its CPUs.
        gpu_tolerations, gpu_node_selector: so that these tasks land on GPU nodes.
        shm: size of their /dev/shm; the 64 MB of a container kill data loading with a bus error.
        train, serve: of the tasks that want a GPU, and of the others.
        at_once: languages adapted at the same time.
        hours: after which a task is killed.
        retries, backoff_seconds: how often a task is tried again, and the first pause, which doubles.
        config_map: with MLFLOW_TRACKING_URI; outside AWS, AWS_ENDPOINT_URL_S3 and AWS_DEFAULT_REGION; CONLST_UNTRACKED, an
            ``s3://`` prefix for what MLflow did not take; HF_ENDPOINT, for a mirror of the hub.
        s3_secret: with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; may be absent where the service account has access.
        mlflow_secret: with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; may be absent.
        image_pull_secret: of a private registry.
    """

    gpu: str = "nvidia.com/gpu"
    gpus: int = Field(1, ge=0)
    gpu_tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)
    gpu_node_selector: dict[str, str] = Field(default_factory=dict)
    shm: str = "2Gi"
    train: Resources = Resources(cpu_request="4", cpu_limit="8", memory_request="16Gi", memory_limit="32Gi")
    serve: Resources = Resources(cpu_request="1", cpu_limit="4", memory_request="4Gi", memory_limit="8Gi")
    at_once: int = Field(4, ge=1)
    hours: int = Field(12, ge=1)
    retries: int = Field(2, ge=0)
    backoff_seconds: int = Field(60, ge=1)
    config_map: str = "conlst"
    s3_secret: str = "conlst-s3"
    mlflow_secret: str = "conlst-mlflow"
    image_pull_secret: str = ""


def read_cluster(path: Path | None) -> Cluster:
    """The settings in a YAML file; the defaults without one.

    Raises:
        ConfigError: if it cannot be read or does not fit; every wrong key is named.
    """
    if path is None:
        return Cluster()
    try:
        return Cluster.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--cluster {path} cannot be read as YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"--cluster {path}: {problems(error, 'cluster')}") from None


def check_image(image: str) -> None:
    """Refuse an image without a digest.

    Raises:
        ConfigError: a tag that is pushed again changes what a cached or retried task runs.
    """
    if not _DIGEST.fullmatch(image):
        raise ConfigError(f"--image {image!r} must name a digest: registry/name@sha256:<64 hex digits>")


def check_device(config: Config, cluster: Cluster) -> None:
    """Refuse a configuration that would only fail in its first pod.

    Raises:
        ConfigError: if it wants a GPU and the cluster has none.
    """
    if config.compute.device == "cuda" and not cluster.gpus:
        raise ConfigError(f"{config.name} has compute.device cuda, but the cluster has gpus: 0; set one of them otherwise")


def on_cluster(image: str, cluster: Cluster) -> Placement:
    """Training on GPU nodes if there are any, the rest on any; every task from one image named by digest.

    Raises:
        ConfigError: if the image has no digest.
    """
    check_image(image)

    def pod(task: dsl.PipelineTask, needs: Resources) -> dsl.PipelineTask:
        task.set_container_image(image)
        task.set_retry(num_retries=cluster.retries, backoff_duration=f"{cluster.backoff_seconds}s", backoff_factor=2.0)
        task.set_cpu_request(needs.cpu_request).set_cpu_limit(needs.cpu_limit)
        task.set_memory_request(needs.memory_request).set_memory_limit(needs.memory_limit)
        for name, value in _plain(image).items():
            task.set_env_variable(name, value)
        kubernetes.set_timeout(task, cluster.hours * 3600)
        kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
        if cluster.image_pull_secret:
            kubernetes.set_image_pull_secrets(task, [cluster.image_pull_secret])
        _settings(task, cluster)
        return task

    def train(task: dsl.PipelineTask) -> dsl.PipelineTask:
        pod(task, cluster.train)
        if cluster.gpus:
            task.set_accelerator_type(cluster.gpu).set_accelerator_limit(cluster.gpus)
            for taint in cluster.gpu_tolerations:
                kubernetes.add_toleration(task, key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect)
            for key, value in cluster.gpu_node_selector.items():
                kubernetes.add_node_selector(task, key, value)
        return kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=cluster.shm)

    return Placement(train, lambda task: pod(task, cluster.serve), at_once=cluster.at_once)


# of S3 and the hub, which every pod asks; what only the record in MLflow wants is apart
_ADDRESSES = ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "HF_ENDPOINT")
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def _plain(image: str) -> dict[str, str]:
    """What every pod is told by value."""
    # a container cannot see its own digest
    return {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "CONLST_IMAGE": image}


def _settings(task: dsl.PipelineTask, cluster: Cluster) -> None:
    """Addresses from the config map, keys from secrets: by reference, never as a value."""

    def same(names: Iterable[str]) -> dict[str, str]:
        return {name: name for name in names}

    addresses, wanted = same((*_ADDRESSES, "CONLST_UNTRACKED")), same(("MLFLOW_TRACKING_URI",))
    kubernetes.use_config_map_as_env(task, config_map_name=cluster.config_map, config_map_key_to_env=wanted, optional=False)
    kubernetes.use_config_map_as_env(task, config_map_name=cluster.config_map, config_map_key_to_env=addresses, optional=True)
    for secret, keys in ((cluster.s3_secret, _S3_KEYS), (cluster.mlflow_secret, _MLFLOW_KEYS)):
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=same(keys), optional=True)


def environment(cluster: Cluster, image: str) -> list[dict[str, Any]]:
    """Kubernetes' ``env`` of a pod that no pipeline makes: as a task's, without MLflow, where such a pod records nothing."""

    def of(kind: str, place: str, names: Iterable[str]) -> list[dict[str, Any]]:
        return [{"name": name, "valueFrom": {kind: {"name": place, "key": name, "optional": True}}} for name in names]

    return [
        *({"name": name, "value": value} for name, value in _plain(image).items()),
        *of("configMapKeyRef", cluster.config_map, _ADDRESSES),
        *of("secretKeyRef", cluster.s3_secret, _S3_KEYS),
    ]


def compile_for_cluster(config: Config, out: Path, image: str, cluster: Cluster | None = None) -> None:
    """Write the pipeline as YAML: the KFP specification, then the Kubernetes settings as a second document.

    Raises:
        ConfigError: if the configuration names no languages or wants a GPU where there is none, or the image has no digest.
    """
    cluster = cluster or Cluster()
    check_languages(config)
    check_device(config, cluster)
    arguments = {"config": config.to_json(), "languages": list(config.languages)}
    placed = adaptation(config.adapt, on_cluster(image, cluster))
    compiler.Compiler().compile(placed, str(out), pipeline_parameters=arguments)
