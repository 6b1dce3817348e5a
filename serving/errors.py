"""Errors that the client sees: ``{"error": {"type", "message"}}`` with the right status, never a user's text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.responses import Response
from starlette.types import Scope

Kind = Literal[
    "invalid_json",
    "invalid_request",
    "incomplete_body",
    "unauthorized",
    "not_found",
    "unknown_language",
    "method_not_allowed",
    "http_error",
    "too_large",
    "too_many_pairs",
    "unsupported_media_type",
    "empty_text",
    "invalid_text",
    "too_long",
    "busy",
    "rate_limited",
    "client_left",
    "internal",
    "not_ready",
    "deadline",
]
"""The stable names that programs compare."""


class ApiError(Exception):
    """A request that is answered with an error.

    400 is a request of the wrong shape, 413 and 422 one of the right shape that is too large or whose texts cannot be answered.

    Attributes:
        status: the HTTP status.
        kind: its stable name.
        index: which of the request's pairs is meant, if one is.
        headers: to send along, for example ``Retry-After``.
    """

    def __init__(
        self, status: int, kind: Kind, message: str, *, index: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.index = index
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"type": self.kind, "message": self.message}
        if self.index is not None:
            error["index"] = self.index
        return {"error": error}


def closing() -> ApiError:
    """What is answered to a request that a server which is ending cannot wait for."""
    return ApiError(503, "not_ready", "the server is ending; send it again to another", headers={"Retry-After": "5"})


@dataclass
class Problems:
    """What is wrong with single pairs or texts of a request, by index: collected if a partial answer will do, else raised."""

    partial: bool = False
    found: dict[int, ApiError] = field(default_factory=dict)

    def add(self, problems: Mapping[int, ApiError]) -> None:
        """Note problems; the first one of an index stays.

        Raises:
            ApiError: the problem of the lowest index, unless a partial answer will do.
        """
        if problems and not self.partial:
            raise problems[min(problems)]
        self.found = {**problems, **self.found}


def error_response(scope: Scope, error: ApiError) -> Response:
    """The answer to a request that fails, whose state then tells the type of the error."""
    scope["state"]["error"] = error.kind
    # escaped to ASCII: an echoed name may hold what UTF-8 cannot encode
    return Response(json.dumps(error.body()), error.status, error.headers, "application/json")
