"""Everything that a pod needs from the cluster, in one place."""

import re
from pathlib import Path

from kfp import compiler, dsl, kubernetes

from conlst.contract.config import Config
from conlst.contract.errors import ConfigError
from pipelines.adaptation import Placement, adaptation

_DIGEST = re.compile(r"[\w./:-]+@sha256:[0-9a-f]{64}")
_SECRET = "conlst-s3"
_USER = 10001
_HOURS = 12


def on_cluster(image: str) -> Placement:
    """Training on GPU nodes, the rest on any; every task from one image named by digest.

    Raises:
        ConfigError: if the image has no digest: a tag that is pushed again changes what a cached or retried task runs.
    """
    if not _DIGEST.fullmatch(image):
        raise ConfigError(f"--image {image!r} must name a digest: registry/name@sha256:<64 hex digits>")

    def pod(task: dsl.PipelineTask) -> dsl.PipelineTask:
        task.set_container_image(image)
        task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0)
        task.set_env_variable("HF_HUB_DISABLE_TELEMETRY", "1")
        task.set_env_variable("TOKENIZERS_PARALLELISM", "false")
        kubernetes.set_timeout(task, _HOURS * 3600)
        kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)
        kubernetes.use_config_map_as_env(
            task,
            config_map_name="conlst",
            config_map_key_to_env={"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"},
        )
        # AWS itself needs neither
        kubernetes.use_config_map_as_env(
            task,
            config_map_name="conlst",
            config_map_key_to_env={key: key for key in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")},
            optional=True,
        )
        # absent where the service account's role gives access
        kubernetes.use_secret_as_env(
            task,
            secret_name=_SECRET,
            secret_key_to_env={key: key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
            optional=True,
        )
        return task

    def train(task: dsl.PipelineTask) -> dsl.PipelineTask:
        pod(task)
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
        task.set_cpu_request("4").set_cpu_limit("8").set_memory_request("16Gi").set_memory_limit("32Gi")
        kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        # the default /dev/shm of 64 MB kills data loading with a bus error
        return kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="2Gi")

    def serve(task: dsl.PipelineTask) -> dsl.PipelineTask:
        pod(task)
        return task.set_cpu_request("1").set_cpu_limit("4").set_memory_request("4Gi").set_memory_limit("8Gi")

    return Placement(train, serve, at_once=4)


def compile_for_cluster(config: Config, out: Path, image: str) -> None:
    """Write the pipeline as YAML: the KFP specification, then the Kubernetes settings as a second document."""
    if not config.languages:
        raise ConfigError(f"{config.name} names no languages; set languages in the configuration")
    arguments = {"config": config.to_json(), "languages": list(config.languages)}
    compiler.Compiler().compile(adaptation(on_cluster(image)), str(out), pipeline_parameters=arguments)
