"""What `kubectl kustomize` gave, as the policies read it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet")


@dataclass(frozen=True)
class Pod:
    """A pod as a workload would make it.

    Attributes:
        owner: what is said of it in messages, for example ``Deployment/mlflow``.
        workload: the object that makes it.
        labels, spec: of the pod.
    """

    owner: str
    workload: Object
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        """All of them, those that only start it too."""
        return [*self.spec.get("initContainers", ()), *self.spec.get("containers", ())]

    @property
    def ports(self) -> dict[str, int]:
        """Numbers by name, of the ports that are named."""
        return {port["name"]: port["containerPort"] for container in self.containers for port in container.get("ports", ())}


class Rendered:
    """The objects of a rendering."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, *kinds: str) -> list[Object]:
        """Those of the kinds, in their order."""
        return [found for found in self.objects if found["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        """The one of that kind and name, if there is one."""
        return next((found for found in self.of(kind) if found["metadata"]["name"] == name), None)

    def pods(self) -> Iterator[Pod]:
        """One of each workload; a pod without a workload is one as well."""
        for found in self.objects:
            if found["kind"] == "Pod":
                yield _pod(found, found)
            elif found["kind"] in _WORKLOADS:
                yield _pod(found, found["spec"]["template"])
            elif found["kind"] == "CronJob":
                yield _pod(found, found["spec"]["jobTemplate"]["spec"]["template"])

    def selected(self, selector: Mapping[str, Any]) -> list[Pod]:
        """Pods that a selector takes. ``matchLabels`` is the only part of one that is understood; another takes none."""
        if selector.get("matchExpressions"):
            return []
        wanted = selector.get("matchLabels", {}).items()
        return [pod for pod in self.pods() if wanted <= pod.labels.items()]


def called(found: Object) -> str:
    """``Kind/name``, for messages."""
    return f"{found['kind']}/{found['metadata']['name']}"


def _pod(workload: Object, template: Object) -> Pod:
    return Pod(called(workload), workload, template.get("metadata", {}).get("labels", {}), template["spec"])
