"""The endpoint's routes. An ASGI application of its own, which the BentoML service mounts.

BentoML's own typed inputs are not used: they parse a body of any size, answer a wrong one with their own forms of error, and let
one bad item of a batch fail its neighbours.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conlst.contract.labels import NAMES
from serving.errors import ApiError
from serving.lane import Lane
from serving.metrics import CONTENT_TYPE, Metrics
from serving.models import Catalogue, Served
from serving.openapi import openapi_document
from serving.page import HEADERS, render_page
from serving.question import Question, read_question
from serving.schema import Answer, Limits, ModelName, Prediction, ServedModel
from serving.schema import Catalogue as CatalogueAnswer
from serving.settings import Settings

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KINDS = {404: "not_found", 405: "method_not_allowed"}


def create_app(settings: Settings, catalogue: Catalogue, lane: Lane) -> ASGIApp:
    """The whole application around a catalogue that may still be loading."""
    metrics = Metrics(lane)
    api = _Api(settings, catalogue, lane, metrics)
    routes = [
        Route("/predict", api.predict, methods=["POST"]),
        Route("/models", api.models),
        Route("/metrics", api.metrics),
        Route("/openapi.json", api.openapi),
        Route("/docs.json", api.openapi),
        Route("/", api.page),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_BodyLimit, limit=settings.max_body_bytes)],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _disconnect,
            Exception: _internal_error,
        },
    )
    return _Observed(app, metrics, {route.path for route in routes})


def answer(served: Served, question: Question) -> Answer:
    """Compute a question's predictions.

    Raises:
        ApiError: 422 naming the first pair that is too long for the model, unless truncation was asked for.
    """
    predictor = served.predictor
    encoded = predictor.encode(question.pairs)
    long = encoded.lengths > predictor.max_length
    if long.any() and not question.truncate:
        index = int(long.argmax())
        message = (
            f"pair {index} has {encoded.lengths[index]} tokens, the model reads {predictor.max_length}: shorten it, or send "
            '"truncate": true'
        )
        raise ApiError(422, "too_long", message, index=index)
    probabilities = predictor.probabilities(predictor.logits_of(encoded))
    predictions = [
        Prediction(label=NAMES[int(row.argmax())], probabilities=dict(zip(NAMES, row.tolist(), strict=True)), truncated=bool(cut))
        for row, cut in zip(probabilities, long, strict=True)
    ]
    return Answer(predictions=predictions, language=question.language, model=_name(served))


class _Api:
    def __init__(self, settings: Settings, catalogue: Catalogue, lane: Lane, metrics: Metrics) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._lane = lane
        self._metrics = metrics

    async def predict(self, request: Request) -> Response:
        _check_content_type(request.headers)
        question = read_question(await request.body(), self._settings)
        served = self._catalogue.model_for(question.language)
        result = await self._lane.run(partial(answer, served, question))
        for prediction in result.predictions:
            self._metrics.predictions.labels(result.language, prediction.label).inc()
        return _json(result.model_dump())

    async def models(self, _: Request) -> Response:
        return _json(self._describe().model_dump())

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        return _json(openapi_document())

    async def page(self, _: Request) -> Response:
        return HTMLResponse(render_page(self._describe()), headers=HEADERS)

    def _describe(self) -> CatalogueAnswer:
        models = [
            ServedModel(language=served.source.language, max_tokens=served.predictor.max_length, **_name(served).model_dump())
            for served in self._catalogue.all()
        ]
        limits = Limits(
            pairs=self._settings.max_pairs,
            characters=self._settings.max_characters,
            body_bytes=self._settings.max_body_bytes,
        )
        problem = self._catalogue.problem
        return CatalogueAnswer(ready=problem is None, reason=problem, models=models, limits=limits)


def _name(served: Served) -> ModelName:
    return ModelName(name=served.source.name, version=served.source.version, digest=served.predictor.digest)


def _check_content_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the question as content-type application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_media_type", "send the question without a content-encoding")


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # escaped to ASCII: an echoed name may hold what UTF-8 cannot encode
    return Response(json.dumps(content), status, headers, "application/json")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error.body(), error.status, error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _KINDS.get(error.status_code, "http_error")
    return _json(ApiError(error.status_code, kind, error.detail).body(), error.status_code, error.headers)


async def _disconnect(_: Request, error: Exception) -> Response:  # noqa: ARG001
    # nobody reads this; it keeps a client that left from being counted as our failure
    return _json(ApiError(400, "incomplete_body", "the body ended early").body(), 400)


async def _internal_error(_: Request, error: Exception) -> Response:  # noqa: ARG001
    return _json(ApiError(500, "internal", "the server failed; its log has the reason under this X-Request-ID").body(), 500)


class _BodyLimit:
    """Refuses a body that is too large while it arrives, so that it is never held in memory, with a length announced or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        too_large = announced.isdigit() and int(announced) > self._limit
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if too_large or seen > self._limit:
                # closing tells the client to stop sending what is left
                raise ApiError(
                    413, "too_large", f"the body is over {self._limit} bytes; send fewer pairs", headers={"Connection": "close"}
                )
            return message

        await self._app(scope, counted, send)


class _Observed:
    """Gives every request its id and counts, logs and times its answer. What was asked is never logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: set[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = Headers(scope=scope).get("x-request-id", "")
        request_id = own if _REQUEST_ID.fullmatch(own) else uuid.uuid4().hex
        route = scope["path"] if scope["path"] in self._routes else "other"
        begin = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            # Starlette has answered with 500 and raises once more for the server to log, which does not know the id
            log.exception("%s %s failed", request_id, route)
            status = status or 500
        seconds = time.perf_counter() - begin
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        log.info("%s %s %d %.1f ms", request_id, route, status, seconds * 1000)
