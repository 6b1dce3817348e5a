"""What a pod may do, and what it must say of itself: the Pod Security profile `restricted` and a little more."""

import re
from collections.abc import Iterator

from infra.rendered import Object, Pod, Rendered

_BY_DIGEST = re.compile(r"[\w./:-]+@sha256:[0-9a-f]{64}")
_OF_THE_NODE = ("hostNetwork", "hostPID", "hostIPC")


def runs_as_non_root(rendered: Rendered) -> Iterator[str]:
    """By number, because Kubernetes cannot see of a name that it is not root's."""
    for pod, container, where in _containers(rendered):
        context = pod.spec.get("securityContext", {}) | container.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{where}: set runAsNonRoot: true and a runAsUser that is not 0"


def root_is_read_only(rendered: Rendered) -> Iterator[str]:
    """So that nothing that is broken into can be changed; what is written is mounted."""
    for _, container, where in _containers(rendered):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: set readOnlyRootFilesystem: true and mount what it writes"


def has_no_capabilities(rendered: Rendered) -> Iterator[str]:
    """Nor a way to get them."""
    for _, container, where in _containers(rendered):
        context = container.get("securityContext", {})
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: capabilities must be drop: [ALL] and no more"
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: set allowPrivilegeEscalation: false, and not privileged"


def has_the_default_seccomp_profile(rendered: Rendered) -> Iterator[str]:
    """System calls that a container has no use for are refused."""
    for pod, container, where in _containers(rendered):
        context = pod.spec.get("securityContext", {}) | container.get("securityContext", {})
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: set seccompProfile: {{type: RuntimeDefault}}"


def shares_nothing_with_its_node(rendered: Rendered) -> Iterator[str]:
    """No folder, port, network or process of the node's own."""
    for pod in rendered.pods():
        for volume in pod.spec.get("volumes", ()):
            if "hostPath" in volume:
                yield f"{pod.owner}: volume {volume['name']} is a hostPath; take an emptyDir or a claim"
        for name in _OF_THE_NODE:
            if pod.spec.get(name):
                yield f"{pod.owner}: {name} is the node's own; remove it"
    for _, container, where in _containers(rendered):
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{where}: a hostPort passes by every NetworkPolicy; make a service"


def image_is_named_by_digest(rendered: Rendered) -> Iterator[str]:
    """A tag that is pushed again changes what a restarted pod runs."""
    for _, container, where in _containers(rendered):
        image = str(container.get("image"))
        if not _BY_DIGEST.fullmatch(image):
            yield f"{where}: image {image} has no digest; name it registry/name@sha256:<64 hex digits>"


def resources_are_requested_and_limited(rendered: Rendered) -> Iterator[str]:
    """CPU and memory, both ways: what has no request is put anywhere, what has no limit takes its neighbours'."""
    for _, container, where in _containers(rendered):
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if missing := sorted({"cpu", "memory"} - resources.get(kind, {}).keys()):
                yield f"{where}: resources.{kind} lacks {' and '.join(missing)}"


def has_probes(rendered: Rendered) -> Iterator[str]:
    """What runs on and on must say when it may be asked, and when it is beyond hope."""
    for pod in rendered.pods():
        if pod.workload["kind"] not in ("Deployment", "StatefulSet"):
            continue
        for container in pod.spec["containers"]:
            if missing := [probe for probe in ("readinessProbe", "livenessProbe") if probe not in container]:
                yield f"{pod.owner}, container {container['name']}: has no {' and no '.join(missing)}"


def has_what_it_refers_to(rendered: Rendered) -> Iterator[str]:
    """Its service account and config maps are rendered with it. Secrets are made by hand."""
    for pod in rendered.pods():
        account = pod.spec.get("serviceAccountName")
        if account is None or rendered.named("ServiceAccount", account) is None:
            yield f"{pod.owner}: there is no ServiceAccount {account}; name one that is rendered with it"
        for name, key in _config_maps(pod):
            found = rendered.named("ConfigMap", name)
            if found is None:
                yield f"{pod.owner}: there is no ConfigMap {name}"
            elif key is not None and key not in found["data"]:
                yield f"{pod.owner}: ConfigMap {name} has no {key}"


def _containers(rendered: Rendered) -> Iterator[tuple[Pod, Object, str]]:
    for pod in rendered.pods():
        for container in pod.containers:
            yield pod, container, f"{pod.owner}, container {container['name']}"


def _config_maps(pod: Pod) -> Iterator[tuple[str, str | None]]:
    for volume in pod.spec.get("volumes", ()):
        if "configMap" in volume:
            yield volume["configMap"]["name"], None
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                yield source["configMapRef"]["name"], None
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("configMapKeyRef")
            if reference and not reference.get("optional"):
                yield reference["name"], reference["key"]
