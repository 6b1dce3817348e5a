"""The OpenAPI document, made from the schema classes."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from conlst import __version__
from serving.schema import Answer, Catalogue, Drift, Error, ManyPairs, ManyTexts, OnePair, OneText, ZeroShotAnswer

_REF = "#/components/schemas/{model}"
_SECONDS = {"type": "integer", "minimum": 1}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before asking again.", "schema": _SECONDS}}
_REQUEST_ID = {"description": "The request's own, or one that was made for it.", "schema": {"type": "string"}}
_TIMING = {
    "Server-Timing": {
        "description": "Milliseconds in the queue, of tokenising and of inference, and of finding the language if it was not "
        "given: queue;dur=0.41, tokenize;dur=0.63, inference;dur=8.05",
        "schema": {"type": "string"},
    }
}
_HEADERS = [
    {
        "name": "X-Request-ID",
        "in": "header",
        # not as a pattern: what does not fit is no error
        "description": "The answer carries it back and the server's log has it. One that is not 1 to 128 letters, digits, dots, "
        "dashes, underscores and colons is replaced.",
        "schema": {"type": "string"},
    },
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "description": "Milliseconds after which the client will have no use for the answer, if that is sooner than the server's "
        "own deadline.",
        "schema": {"type": "integer", "minimum": 1},
    },
]

# by status: what it means, and by type an example of its message
_ERRORS: dict[int, tuple[str, dict[str, str]]] = {
    400: (
        "Not JSON, or of another shape.",
        {
            "invalid_json": "the body is not JSON in UTF-8 at line 1, column 2",
            "invalid_request": "hypothesis: Field required",
            "incomplete_body": "the body ended early",
        },
    ),
    401: (
        "No API key, or one that the server does not know, where it asks for keys.",
        {"unauthorized": "this needs an API key that the server knows: send it as Authorization: Bearer <key>"},
    ),
    404: (
        "A language that is not served or cannot be told, where there is no fallback.",
        {"unknown_language": "no model for 'qu'; served are fr, sw"},
    ),
    413: (
        "Too many bytes or pairs.",
        {
            "too_large": "the body is over 1000000 bytes; send fewer pairs",
            "too_many_pairs": "65 pairs, at most 64 are answered in one request",
        },
    ),
    415: (
        "Another content type than application/json, or compressed.",
        {"unsupported_media_type": "send the question as content-type application/json"},
    ),
    422: (
        "A text that is empty, too long, or not Unicode; index tells which.",
        {
            "empty_text": "pair 0: the premise is empty",
            "too_long": 'pair 0 has 145 tokens, the model reads 128: shorten it, or send "truncate": true',
            "invalid_text": "pair 0: the hypothesis holds half of a surrogate pair, which is no character",
        },
    ),
    429: (
        "Too many requests: of everyone, more than there is time for before the deadline, or with this key.",
        {
            "busy": "too many requests are waiting; try again in 1 s",
            "rate_limited": "this key may ask 600 times a minute; try again in 1 s",
        },
    ),
    500: (
        "A fault of the server.",
        {"internal": "the server failed; its log has the reason under this X-Request-ID"},
    ),
    503: ("The models are not ready, or the server is ending.", {"not_ready": "the models are being loaded"}),
    504: (
        "The deadline passed: the server's, or the client's own.",
        {"deadline": "no answer within 60 s; try again, or send fewer pairs"},
    ),
}
_WITH_RETRY = (429, 503)
_LOOKING = (401, 429)


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, definitions = models_json_schema(
        [
            *((question, "validation") for question in (OnePair, ManyPairs, OneText, ManyTexts)),
            *((answer, "serialization") for answer in (Answer, ZeroShotAnswer, Catalogue, Drift, Error)),
        ],
        ref_template=_REF,
    )
    schemas = definitions["$defs"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "conlst",
            "version": __version__,
            "description": "Does the hypothesis follow from the premise? Natural language inference in the languages of /models. "
            "Every answer carries X-Request-ID, but for those of the probes /livez and /readyz.",
        },
        # a server may be set up to ask for keys or not to
        "security": [{}, {"key": []}],
        "paths": {
            "/predict": _post(
                "predict",
                "Label one pair or a list of pairs",
                _question(schemas, OnePair="One pair", ManyPairs="A list, answered as far as it can be"),
                _response("Predictions in the order of the pairs.", "Answer", _TIMING),
            ),
            "/zero-shot": _post(
                "zeroShot",
                "Sort candidate labels of one text or a list of texts",
                _question(
                    schemas, OneText="One label of several", ManyTexts="Each label by itself, answered as far as it can be"
                ),
                _response("Labels by falling score, in the order of the texts.", "ZeroShotAnswer", _TIMING),
            ),
            "/models": _get(
                "models",
                "Languages, versions, digests, how each was gated, and limits",
                _response("What is served.", "Catalogue"),
                _errors(_LOOKING),
            ),
            "/drift": _get(
                "drift", "What is asked now beside the evaluation", _response("By language.", "Drift"), _errors(_LOOKING)
            ),
            "/livez": _get("livez", "The process answers", _text("Alive."), {}, open_to_all=True),
            "/readyz": _get(
                "readyz",
                "The models that are needed answered their golden pairs",
                _text("Ready."),
                {"503": _text("Not ready; /models says why.")},
                open_to_all=True,
            ),
            "/metrics": _get("metrics", "Prometheus metrics", _text("Metrics."), {}, open_to_all=True),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key of this server."}},
        },
    }


def _question(schemas: Mapping[str, Any], **shapes: str) -> dict[str, Any]:
    examples = {name: {"summary": summary, "value": schemas[name]["examples"][0]} for name, summary in shapes.items()}
    content = {"schema": {"anyOf": [_ref(name) for name in shapes]}, "examples": examples}
    return {"required": True, "content": {"application/json": content}}


def _post(operation: str, summary: str, body: dict[str, Any], ok: dict[str, Any]) -> dict[str, Any]:
    told = {"summary": summary, "operationId": operation, "parameters": _HEADERS, "requestBody": body}
    return {"post": told | {"responses": {"200": ok, **_errors(_ERRORS)}}}


def _get(
    operation: str, summary: str, ok: dict[str, Any], others: dict[str, Any], *, open_to_all: bool = False
) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": summary, "operationId": operation, "responses": {"200": ok, **others}}
    return {"get": told | ({"security": []} if open_to_all else {})}


def _errors(statuses: Mapping[int, Any] | tuple[int, ...]) -> dict[str, Any]:
    return {str(status): _error(status) for status in statuses}


def _error(status: int) -> dict[str, Any]:
    meaning, messages = _ERRORS[status]
    examples = {kind: {"value": {"error": {"type": kind, "message": message}}} for kind, message in messages.items()}
    told = _response(meaning, "Error", _RETRY_AFTER if status in _WITH_RETRY else {})
    told["content"]["application/json"]["examples"] = examples
    return told


def _response(description: str, schema: str, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref(schema)}}
    return {"description": description, "headers": {"X-Request-ID": _REQUEST_ID, **(headers or {})}, "content": content}


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}
