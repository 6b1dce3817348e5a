"""The images, built and run as a cluster runs them: no capability, a root that cannot be written, a user that is not root."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conlst import __version__
from conlst.contract.artifacts import read_manifest
from conlst.contract.config import load_config
from conlst.contract.labels import NAMES
from images import COMMIT, LOCKED_DOWN, LOCKS, Podman, lock_digest, needs_podman
from infra.lock import pins
from pipelines.cluster import USER, compile_for_cluster
from served import expected
from tiny_onnx import PAIRS, tiny_onnx_folder

# a build of `train` alone takes minutes
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

_ASK = """
import json, urllib.request
def ask(path, question=None):
    body = None if question is None else json.dumps(question).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:3000" + path, body, headers), timeout=20) as answer:
        return [answer.status, answer.read().decode()]
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    made = Podman(tmp_path_factory.mktemp("podman"))
    made.make_base()
    return made


@pytest.fixture(scope="module")
def serve(podman: Podman) -> str:
    return podman.image("serve")


@pytest.fixture(scope="module")
def mlflow(podman: Podman) -> str:
    return podman.image("mlflow")


@pytest.fixture(scope="module")
def train(podman: Podman) -> str:
    return podman.image("train")


@contextmanager
def _endpoint(podman: Podman, image: str, model: Path) -> Iterator[str]:
    """A container that answers with one model, from a folder that it cannot write; no network but its own loopback."""
    settings = {"CONLST_MODELS": "sw=/models/sw", "CONLST_CACHE": "/tmp/cache", "CONLST_AUTH": "none", "CONLST_THREADS": "1"}
    environment = [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
    container = podman.run(
        "run", "--detach", *LOCKED_DOWN, *environment, "--volume", f"{model}:/models/sw:ro", image
    ).stdout.strip()
    try:
        podman.until_ready(container, _ASK + "ask('/readyz')")
        yield container
    finally:
        podman.run("rm", "--force", container)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx_folder(tmp_path_factory.mktemp("models") / "sw")


@pytest.fixture(scope="module")
def serving(podman: Podman, serve: str, model: Path) -> Iterator[str]:
    with _endpoint(podman, serve, model) as container:
        yield container


def _in(podman: Podman, image: str, script: str, *options: str) -> str:
    """What a shell script prints in a new container of an image."""
    return podman.run("run", "--rm", *LOCKED_DOWN, *options, "--entrypoint", "sh", image, "-c", script).stdout


@needs_podman
class TestServe:
    def test_answers_ready_and_predicts(self, podman: Podman, serving: str, model: Path) -> None:
        pairs = [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in PAIRS]
        question = {"pairs": pairs, "language": "sw"}
        script = _ASK + f"print(json.dumps([ask('/readyz'), ask('/predict', json.loads({json.dumps(question)!r}))]))"
        (ready, _), (status, body) = json.loads(podman.until_ready(serving, script))
        assert (ready, status) == (200, 200)
        answer = json.loads(body)
        probabilities = [[one["probabilities"][name] for name in NAMES] for one in answer["predictions"]]
        np.testing.assert_allclose(probabilities, expected(PAIRS), atol=1e-5)
        assert answer["model"]["digest"] == read_manifest(model).digest

    def test_its_process_is_nobody_special(self, podman: Podman, serving: str) -> None:
        status = podman.run("exec", serving, "cat", "/proc/1/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == fields["Gid"].split() == [str(USER)] * 4
        assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert fields["NoNewPrivs"] == "1"

    def test_nothing_outside_tmp_can_be_written(self, podman: Podman, serving: str) -> None:
        script = "for folder in / /app /home/conlst /opt/venv /var/tmp /models/sw /tmp; do touch $folder/x && echo $folder; done"
        assert podman.run("exec", serving, "sh", "-c", script, check=False).stdout.split() == ["/tmp"]

    def test_ends_when_it_is_told_to(self, podman: Podman, serve: str, model: Path) -> None:
        with _endpoint(podman, serve, model) as container:
            podman.run("stop", "--time", "40", container)
            state = json.loads(podman.run("inspect", "--format", "{{json .State}}", container).stdout)
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)

    def test_has_no_compiler_no_torch_and_no_cache(self, podman: Podman, serve: str) -> None:
        tools = "cc gcc g++ c++ clang tcc ld as make cargo rustc nvcc"
        assert _in(podman, serve, f"for tool in {tools}; do command -v $tool; done; true") == ""
        modules = "torch transformers datasets kfp onnx pytest cyclonedx"
        find = f"import importlib.util; print([name for name in '{modules}'.split() if importlib.util.find_spec(name)])"
        assert _in(podman, serve, f'python -c "{find}"').strip() == "[]"
        # as root and without a /tmp of its own, so that nothing is hidden
        left = "find /root /home /tmp /var/tmp /opt -type f -not -path '/opt/venv/*' -not -name '.bash*' -not -name .profile"
        assert podman.run("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", serve, "-c", left).stdout == ""


@needs_podman
class TestTrain:
    def test_runs_a_step_of_the_pipeline_as_compiled(self, podman: Podman, train: str, tmp_path: Path) -> None:
        config = load_config("demo")
        compile_for_cluster(config, tmp_path / "pipeline.yaml", train)
        pipeline, _ = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
        container = pipeline["deploymentSpec"]["executors"]["exec-ingest"]["container"]
        # what Kubeflow's launcher fills in, and where it mounts what s3:// artifacts are written through
        artifact = {"name": "pairs", "type": {"schemaTitle": "system.Dataset"}, "uri": "s3://bucket/run/pairs", "metadata": {}}
        given = {
            "inputs": {"parameterValues": {"config": config.to_json(), "job": "nightly", "role": "source", "language": "en"}},
            "outputs": {
                "artifacts": {"pairs": {"artifacts": [artifact]}},
                "outputFile": "/s3/outputs.json",
            },
        }
        arguments = [argument.replace("{{$}}", json.dumps(given)) for argument in container["args"]]
        out = tmp_path / "s3"
        (out / "bucket" / "run").mkdir(parents=True)
        for folder in (out, *out.rglob("*")):
            shutil.chown(folder, USER, USER)
        entrypoint, *command = container["command"]
        podman.run(
            *("run", "--rm", *LOCKED_DOWN, "--volume", f"{out}:/s3"),
            *(part for variable in container["env"] for part in ("--env", f"{variable['name']}={variable['value']}")),
            *("--entrypoint", entrypoint, container["image"], *command, *arguments),
        )
        (written,) = json.loads((out / "outputs.json").read_text())["artifacts"]["pairs"]["artifacts"]
        manifest = read_manifest(out / "bucket" / "run" / "pairs")
        assert written["metadata"]["pairs"] > 100
        assert manifest.kind == "pairs"

    def test_knows_the_commit_for_its_records(self, podman: Podman, train: str) -> None:
        assert _in(podman, train, "echo $CONLST_COMMIT").strip() == COMMIT

    def test_command_line_starts(self, podman: Podman, train: str) -> None:
        assert podman.run("run", "--rm", *LOCKED_DOWN, train).stdout.startswith("usage: conlst")


@needs_podman
def test_the_mlflow_image_has_what_its_manifest_starts(podman: Podman, mlflow: str) -> None:
    # the database that auth keeps beside the registry's, and the driver of the registry's own
    modules = "import psycopg2, boto3, mlflow.server.auth; print('there')"
    environment = ("--env", "MLFLOW_FLASK_SERVER_SECRET_KEY=x", "--env", "HOME=/tmp")
    assert _in(podman, mlflow, f'cd /tmp && python -c "{modules}"', *environment).strip().endswith("there")
    assert "--app-name" in _in(podman, mlflow, "cd /tmp && mlflow server --help", *environment)


@needs_podman
def test_unit_tests_pass_inside(podman: Podman, train: str) -> None:
    assert train
    ran = podman.run("run", "--rm", *LOCKED_DOWN, "--env", "OMP_NUM_THREADS=1", podman.image("test"), check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 500
    assert "skipped" not in ran.stdout


@needs_podman
@pytest.mark.parametrize("target", ["serve", "train", "mlflow"])
class TestWhatAnImageSaysOfItself:
    def test_labels(self, podman: Podman, target: str, request: pytest.FixtureRequest) -> None:
        config = podman.run("image", "inspect", "--format", "{{json .Config}}", request.getfixturevalue(target)).stdout
        labels = {name: value for name, value in json.loads(config)["Labels"].items() if not name.startswith("io.buildah")}
        assert labels == {
            "org.opencontainers.image.title": f"conlst {target}",
            "org.opencontainers.image.licenses": "MIT",
            "org.opencontainers.image.version": __version__,
            "org.opencontainers.image.revision": COMMIT,
            "org.opencontainers.image.base.name": podman.base,
            "conlst.lock.sha256": lock_digest(target),
        }

    def test_its_user_can_read_what_is_in_it(self, podman: Podman, target: str, request: pytest.FixtureRequest) -> None:
        assert _in(podman, request.getfixturevalue(target), "find /app /opt/venv ! -readable") == ""

    def test_sbom_lists_what_is_locked_and_installed(self, podman: Podman, target: str, request: pytest.FixtureRequest) -> None:
        image = request.getfixturevalue(target)
        bom: dict[str, Any] = json.loads(_in(podman, image, "cat /app/sbom.cdx.json"))
        assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
        listed = {_pin(component["name"], component["version"]) for component in bom["components"]}
        assert {component["purl"].partition("/")[0] for component in bom["components"]} == {"pkg:pypi"}
        locked = {_pin(*pin.split("==")) for pin, _ in pins(LOCKS[target]).values()}
        assert locked <= listed
        extra = {"pip", "setuptools"} | ({"torch"} if target == "train" else set())
        assert {pin.split("==")[0] for pin in listed - locked} <= extra
        inside = _in(podman, image, "pip list --format=freeze")
        installed = {_pin(*line.split("==")) for line in inside.split() if not line.startswith(("conlst==", "-e"))}
        assert installed == listed

    def test_an_untrue_label_is_refused(self, podman: Podman, target: str, request: pytest.FixtureRequest) -> None:
        assert request.getfixturevalue(target)
        for name in ("COMMIT", "LOCK"):
            refused = podman.build(target, **{name: ""})
            assert refused.returncode != 0
            assert f"{name} is ''; give --build-arg {name}=" in refused.stdout + refused.stderr


def _pin(name: str, version: str) -> str:
    """One spelling of a package and its version."""
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
