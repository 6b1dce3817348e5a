"""The endpoint's routes. An ASGI application of its own, which the BentoML service mounts.

BentoML's own typed inputs are not used: they parse a body of any size, answer a wrong one with their own forms of error, and let
one bad item of a batch fail its neighbours.
"""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serving.answers import Answers, name_of
from serving.choice import Chooser
from serving.detection import Detector
from serving.drift import Drift
from serving.errors import ApiError, Kind, closing, error_response
from serving.feedback import Feedback
from serving.keys import open_keys
from serving.metrics import CONTENT_TYPE, Metrics
from serving.middleware import Admission, BodyLimit, Observed
from serving.models import Catalogue, Refusal, Served
from serving.openapi import openapi_document
from serving.page import ui_routes
from serving.scheduler import Scheduler
from serving.schema import Catalogue as CatalogueAnswer
from serving.schema import Gate, Limits, RefusedModel, ServedModel
from serving.settings import Settings
from serving.watch import Watcher

# bodies of the largest size; more of smaller ones
_BODIES_ARRIVING = 32
_KINDS: dict[int, Kind] = {404: "not_found", 405: "method_not_allowed"}


@dataclass(frozen=True)
class Parts:
    """What the application is made of."""

    settings: Settings
    catalogue: Catalogue
    scheduler: Scheduler
    detector: Detector
    feedback: Feedback
    drift: Drift
    watcher: Watcher


def create_app(parts: Parts) -> ASGIApp:
    """The whole application around a catalogue that may still be loading.

    Raises:
        ConfigError: if it was not chosen who may ask, or the keys cannot be read.
    """
    keys = open_keys(parts.settings)
    metrics = Metrics(parts.scheduler, parts.catalogue, parts.feedback, parts.drift, parts.watcher, keys)
    api = _Api(parts, metrics)
    computing = [Route("/predict", api.predict, methods=["POST"]), Route("/zero-shot", api.zero_shot, methods=["POST"])]
    guarded = [*computing, Route("/models", api.models), Route("/drift", api.drift)]
    public = [
        Route("/metrics", api.metrics),
        Route("/openapi.json", api.openapi),
        Route("/docs.json", api.openapi),
        *ui_routes(),
    ]
    app = Starlette(
        routes=[*guarded, *public],
        middleware=[
            Middleware(
                Admission,
                keys=keys,
                scheduler=parts.scheduler,
                public=[route.path for route in public],
                computing=[route.path for route in computing],
            ),
            Middleware(
                BodyLimit, limit=parts.settings.max_body_bytes, unfinished=_BODIES_ARRIVING * parts.settings.max_body_bytes
            ),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _disconnect,
            Exception: _internal_error,
        },
    )
    return Observed(app, metrics, [route.path for route in (*guarded, *public)])


class _Api:
    def __init__(self, parts: Parts, metrics: Metrics) -> None:
        self._settings = parts.settings
        self._catalogue = parts.catalogue
        self._scheduler = parts.scheduler
        self._drift = parts.drift
        self._watcher = parts.watcher
        self._metrics = metrics
        chooser = Chooser(parts.settings, parts.catalogue, parts.detector)
        self._answers = Answers(parts.settings, parts.scheduler, chooser, parts.feedback, parts.drift, metrics)
        self._openapi = json.dumps(openapi_document())

    async def predict(self, request: Request) -> Response:
        return await self._run(request, self._answers.predict)

    async def zero_shot(self, request: Request) -> Response:
        return await self._run(request, self._answers.zero_shot)

    async def models(self, _: Request) -> Response:
        refused = {language: _refused_model(refusal) for language, refusal in self._catalogue.refusals.items()}
        problem = self._catalogue.problem
        limits = Limits(
            pairs=self._settings.max_pairs,
            characters=self._settings.max_characters,
            body_bytes=self._settings.max_body_bytes,
        )
        return _json_response(
            CatalogueAnswer(
                ready=problem is None,
                reason=problem,
                fallback=self._settings.fallback or None,
                models=[_described(served, refused, self._watcher.without_champion) for served in self._catalogue.all()],
                refused=refused,
                limits=limits,
            )
        )

    async def drift(self, _: Request) -> Response:
        return Response(json.dumps(self._drift.report()), media_type="application/json")

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def _run(self, request: Request, answer: Callable[[bytes, float], Coroutine[Any, Any, Response]]) -> Response:
        _check_content_type(request.headers)
        patience = _patience(request.headers, self._settings.deadline_seconds)
        deadline = time.monotonic() + patience
        try:
            # around the body too, which a client may send as slowly as it likes
            async with asyncio.timeout(patience):
                body = await request.body()
                # others may have taken the room meanwhile, and to parse it only to refuse it would cost those
                self._scheduler.check_room()
                return await _unless_left(request, answer(body, deadline))
        except TimeoutError:
            message = f"no answer within {patience:g} s; try again, or send fewer pairs"
            # what is left of a body is not waited for
            raise ApiError(504, "deadline", message, headers={"Connection": "close"}) from None
        except asyncio.CancelledError:
            # not by a client that left, which is an ApiError by now, but by a server that ends: it would answer a plain 500
            raise closing() from None


def _patience(headers: Headers, most: float) -> float:
    """Seconds that an answer may take: the server's, or less if the client says so."""
    own = headers.get("x-deadline-ms")
    if own is None:
        return most
    if not (own.isascii() and own.isdigit() and int(own[:20]) > 0):
        raise ApiError(400, "invalid_request", "X-Deadline-Ms is not a whole number of milliseconds from 1")
    return min(most, int(own[:20]) / 1000)


async def _unless_left(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Gives an answer up when its client has gone: under load, it would only keep others waiting."""
    answering = asyncio.current_task()
    assert answering is not None
    watching = asyncio.create_task(_cancel_when_left(request, answering))
    try:
        return await answer
    except asyncio.CancelledError:
        if not watching.done():
            raise
        answering.uncancel()
        # nobody reads this; the number is what other servers log then
        raise ApiError(499, "client_left", "the client left before the answer") from None
    finally:
        watching.cancel()


async def _cancel_when_left(request: Request, answering: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answering.cancel()


def _described(served: Served, refused: Mapping[str, RefusedModel], without_champion: Collection[str]) -> ServedModel:
    predictor, gate, language = served.predictor, served.source.gate, served.source.language
    return ServedModel(
        **name_of(served).model_dump(),
        language=language,
        max_tokens=predictor.max_length,
        temperature=predictor.temperature,
        loaded_at=served.loaded_at,
        gate=None if gate is None else Gate(**gate),
        card=predictor.card,
        refused=refused.get(language),
        without_champion=language in without_champion,
    )


def _refused_model(refusal: Refusal) -> RefusedModel:
    return RefusedModel(version=refusal.version, digest=refusal.digest, reason=refusal.reason, since=refusal.since)


def _check_content_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the question as content-type application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_media_type", "send the question without a content-encoding")


def _json_response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.scope, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _KINDS.get(error.status_code, "http_error")
    return error_response(request.scope, ApiError(error.status_code, kind, error.detail, headers=error.headers))


async def _disconnect(request: Request, _: Exception) -> Response:
    # nobody reads this; it keeps a client that left from being counted as our failure
    return error_response(request.scope, ApiError(400, "incomplete_body", "the body ended early"))


async def _internal_error(request: Request, _: Exception) -> Response:
    message = "the server failed; its log has the reason under this X-Request-ID"
    return error_response(request.scope, ApiError(500, "internal", message))
