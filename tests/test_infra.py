"""What images and manifests promise, read from the files: no Docker, no cluster."""

import ast
import configparser
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import packages_distributions, version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl
from packaging.utils import canonicalize_name

from components.summarize import summarize
from conlst import __version__
from infra.lock import LOCK, MLFLOW_LOCK, SERVING_LOCK, mlflow_lock, pins, serving_lock
from infra.policies import broken
from infra.policies.network import FLOWS
from infra.rendered import Pod, Rendered
from infra.stamp import wrong
from infra.validate import render
from machine import needs
from pipelines.cluster import Cluster, on_cluster
from serving.ending import GRACE_SECONDS
from serving.settings import Settings

ROOT = Path(__file__).parents[1]
BASE = ROOT / "infra" / "base"
LOCAL, AWS = (ROOT / "infra" / "overlays" / place for place in ("local", "aws"))
HUB = ROOT / "infra" / "components" / "hub"
S3_FLOWS = ("serving-s3", "mlflow-s3", "pipeline-s3", "train-job-s3")
USER = 10001
TARGETS = ("train", "test", "serve", "mlflow")

Object = dict[str, Any]

kubectl_renders = needs(shutil.which("kubectl") is not None, "kubectl, which renders the overlays,")


def _objects(kind: str) -> list[Object]:
    documents = [document for file in sorted(BASE.rglob("*.yaml")) for document in yaml.safe_load_all(file.read_text())]
    return [document for document in documents if document["kind"] == kind]


def _named(kind: str, name: str) -> Object:
    (found,) = (found for found in _objects(kind) if found["metadata"]["name"] == name)
    return found


def _data(name: str) -> dict[str, str]:
    data: dict[str, str] = _named("ConfigMap", name)["data"]
    return data


def _pod() -> Object:
    spec: Object = _named("Deployment", "conlst-serving")["spec"]["template"]["spec"]
    return spec


def _container() -> Object:
    (container,) = _pod()["containers"]
    assert isinstance(container, dict)
    return container


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
    """What a stage takes from the checkout."""
    copies = [argument.split() for instruction, argument in _stages()[stage] if instruction == "COPY"]
    from_checkout = [words for words in copies if not words[0].startswith("--from=")]
    return [word for words in from_checkout for word in words[:-1] if not word.startswith("--")]


def _arguments(stage: str) -> set[str]:
    return {name for instruction, names in _stages()[stage] if instruction == "ARG" for name in names.split()}


