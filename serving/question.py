"""From the bytes of a request to pairs that are safe to compute, or the error that says what is wrong with them."""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from serving.errors import ApiError
from serving.schema import ManyPairs, OnePair
from serving.settings import Settings


@dataclass(frozen=True)
class Question:
    pairs: list[tuple[str, str]]
    language: str
    truncate: bool


def read_question(body: bytes, settings: Settings) -> Question:
    """Parse and check a request for predictions.

    Raises:
        ApiError: 400 if it is no JSON or of another shape, 413 for too many pairs, 422 for a text that cannot be answered.
    """
    raw = _json(body)
    try:
        # one shape or the other, rather than their union: its errors would speak of both
        asked = ManyPairs.model_validate(raw) if "pairs" in raw else OnePair.model_validate(raw)
    except ValidationError as error:
        raise _shape_error(error) from None
    pairs = [(pair.premise, pair.hypothesis) for pair in (asked.pairs if isinstance(asked, ManyPairs) else [asked])]
    if not pairs:
        raise ApiError(400, "invalid_request", "pairs is empty; send at least one")
    if len(pairs) > settings.max_pairs:
        raise ApiError(413, "too_many_pairs", f"{len(pairs)} pairs, at most {settings.max_pairs} are answered in one request")
    for index, (premise, hypothesis) in enumerate(pairs):
        _check_text(premise, "premise", index, settings.max_characters)
        _check_text(hypothesis, "hypothesis", index, settings.max_characters)
    return Question(pairs, asked.language, asked.truncate)


def _json(body: bytes) -> dict[str, Any]:
    try:
        # not json.loads(bytes), which would guess UTF-16 and UTF-32
        raw = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # a decoding error's own message would quote the body
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8{where}") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "invalid_request", "the body must be a JSON object with premise and hypothesis, or with pairs")
    return raw


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shape_error(error: ValidationError) -> ApiError:
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    told = "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in errors[:3])
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    match errors[0]["loc"]:
        case ("pairs", int(index), *_):
            return ApiError(400, "invalid_request", told + more, index=index)
    return ApiError(400, "invalid_request", told + more)


def _place(path: tuple[int | str, ...]) -> str:
    # names that the client made up may be of any length
    return ".".join(str(part)[:40] for part in path) or "body"


def _check_text(text: str, role: str, index: int, longest: int) -> None:
    if not text.strip():
        raise ApiError(422, "empty_text", f"pair {index}: the {role} is empty", index=index)
    if len(text) > longest:
        message = f"pair {index}: the {role} has {len(text)} characters, at most {longest} are read"
        raise ApiError(422, "too_long", message, index=index)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = f"pair {index}: the {role} holds half of a surrogate pair, which is no character"
        raise ApiError(422, "invalid_text", message, index=index) from None
