"""The OpenAPI document, made from the schema classes."""

from typing import Any

from pydantic.json_schema import models_json_schema

from conlst import __version__
from serving.schema import Answer, Catalogue, Error, ManyPairs, OnePair

_ERRORS = {
    400: "Not JSON, or of another shape.",
    404: "A language that is not served.",
    413: "Too many bytes or pairs.",
    415: "Another content type than application/json.",
    422: "A text that is empty, too long, or not Unicode.",
    429: "Too many requests are waiting; come back after Retry-After seconds.",
    503: "The models are not ready.",
    504: "No answer within a minute.",
}
_REF = "#/components/schemas/{model}"


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, definitions = models_json_schema(
        [
            (OnePair, "validation"),
            (ManyPairs, "validation"),
            (Answer, "serialization"),
            (Catalogue, "serialization"),
            (Error, "serialization"),
        ],
        ref_template=_REF,
    )
    schemas = definitions["$defs"]
    examples = {
        "one": {"summary": "One pair", "value": schemas["OnePair"]["examples"][0]},
        "many": {"summary": "A list", "value": schemas["ManyPairs"]["examples"][0]},
    }
    question = {"anyOf": [_ref("OnePair"), _ref("ManyPairs")]}
    errors = {str(status): _response(text, "Error") for status, text in _ERRORS.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "conlst",
            "version": __version__,
            "description": "Does the hypothesis follow from the premise? Natural language inference in the languages of /models. "
            "Every answer carries X-Request-ID, the request's own if it sent one.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Label one pair or a list of pairs",
                    "operationId": "predict",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": question, "examples": examples}},
                    },
                    "responses": {"200": _response("Predictions in the order of the pairs.", "Answer"), **errors},
                }
            },
            "/models": _get("models", "Languages, versions, digests and limits", _response("What is served.", "Catalogue")),
            "/livez": _get("livez", "The process answers", {"description": "Alive."}),
            "/readyz": _get(
                "readyz",
                "Every model answered its golden pairs",
                {"description": "Ready."},
                {"503": {"description": "Not ready; the text says why.", "content": {"text/plain": {}}}},
            ),
            "/metrics": _get("metrics", "Prometheus metrics", {"description": "Metrics.", "content": {"text/plain": {}}}),
        },
        "components": {"schemas": schemas},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}


def _response(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _get(operation: str, summary: str, ok: dict[str, Any], others: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"get": {"summary": summary, "operationId": operation, "responses": {"200": ok, **(others or {})}}}