class TestEndpoint:
    def test_what_the_service_writes_is_mounted(self) -> None:
        folders = {volume["name"] for volume in _pod()["volumes"] if volume.get("emptyDir", {}).get("sizeLimit")}
        written = {mount["mountPath"] for mount in _container()["volumeMounts"] if mount["name"] in folders}
        assert written == {_data("conlst-serving")["CONLST_CACHE"], "/tmp"}
        homes = [value for instruction, value in _stages()["serve"] if instruction == "ENV" and "BENTOML_HOME" in value]
        assert homes == ["BENTOML_HOME=/tmp/bentoml"]

    def test_runs_as_the_user_of_its_image(self) -> None:
        context = _pod()["securityContext"]
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == USER

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
        assert _pod()["terminationGracePeriodSeconds"] > waits + GRACE_SECONDS

    def test_no_pod_leaves_before_another_has_come(self) -> None:
        rolling = _named("Deployment", "conlst-serving")["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxSurge": 1, "maxUnavailable": 0}

    def test_pods_are_spread_without_stopping_a_trial_on_one_node(self) -> None:
        spread = _pod()["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert {one["whenUnsatisfiable"] for one in spread} == {"ScheduleAnyway"}
        labels = _named("Deployment", "conlst-serving")["spec"]["template"]["metadata"]["labels"].items()
        assert all(one["labelSelector"]["matchLabels"].items() <= labels for one in spread)

    def test_one_port_from_the_image_to_the_service_and_prometheus(self) -> None:
        (port,) = _container()["ports"]
        serve = dict(_stages()["serve"])
        assert serve["EXPOSE"] == str(port["containerPort"])
        assert f'"--port", "{port["containerPort"]}"' in serve["CMD"]
        service = _named("Service", "conlst-serving")["spec"]
        assert [entry["targetPort"] for entry in service["ports"]] == [port["name"]]
        assert "type" not in service
        notes = _named("Deployment", "conlst-serving")["spec"]["template"]["metadata"]["annotations"]
        assert (notes["prometheus.io/port"], notes["prometheus.io/path"]) == (str(port["containerPort"]), "/metrics")

    def test_settings_are_some_that_the_service_reads(self) -> None:
        known = {f"CONLST_{field.name.upper()}" for field in fields(Settings)}
        assert _data("conlst-serving").keys() <= known
        assert [source["configMapRef"]["name"] for source in _container()["envFrom"]] == ["conlst", "conlst-serving"]
        settings = Settings.from_environment(_data("conlst-serving"))
        assert settings.auth == "keys"
        assert settings.feedback == ""
        assert settings.watch_seconds > 0

    def test_keys_lie_in_a_folder_of_a_secret_that_must_be_there(self) -> None:
        (mount,) = (mount for mount in _container()["volumeMounts"] if mount["name"] == "keys")
        (volume,) = (volume for volume in _pod()["volumes"] if volume["name"] == "keys")
        assert Path(_data("conlst-serving")["CONLST_KEYS_FILE"]).parent == Path(mount["mountPath"])
        assert not volume["secret"].get("optional")
        # readable by the group that fsGroup gives the files to, and by nobody else
        assert volume["secret"]["defaultMode"] == 0o440


class TestMlflow:
    def test_is_one_at_a_time(self) -> None:
        spec = _named("Deployment", "mlflow")["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})

    def test_has_its_auth_on_and_answers_to_the_name_that_clients_call(self) -> None:
        (container,) = _named("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
        assert container["command"][:4] == ["mlflow", "server", "--app-name", "basic-auth"]
        settings = _data("mlflow")
        permissions = configparser.ConfigParser()
        permissions.read_string(_data("mlflow-permissions")[Path(settings["MLFLOW_AUTH_CONFIG_PATH"]).name])
        assert dict(permissions["mlflow"]) == {
            "default_permission": "READ",
            "database_uri": settings["MLFLOW_BACKEND_STORE_URI"],
        }
        address = _data("conlst")["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert address in settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")

    def test_is_not_told_its_clients_address(self) -> None:
        (container,) = _named("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
        assert [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source] == ["mlflow"]
        names = {variable["name"] for variable in container["env"]} | _data("mlflow").keys()
        assert not {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"} & names


class TestPipeline:
    def test_settings_are_those_that_tasks_ask_for(self, tmp_path: Path) -> None:
        given, _ = _task_environment(tmp_path)
        assert {entry["configMapName"] for entry in given} == {"conlst"}
        asked = {pair["configMapKey"]: bool(entry.get("optional")) for entry in given for pair in entry["keyToEnv"]}
        assert _data("conlst").keys() <= asked.keys()
        assert {key for key, optional in asked.items() if not optional} <= _data("conlst").keys()

    def test_account_may_do_nothing_but_what_its_runs_own_machinery_asks(self) -> None:
        rules = _named("Role", "conlst-pipeline")["rules"]
        allowed = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
        assert allowed == {
            ("workflowtaskresults", "create"),
            ("workflowtaskresults", "patch"),
            ("pods", "get"),
            ("pods", "list"),
            ("pods", "watch"),
            ("configmaps", "get"),
            ("secrets", "get"),
        }


class TestFiles:
    def test_every_file_is_in_a_kustomization(self) -> None:
        for folder in (BASE, LOCAL, AWS, HUB):
            kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
            patches = [patch["path"] for patch in kustomization.get("patches", ())]
            listed = {entry for entry in (*kustomization["resources"], *patches) if entry != "../../base"}
            files = {str(file.relative_to(folder)) for file in folder.rglob("*.yaml")}
            assert files - {"kustomization.yaml"} == listed

    def test_no_secret_is_made_from_a_file(self) -> None:
        assert not _objects("Secret")
        assert not any("secretGenerator" in found for found in _objects("Kustomization"))

    def test_every_secret_has_a_command_that_makes_it(self, tmp_path: Path) -> None:
        notes = "".join((folder / "kustomization.yaml").read_text() for folder in (BASE, LOCAL))
        made = set(re.findall(r"kubectl create secret generic (\S+)", notes))
        text = "".join(file.read_text() for folder in (BASE, LOCAL) for file in folder.rglob("*.yaml"))
        used = set(re.findall(r"secretKeyRef:\n\s+name: (\S+)|secretName: (\S+)|secretRef:\n\s+name: (\S+)", text))
        _, of_tasks = _task_environment(tmp_path)
        assert made == {name for names in used for name in names if name} | {entry["secretName"] for entry in of_tasks}


@kubectl_renders
class TestOverlays:
    @pytest.mark.parametrize("overlay", [LOCAL, AWS])
    def test_closes_the_namespace_but_for_the_flows_of_the_place(self, overlay: Path) -> None:
        names = {policy["metadata"]["name"] for policy in render(overlay).of("NetworkPolicy")}
        inside = {"postgres-clients", "seaweedfs-clients"}
        assert names == {"deny", *FLOWS} - (set() if overlay == LOCAL else inside)

    @pytest.mark.parametrize("overlay", [BASE, LOCAL, AWS])
    def test_images_wait_for_a_digest(self, overlay: Path) -> None:
        images = {container["image"] for pod in render(overlay).pods() for container in pod.containers}
        assert {image.partition("@")[2] for image in images} == {"sha256:" + "0" * 64}

    def test_local_has_s3_and_database_with_claims_and_keys_for_each(self) -> None:
        rendered = render(LOCAL)
        claims = {found["metadata"]["name"]: found["spec"]["volumeClaimTemplates"] for found in rendered.of("StatefulSet")}
        assert claims.keys() == {"postgres", "seaweedfs"}
        assert all(template["spec"]["resources"]["requests"]["storage"] for (template,) in claims.values())
        keys = {pod.owner: _secret_of(pod, "AWS_SECRET_ACCESS_KEY") for pod in rendered.pods()}
        assert keys["Deployment/conlst-serving"] == "conlst-serving-s3"
        assert keys["Deployment/mlflow"] == "mlflow-s3"

    def test_local_addresses_are_services_and_their_ports(self) -> None:
        rendered = render(LOCAL)
        ports = {found["metadata"]["name"]: found["spec"]["ports"][0]["port"] for found in rendered.of("Service")}
        settings = {name: value for found in rendered.of("ConfigMap") for name, value in found["data"].items()}
        for address in (settings["MLFLOW_TRACKING_URI"], settings["AWS_ENDPOINT_URL_S3"]):
            host, port = address.removeprefix("http://").split(":")
            assert ports[host] == int(port)
        assert ports[settings["PGHOST"]] == int(settings["PGPORT"])
        (seaweedfs,) = next(pod for pod in rendered.pods() if pod.owner == "StatefulSet/seaweedfs").containers
        buckets = {settings[name].split("/")[2] for name in ("MLFLOW_ARTIFACTS_DESTINATION", "CONLST_FEEDBACK")}
        assert {f"-bucket={bucket}" for bucket in buckets} <= set(seaweedfs["command"])

    def test_aws_has_roles_and_no_key(self) -> None:
        rendered = render(AWS)
        roles = [account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] for account in rendered.of("ServiceAccount")]
        assert len(set(roles)) == len(roles) == 3
        assert all(role.startswith("arn:aws:iam::") for role in roles)
        names = {variable["name"] for pod in rendered.pods() for one in pod.containers for variable in one.get("env", ())}
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & names
        assert not any("AWS_ENDPOINT_URL_S3" in found["data"] for found in rendered.of("ConfigMap"))

    def test_aws_has_its_places_from_one_file(self) -> None:
        rendered = yaml.safe_dump_all(render(AWS).objects)
        assert [name for name, value in _settings().items() if value not in rendered] == []
        assert "from settings.yaml" not in rendered
        # what network.yaml has until settings.yaml is put there
        assert "192.0.2.255" not in rendered
        assert "name: settings" not in rendered

    def test_aws_speaks_to_s3_by_port_443_and_to_the_database(self) -> None:
        rules = {found["metadata"]["name"]: found["spec"].get("egress", [{}])[0] for found in render(AWS).of("NetworkPolicy")}
        ports = {name: rules[name]["ports"] for name in (*S3_FLOWS, "mlflow-postgres")}
        assert ports.pop("mlflow-postgres") == [{"port": 5432}]
        assert all(port == [{"port": 443}] for port in ports.values())
        assert all("ipBlock" in peer for name in ports for peer in rules[name]["to"])

    def test_aws_reaches_all_of_s3_at_the_same_addresses(self) -> None:
        rules = {found["metadata"]["name"]: found["spec"].get("egress", [{}])[0] for found in render(AWS).of("NetworkPolicy")}
        endpoints = [{"ipBlock": {"cidr": _settings()["endpoints-cidr"]}}]
        assert {name: rules[name]["to"] for name in S3_FLOWS} == dict.fromkeys(S3_FLOWS, endpoints)

    def test_the_service_of_kubernetes_may_be_dialled_as_well_as_its_nodes(self) -> None:
        allowed = {
            overlay: {
                (peer["ipBlock"]["cidr"], port["port"])
                for rule in _flow(render(overlay), "pipeline-kubernetes")["egress"]
                for peer in rule["to"]
                for port in rule["ports"]
            }
            for overlay in (LOCAL, AWS)
        }
        # what kubeadm, and so kind and minikube, give to the service
        assert allowed[LOCAL] == {("172.16.0.0/12", 6443), ("10.96.0.1/32", 443)}
        assert allowed[AWS] == {(_settings()["api-cidr"], 443), (_settings()["api-service"], 443)}

    @pytest.mark.parametrize("overlay", [LOCAL, AWS])
    def test_the_hub_is_open_to_those_who_train_and_to_nobody_else(self, overlay: Path) -> None:
        rendered = render(overlay)
        public = {}
        for policy in rendered.of("NetworkPolicy"):
            for rule in policy["spec"].get("egress", ()):
                if any(peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0" for peer in rule["to"]):
                    public[policy["metadata"]["name"]] = rule["ports"]
        assert public == {"pipeline-hub": [{"port": 443}], "train-job-hub": [{"port": 443}]}
        for kind in ("pipeline", "train-job"):
            assert _flow(rendered, f"{kind}-hub")["podSelector"] == _flow(rendered, f"{kind}-s3")["podSelector"]

    @pytest.mark.parametrize("overlay", [LOCAL, AWS])
    def test_the_hub_is_left_out_by_a_line(self, tmp_path: Path, overlay: Path) -> None:
        shutil.copytree(ROOT / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("*.py", "*.lock"))
        copy = tmp_path / overlay.relative_to(ROOT)
        kustomization = copy / "kustomization.yaml"
        kept = [line for line in kustomization.read_text().splitlines() if line != "  - ../../components/hub"]
        kustomization.write_text("\n".join(kept))
        rendered = render(copy)
        names = {policy["metadata"]["name"] for policy in render(overlay).of("NetworkPolicy")}
        left = {policy["metadata"]["name"] for policy in rendered.of("NetworkPolicy")}
        assert names - left == {"pipeline-hub", "train-job-hub"}
        assert broken(rendered) == []


class TestRolesOfAws:
    def test_each_has_a_file_and_may_list_the_bucket(self) -> None:
        settings = _settings()
        roles = {value.split("/")[-1] for name, value in settings.items() if name.endswith("-role")}
        files = {file.stem: json.loads(file.read_text())["Statement"] for file in (AWS / "iam").iterdir()}
        assert files.keys() == roles
        bucket = "arn:aws:s3:::" + settings["feedback"].split("/")[2]
        listing = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": bucket}
        assert all(statements[0] == listing for statements in files.values())

    def test_each_may_do_what_its_code_asks_of_s3_and_no_more(self) -> None:
        bucket = "arn:aws:s3:::" + _settings()["feedback"].split("/")[2]
        allowed: dict[str, set[tuple[str, str]]] = {}
        for file in (AWS / "iam").iterdir():
            for statement in json.loads(file.read_text())["Statement"]:
                named = statement["Resource"]
                places = [place.removeprefix(bucket) for place in ([named] if isinstance(named, str) else named)]
                actions = [action.removeprefix("s3:") for action in statement["Action"]]
                allowed.setdefault(file.stem, set()).update(product(actions, places))
        # large files go up in parts, which are taken back if one fails; the endpoint puts whole objects
        up = ("PutObject", "AbortMultipartUpload")
        assert allowed == {
            "conlst-serving": {("ListBucket", ""), ("GetObject", "/models/*"), ("PutObject", "/feedback/*")},
            "conlst-mlflow": {("ListBucket", ""), ("GetObject", "/mlflow/*"), *product(up, ["/mlflow/*"])},
            "conlst-pipeline": {
                ("ListBucket", ""),
                ("GetObject", "/*"),
                *product(up, ["/models/*", "/feedback/taken/*", "/untracked/*"]),
            },
        }


def _settings() -> dict[str, str]:
    data: dict[str, str] = yaml.safe_load((AWS / "settings.yaml").read_text())["data"]
    return data


def _flow(rendered: Rendered, name: str) -> Object:
    policy = rendered.named("NetworkPolicy", name)
    assert policy is not None
    spec: Object = policy["spec"]
    return spec


def _secret_of(pod: Pod, variable: str) -> str | None:
    for container in pod.containers:
        for entry in container.get("env", ()):
            if entry["name"] == variable:
                return str(entry["valueFrom"]["secretKeyRef"]["name"])
    return None


def _task_environment(folder: Path) -> tuple[list[Object], list[Object]]:
    """What a task on the cluster gets from config maps and from secrets, as compiled."""

    @dsl.pipeline
    def one_task() -> None:
        on_cluster("registry/conlst-train@sha256:" + "0" * 64, Cluster()).serve(summarize(config="{}", job="1", decisions=[]))

    compiler.Compiler().compile(one_task, str(folder / "one.yaml"))
    _, platform = yaml.safe_load_all((folder / "one.yaml").read_text())
    (task,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert task["securityContext"]["runAsUser"] == str(USER)
    return task["configMapAsEnv"], task["secretAsEnv"]


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
        assert set().union(*map(_arguments, _stages())) == {"BASE", "VERSION", "COMMIT", "LOCK"}
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

    def test_the_image_of_tests_has_what_its_command_runs(self) -> None:
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        *_, command = (json.loads(argument) for instruction, argument in _stages()["test"] if instruction == "CMD")
        files = [ROOT / word for word in command if word.startswith("tests/")]
        assert len(files) > 20
        for file in files:
            packages = set(re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
            assert {package for package in packages if (ROOT / package).is_dir()} <= allowed, file

    @pytest.mark.parametrize("target", TARGETS)
    def test_packages_come_by_digest_and_leave_no_cache(self, target: str) -> None:
        installs = [argument for instruction, argument in _stages()[target] if instruction == "RUN" and "pip install" in argument]
        assert all("--mount=type=cache,target=/root/.cache/pip" in install for install in installs)
        # torch's file depends on the index, and the checkout is no package of an index
        commands = [command for install in installs for command in re.findall(r"pip install ([^&]+)", install)]
        others = [command.strip() for command in commands if "--no-deps --require-hashes" not in command]
        assert others in ([], ["-r torch.lock", "--no-deps --no-build-isolation --editable ."])

    @pytest.mark.parametrize("target", TARGETS)
    def test_labels_are_stamped_with_every_argument(self, target: str) -> None:
        instructions = _stages()[target]
        assert _arguments(target) == {"BASE", "VERSION", "COMMIT", "LOCK"}
        (stamp,) = (argument for instruction, argument in instructions if instruction == "RUN" and "stamp.py" in argument)
        copied_locks = {source for source in _copied(target) if source.endswith(".lock")}
        stamped = re.search(r"stamp\.py (\S+\.lock)", stamp)
        assert stamped is not None
        assert stamped[1] in copied_locks


_TRUE = {"BASE": "python:3.11-slim-bookworm@sha256:" + "0a" * 32, "VERSION": "1.2.3", "COMMIT": "0a" * 20}


class TestStamp:
    def _wrong(self, folder: Path, **changes: str) -> list[str]:
        (folder / "a.lock").write_text("numpy==1\n")
        (folder / "__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.3"\n')
        lock = hashlib.sha256(b"numpy==1\n").hexdigest()
        return wrong({**_TRUE, "LOCK": lock, **changes}, folder / "a.lock", folder / "__init__.py")

    def test_what_is_true_passes(self, tmp_path: Path) -> None:
        assert self._wrong(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *((name, "") for name in ("BASE", "VERSION", "COMMIT", "LOCK")),
            ("BASE", "python:3.11-slim-bookworm"),
            ("VERSION", "1.2.4"),
            ("COMMIT", "0a0a0a0"),
            ("COMMIT", "main"),
            ("LOCK", "0a" * 32),
        ],
    )
    def test_what_is_not_is_named_with_its_mend(self, tmp_path: Path, name: str, value: str) -> None:
        (found,) = self._wrong(tmp_path, **{name: value})
        assert found.startswith(f"{name} is {value!r}; give --build-arg {name}=")

    def test_finds_the_version_of_this_checkout(self) -> None:
        arguments = {**_TRUE, "VERSION": __version__, "LOCK": hashlib.sha256(LOCK.read_bytes()).hexdigest()}
        assert wrong(arguments, LOCK, ROOT / "conlst" / "__init__.py") == []


class TestServingLock:
    def test_every_pin_is_one_of_the_whole_lock_and_has_digests(self) -> None:
        whole = pins(LOCK)
        assert all(whole[name] == pin for name, pin in pins(SERVING_LOCK).items())
        assert all(digests for _, digests in whole.values())

    def test_leaves_out_what_only_training_and_pipelines_need(self) -> None:
        heavy = {"torch", "transformers", "datasets", "kfp", "mlflow", "onnx", "pandas", "matplotlib", "pytest"}
        assert heavy - {"torch"} <= pins(LOCK).keys()
        assert not heavy & pins(SERVING_LOCK).keys()

    def test_is_what_its_script_makes(self) -> None:
        assert serving_lock() == SERVING_LOCK.read_text()
        assert mlflow_lock() == MLFLOW_LOCK.read_text()

    def test_pins_what_is_installed(self) -> None:
        assert {name: pin for name, (pin, _) in pins(LOCK).items() if version(name) != pin.split("==")[1]} == {}

    def test_image_has_everything_that_its_code_imports(self) -> None:
        files = {file for source in _copied("serve") for file in _python_files(ROOT / source)}
        assert ROOT / "serving" / "service.py" in files
        locked, owners = pins(SERVING_LOCK).keys(), packages_distributions()
        missing = set()
        for module in {module for file in files for module in _imports(file)}:
            top = module.split(".")[0]
            if (ROOT / top).is_dir():
                missing |= {module} if not _is_copied(module, files) else set()
            elif top not in sys.stdlib_module_names and not locked & {canonicalize_name(name) for name in owners.get(top, ())}:
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
