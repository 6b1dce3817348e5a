"""Stage 0 on several nodes: a TrainJob of Kubeflow Trainer 2, whose runtime ``torch-distributed`` gives torchrun its place.

The pipeline trains in one pod; a source model that wants more is made beside it and handed over by its address in S3
(``source_model`` of the configuration). Every pod has the code from the image and the pairs from S3 or the hub; the first one
publishes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from conlst.contract.config import Config
from conlst.contract.errors import ConfigError
from pipelines.cluster import USER, Cluster, check_device, check_image, environment

RUNTIME = "torch-distributed"
# names in that runtime: the replicated job, and the container in it
_NODE = "node"
# what infra/base/network knows these pods by
LABELS = {"app.kubernetes.io/name": "conlst-train-job", "app.kubernetes.io/part-of": "conlst"}
_SCRATCH = "/scratch"


def train_job(
    name: str,
    config: Config,
    image: str,
    cluster: Cluster,
    *,
    nodes: int,
    store: str,
    data: Sequence[str],
    dev: str | None,
    service_account: str = "conlst-pipeline",
) -> Mapping[str, Any]:
    """The manifest, ready for YAML.

    Args:
        config: goes along as JSON, as it does with the pipeline.
        nodes: pods of ``cluster.gpus`` GPUs each; a process a GPU, or one a pod where there are none.
        store: s3://bucket/prefix that the model is published to.
        data, dev: ``s3://``, ``hub:`` or ``sample:`` addresses of labelled English pairs.
        service_account: that the pods run as; by default the one that runs of the pipeline have, and its rights in S3.

    Raises:
        ConfigError: if the image has no digest, a pod could not read ``data`` or ``dev``, or a GPU is wanted where there is none.
    """
    check_image(image)
    check_device(config, cluster)
    _check_sources("--data", data)
    _check_sources("--dev", [dev] if dev else [])
    # Kubernetes expands $(NAME) in arguments, and $$ writes a dollar
    given = config.to_json().replace("$(", "$$(")
    arguments = ["--no-python", "conlst", "train-source", "--config", given, "--data", *data, *(["--dev", dev] if dev else [])]
    arguments += ["--out", f"{_SCRATCH}/source", "--store", store]
    resources = {
        "requests": {"cpu": cluster.train.cpu_request, "memory": cluster.train.memory_request},
        "limits": {"cpu": cluster.train.cpu_limit, "memory": cluster.train.memory_limit},
    }
    if cluster.gpus:
        resources["limits"][cluster.gpu] = str(cluster.gpus)
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": dict(LABELS)},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "activeDeadlineSeconds": cluster.hours * 3600,
            "trainer": {
                "image": image,
                "command": ["torchrun"],
                "args": arguments,
                "numNodes": nodes,
                "numProcPerNode": cluster.gpus or 1,
                "resourcesPerNode": resources,
                "env": environment(cluster, image),
            },
            "runtimePatches": [
                {"manager": "conlst", "trainingRuntimeSpec": {"template": {"spec": _patch(cluster, service_account)}}}
            ],
        },
    }


def _check_sources(option: str, sources: Sequence[str]) -> None:
    for source in sources:
        if not source.startswith(("s3://", "hub:", "sample:")):
            raise ConfigError(
                f"{option} {source}: pods read only s3://…, hub:<id> and sample:<language>; put a file of this machine into S3"
            )


def _patch(cluster: Cluster, service_account: str) -> Mapping[str, Any]:
    pod: dict[str, Any] = {
        "serviceAccountName": service_account,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [taint.model_dump(exclude_none=True) for taint in cluster.gpu_tolerations if cluster.gpus],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm}},
            {"name": "scratch", "emptyDir": {}},
        ],
        "containers": [
            {
                "name": _NODE,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "scratch", "mountPath": _SCRATCH}],
            }
        ],
    }
    if cluster.gpus and cluster.gpu_node_selector:
        pod["nodeSelector"] = dict(cluster.gpu_node_selector)
    if cluster.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": cluster.image_pull_secret}]
    return {
        "replicatedJobs": [
            {"name": _NODE, "template": {"spec": {"template": {"metadata": {"labels": dict(LABELS)}, "spec": pod}}}}
        ]
    }
