"""Who may do what: secrets, service accounts, roles, and the namespace's own door."""

import re
from collections.abc import Iterator
from typing import Any

from infra.rendered import Rendered, called

# a name of something that nobody else may know: MLFLOW_TRACKING_PASSWORD, but not CONLST_KEYS_FILE, which says where keys lie
_SECRET_NAME = re.compile(r"(password|passwd|secret|token|credential|(access|api|secret|private)_?key)(_id)?$", re.IGNORECASE)
# a user's password within an address; a line of an .ini file; a private key; a key of AWS
_SECRET_TEXT = re.compile(
    r"://[^/@\s:]+:[^/@\s]+@|^\s*\w*password\s*=\s*\S|-----BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}", re.MULTILINE
)
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}


def no_secret_is_in_clear(rendered: Rendered) -> Iterator[str]:
    """Secrets are made in the cluster and referred to; no rendering has one, nor anything that looks like one."""
    for secret in rendered.of("Secret"):
        yield f"{called(secret)}: a secret must not be rendered; make it with kubectl and refer to it"
    for found in rendered.of("ConfigMap"):
        for name, value in found.get("data", {}).items():
            if _looks_secret(name, value):
                yield f"{called(found)}: {name} looks like a secret; refer to one instead"
    for pod in rendered.pods():
        for container in pod.containers:
            for variable in container.get("env", ()):
                if _looks_secret(variable["name"], variable.get("value")):
                    yield f"{pod.owner}: {variable['name']} looks like a secret; take it by secretKeyRef"
            for word in (*container.get("command", ()), *container.get("args", ())):
                if _SECRET_TEXT.search(word):
                    yield f"{pod.owner}: its command line has what looks like a secret, and everybody may read command lines"


def secrets_can_be_rotated(rendered: Rendered) -> Iterator[str]:
    """A file of a secret that is mounted alone stays as it was when the secret changes."""
    for pod in rendered.pods():
        secrets = {volume["name"] for volume in pod.spec.get("volumes", ()) if "secret" in volume}
        for container in pod.containers:
            for mount in container.get("volumeMounts", ()):
                if mount["name"] in secrets and ("subPath" in mount or not mount.get("readOnly")):
                    yield f"{pod.owner}: mount secret volume {mount['name']} as a folder, readOnly and without subPath"


def no_token_unless_needed(rendered: Rendered) -> Iterator[str]:
    """A key to Kubernetes only for accounts that a role is bound to."""
    bound = {subject["name"] for binding in rendered.of("RoleBinding") for subject in binding.get("subjects", ())}
    for account in rendered.of("ServiceAccount"):
        name = account["metadata"]["name"]
        if account.get("automountServiceAccountToken") is not (name in bound):
            wanted = "true, because a role is bound to it" if name in bound else "false"
            yield f"{called(account)}: set automountServiceAccountToken: {wanted}"
    for pod in rendered.pods():
        if pod.spec.get("serviceAccountName") not in bound and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: set automountServiceAccountToken: false"


def roles_name_what_they_open(rendered: Rendered) -> Iterator[str]:
    """Within the namespace, without wildcards, secrets by name; and a binding's role and accounts are there."""
    for found in rendered.of("ClusterRole", "ClusterRoleBinding"):
        yield f"{called(found)}: opens every namespace; a Role does"
    for role in rendered.of("Role"):
        for rule in role["rules"]:
            if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
                yield f"{called(role)}: has a wildcard; name what is needed"
            if "secrets" in rule["resources"] and not rule.get("resourceNames"):
                yield f"{called(role)}: opens every secret; name those that are needed in resourceNames"
    for binding in rendered.of("RoleBinding"):
        reference = binding["roleRef"]
        if rendered.named(reference["kind"], reference["name"]) is None:
            yield f"{called(binding)}: there is no {reference['kind']} {reference['name']}"
        for subject in binding.get("subjects", ()):
            if rendered.named(subject["kind"], subject["name"]) is None:
                yield f"{called(binding)}: there is no {subject['kind']} {subject['name']}"


def namespace_is_restricted(rendered: Rendered) -> Iterator[str]:
    """Pod Security's strictest profile, of a version that is named; and everything lies in a namespace that is rendered."""
    names = {namespace["metadata"]["name"] for namespace in rendered.of("Namespace")}
    for namespace in rendered.of("Namespace"):
        labels = namespace["metadata"].get("labels", {})
        for label, wanted in _RESTRICTED.items():
            if labels.get(label) != wanted or not re.fullmatch(r"v1\.\d+", labels.get(f"{label}-version", "")):
                yield f"{called(namespace)}: set {label}: {wanted} and {label}-version: v1.<minor>"
    for found in rendered.objects:
        if found["kind"] != "Namespace" and found["metadata"].get("namespace") not in names:
            yield f"{called(found)}: is in no namespace that is rendered with it"


def _looks_secret(name: str, value: Any) -> bool:
    return bool(value) and bool(_SECRET_NAME.search(name) or _SECRET_TEXT.search(str(value)))
