"""The endpoint under requests that schemathesis makes from its own OpenAPI document, those that break the schema included."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from served import serve
from serving.openapi import openapi_document
from tiny_onnx import tiny_onnx_folder


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> schemathesis.BaseSchema:
    places = tmp_path_factory.mktemp("fuzz")
    models = ",".join(f"{code}={tiny_onnx_folder(places / code, code, max_length=128)}" for code in ("fr", "sw"))
    loaded = schemathesis.openapi.from_asgi("/openapi.json", serve(models, fallback="sw").app)
    # a wrong question that is too large as well is told the size, which is looked at first
    rejection = loaded.config.checks.negative_data_rejection
    rejection.expected_statuses = [*rejection.expected_statuses, "413"]
    return loaded


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


# the probes are BentoML's own routes, which are not of this application
OPERATIONS = [
    (method, path, mode)
    for path, methods in openapi_document()["paths"].items()
    if path not in ("/livez", "/readyz")
    for method, operation in methods.items()
    for mode in GenerationMode
    # what takes nothing cannot be asked wrongly
    if mode is GenerationMode.POSITIVE or "requestBody" in operation
]


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_every_answer_is_one_that_the_document_promises(
    document: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = document[path][method]

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if (case.headers or {}).get("X-Deadline-Ms", "").isdecimal():
            # one of a millisecond is rightly answered with 504, on a slow machine
            case.headers["X-Deadline-Ms"] += "0000"
        case.call_and_validate(checks=CHECKS)

    ask()
