"""What images and manifests promise, read from the files: no Docker, no cluster."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from components.summarize import summarize
from pipelines.cluster import on_cluster
from serving.__main__ import GRACE_SECONDS

ROOT = Path(__file__).parents[1]
BASE = ROOT / "infra" / "base"
USER = 10001
TARGETS = ("train", "test", "serve")

Object = dict[str, Any]


def _objects(kind: str) -> list[Object]:
    documents = [document for file in sorted(BASE.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text())]
    return [document for document in documents if document["kind"] == kind]


def _only(kind: str) -> Object:
    (found,) = _objects(kind)
    return found


def _pod() -> Object:
    return _only("Deployment")["spec"]["template"]


def _container() -> Object:
    (container,) = _pod()["spec"]["containers"]
    return container


def _flows() -> dict[str, Object]:
    policies = _objects("NetworkPolicy")
    return {policy["metadata"]["name"].removeprefix("conlst-serving-"): policy["spec"] for policy in policies}


def _stages() -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions with their arguments, after those of the stage that it is built on."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    current = stages[""]
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, argument = line.split(maxsplit=1)
        if instruction == "FROM":
            parent, _, name = argument.split()
            current = stages[name] = list(stages.get(parent, []))
        current.append((instruction, argument))
    return stages


def _copied(stage: str) -> list[str]:
    copies = [argument.split() for instruction, argument in _stages()[stage] if instruction == "COPY"]
    return [source for sources in copies for source in sources[:-1]]


def _pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {_canonical(line.split("==")[0]): line for line in lines}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class TestManifests:
    def test_every_file_is_in_the_kustomization(self) -> None:
        listed = _only("Kustomization")["resources"]
        assert sorted(listed) == sorted(file.name for file in BASE.glob("*.yaml") if file.name != "kustomization.yaml")

    def test_there_is_no_workload_but_those_looked_at(self) -> None:
        kinds = {"Pod", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet"}
        assert not [found for kind in kinds for found in _objects(kind)]
        assert "initContainers" not in _pod()["spec"]

    def test_pods_meet_the_restricted_profile(self) -> None:
        pod, container = _pod()["spec"]["securityContext"], _container()["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["runAsGroup"] == USER
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & _pod()["spec"].keys()

    def test_pods_get_no_key_to_the_cluster(self) -> None:
        account = _only("ServiceAccount")
        assert _pod()["spec"]["serviceAccountName"] == account["metadata"]["name"]
        assert account["automountServiceAccountToken"] is False
        assert _pod()["spec"]["automountServiceAccountToken"] is False

    def test_what_the_service_writes_is_mounted(self) -> None:
        spec = _pod()["spec"]
        mounted = {mount["name"]: mount["mountPath"] for mount in _container()["volumeMounts"]}
        assert {volume["name"] for volume in spec["volumes"] if volume["emptyDir"]["sizeLimit"]} == mounted.keys()
        values = {variable["name"]: variable.get("value") for variable in _container()["env"]}
        assert sorted(mounted.values()) == sorted([values["CONLST_CACHE"], "/tmp"])
        written = [value for instruction, value in _stages()["serve"] if instruction == "ENV" and "BENTOML_HOME" in value]
        assert written == ["BENTOML_HOME=/tmp/bentoml"]

    def test_images_are_named_by_digest(self) -> None:
        image = _container()["image"]
        assert re.fullmatch(r"conlst-serve@sha256:[0-9a-f]{64}", image)
        assert ":latest" not in "".join(file.read_text() for file in BASE.glob("*.yaml"))

    def test_resources_are_requested_and_limited(self) -> None:
        resources = _container()["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}

    def test_probes_ask_the_routes_that_bentoml_has(self) -> None:
        probes = {name: _container()[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert {name: probe["path"] for name, probe in probes.items()} == {
            "startupProbe": "/livez",
            "livenessProbe": "/livez",
            "readinessProbe": "/readyz",
        }
        assert {probe["port"] for probe in probes.values()} == {"http"}

    def test_requests_may_finish_before_the_pod_is_killed(self) -> None:
        waits = _container()["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert _pod()["spec"]["terminationGracePeriodSeconds"] > waits + GRACE_SECONDS

    def test_one_port_from_the_image_to_the_service(self) -> None:
        (port,) = _container()["ports"]
        serve = dict(_stages()["serve"])
        assert serve["EXPOSE"] == str(port["containerPort"])
        assert f'"--port", "{port["containerPort"]}"' in serve["CMD"]
        assert [entry["targetPort"] for entry in _only("Service")["spec"]["ports"]] == [port["name"]]
        assert "type" not in _only("Service")["spec"]

    def test_everything_selects_the_serving_pods(self) -> None:
        labels = _pod()["metadata"]["labels"].items()
        budget = _only("PodDisruptionBudget")["spec"]
        selectors = [_only("Deployment")["spec"]["selector"]["matchLabels"], _only("Service")["spec"]["selector"]]
        selectors += [budget["selector"]["matchLabels"]]
        selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in _objects("NetworkPolicy")]
        assert all(selector and selector.items() <= labels for selector in selectors)
        assert 0 < budget["minAvailable"] < _only("Deployment")["spec"]["replicas"]

    def test_network_is_closed_but_for_named_flows(self) -> None:
        policies = _flows()
        assert policies.keys() == {"deny", "clients", "dns", "mlflow", "s3"}
        deny = policies.pop("deny")
        assert deny.keys() == {"podSelector", "policyTypes"}
        assert sorted(deny["policyTypes"]) == ["Egress", "Ingress"]
        rules = [rule for policy in policies.values() for rule in (*policy.get("ingress", ()), *policy.get("egress", ()))]
        # a rule without peers or without ports would open everything
        assert all(rule["ports"] and (rule.get("from") or rule.get("to")) for rule in rules)
        assert [rule["ports"] for rule in policies["clients"]["ingress"]] == [[{"port": "http"}]]

    def test_settings_and_secret_are_those_of_the_pipeline(self, tmp_path: Path) -> None:
        given, secret = _task_environment(tmp_path)
        settings = _only("ConfigMap")
        assert {entry["configMapName"] for entry in given} == {settings["metadata"]["name"]}
        assert settings["data"].keys() == {pair["configMapKey"] for entry in given for pair in entry["keyToEnv"]}
        assert _container()["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
        references = [variable["valueFrom"]["secretKeyRef"] for variable in _container()["env"] if "valueFrom" in variable]
        wanted = [{"name": secret["secretName"], "key": pair["secretKey"], "optional": True} for pair in secret["keyToEnv"]]
        assert sorted(references, key=str) == sorted(wanted, key=str)

    def test_ports_of_the_flows_are_those_of_the_addresses(self) -> None:
        addresses = _only("ConfigMap")["data"]
        for flow, setting in (("mlflow", "MLFLOW_TRACKING_URI"), ("s3", "AWS_ENDPOINT_URL_S3")):
            (rule,) = _flows()[flow]["egress"]
            assert addresses[setting].endswith(f":{rule['ports'][0]['port']}")

    def test_no_secret_is_in_a_file(self) -> None:
        assert not _objects("Secret")
        assert "secretGenerator" not in _only("Kustomization")


def _task_environment(folder: Path) -> tuple[list[Object], Object]:
    """What a task on the cluster gets from config maps and from the secret, as compiled."""

    @dsl.pipeline
    def one_task() -> None:
        on_cluster("registry/conlst-train@sha256:" + "0" * 64).serve(summarize(config="{}", job="1", decisions=[]))

    compiler.Compiler().compile(one_task, str(folder / "one.yaml"))
    _, platform = yaml.safe_load_all((folder / "one.yaml").read_text())
    (task,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert task["securityContext"]["runAsUser"] == str(USER)
    (secret,) = task["secretAsEnv"]
    return task["configMapAsEnv"], secret


class TestImages:
    @pytest.mark.parametrize("target", TARGETS)
    def test_runs_as_the_user_that_the_cluster_names(self, target: str) -> None:
        users = [argument for instruction, argument in _stages()[target] if instruction == "USER"]
        assert users[-1] == f"{USER}:{USER}"

    def test_base_has_to_be_named(self) -> None:
        assert _stages()[""] == [("ARG", "BASE")]
        roots = [arguments[0][1] for name, arguments in _stages().items() if name]
        assert set(roots) == {"${BASE} AS base"}

    def test_nothing_is_fetched_but_packages_and_no_argument_could_be_a_secret(self) -> None:
        instructions = [pair for stage in _stages().values() for pair in stage]
        assert not [pair for pair in instructions if pair[0] == "ADD"]
        assert {argument for instruction, argument in instructions if instruction == "ARG"} == {"BASE"}
        named = " ".join(argument for instruction, argument in instructions if instruction == "ENV")
        assert not re.search(r"key|secret|token|password", named, re.IGNORECASE)

    @pytest.mark.parametrize("target", TARGETS)
    def test_writes_no_bytecode_and_sends_no_telemetry(self, target: str) -> None:
        settings = " ".join(argument for instruction, argument in _stages()[target] if instruction == "ENV").split()
        assert {"PYTHONDONTWRITEBYTECODE=1", "ORT_DISABLE_TELEMETRY=1"} <= set(settings)

    def test_context_holds_what_is_copied_and_nothing_unnamed(self) -> None:
        patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
        assert patterns[0] == "*"
        allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
        copied = {source.split("/")[0] for target in TARGETS for source in _copied(target)} - {"."}
        assert copied <= allowed
        assert all((ROOT / name).exists() for name in allowed)


class TestServingLock:
    def test_every_line_is_one_of_the_whole_lock(self) -> None:
        whole, serving = _pins("requirements.lock"), _pins("serving/requirements.lock")
        assert serving.items() <= whole.items()

    def test_leaves_out_what_only_training_and_pipelines_need(self) -> None:
        heavy = {"torch", "transformers", "datasets", "kfp", "mlflow", "onnx", "pandas", "pyarrow", "matplotlib", "pytest"}
        assert heavy <= _pins("requirements.lock").keys()
        assert not heavy & _pins("serving/requirements.lock").keys()

    def test_is_what_its_script_makes(self) -> None:
        script = [sys.executable, str(ROOT / "infra" / "lock_serving.py")]
        made = subprocess.run(script, capture_output=True, text=True, check=True).stdout
        assert made == (ROOT / "serving" / "requirements.lock").read_text()

    def test_image_has_everything_that_its_code_imports(self) -> None:
        files = {file for source in _copied("serve") for file in _python_files(ROOT / source)}
        assert ROOT / "serving" / "service.py" in files
        locked, owners = _pins("serving/requirements.lock").keys(), packages_distributions()
        missing = set()
        for module in {module for file in files for module in _imports(file)}:
            top = module.split(".")[0]
            if (ROOT / top).is_dir():
                missing |= {module} if not _is_copied(module, files) else set()
            elif top not in sys.stdlib_module_names and not locked & {_canonical(name) for name in owners.get(top, ())}:
                missing.add(module)
        assert not missing


def _python_files(path: Path) -> Iterator[Path]:
    yield from path.rglob("*.py") if path.is_dir() else (path,)


def _imports(file: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, within functions too."""
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            # a name may be a module itself
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file())


def _is_copied(module: str, files: set[Path]) -> bool:
    place = ROOT / module.replace(".", "/")
    return bool({place.with_suffix(".py"), place / "__init__.py"} & files)
