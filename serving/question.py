"""From the bytes of a request to texts that are safe to compute, or the error that says what is wrong with them."""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from serving.errors import ApiError, Problems
from serving.schema import ManyPairs, ManyTexts, OnePair, OneText
from serving.settings import Settings
from serving.zero_shot import hypotheses

# more than any question has: each that is unknown becomes a problem, and a body has room for 100,000
_MOST_KEYS = 32

Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Question:
    """What was asked of POST /predict.

    Attributes:
        problems: of pairs that cannot be computed.
        cut: indices of the pairs that had more characters than are read.
        language: ``None`` if it is to be detected.
    """

    pairs: list[tuple[str, str]]
    problems: Problems
    cut: set[int]
    language: str | None
    truncate: bool
    logits: bool
    feedback: bool


@dataclass(frozen=True)
class ZeroShot:
    """What was asked of POST /zero-shot.

    Attributes:
        problems: of texts that cannot be computed.
        cut: indices of the texts that had more characters than are read.
        hypotheses: one for each label.
        language: ``None`` if it is to be detected.
    """

    texts: list[str]
    problems: Problems
    cut: set[int]
    labels: list[str]
    hypotheses: list[str]
    multi_label: bool
    language: str | None
    truncate: bool


def read_question(body: bytes, settings: Settings) -> Question:
    """Parse and check a request for predictions.

    Raises:
        ApiError: 400 if it is no JSON or of another shape, 413 for too many pairs, 422 for a text that cannot be answered, unless
            a partial answer will do.
    """
    raw = _json(body)
    _check_counts(raw, ("pairs",), settings.max_pairs)
    _check_keys(raw, "the body")
    for index, pair in enumerate(raw["pairs"] if isinstance(raw.get("pairs"), list) else []):
        _check_keys(pair, f"pair {index}", index)
    # one shape or the other, rather than their union: its errors would speak of both
    asked = _shaped(ManyPairs, raw) if "pairs" in raw else _shaped(OnePair, raw)
    given = asked.pairs if isinstance(asked, ManyPairs) else [asked]
    _check_some(len(given), "pairs")
    reader = _Reader(asked.truncate, settings.max_characters, Problems(asked.partial))
    pairs = [
        (
            reader.read(pair.premise, f"pair {index}: the premise", index),
            reader.read(pair.hypothesis, f"pair {index}: the hypothesis", index),
        )
        for index, pair in enumerate(given)
    ]
    return Question(pairs, reader.problems, reader.cut, asked.language, asked.truncate, asked.logits, asked.feedback)


def read_zero_shot(body: bytes, settings: Settings) -> ZeroShot:
    """Parse and check a request for candidate labels.

    Raises:
        ApiError: 400 if it is no JSON, of another shape, or has another template, 413 for too many texts times labels, 422 for a
            label that cannot be answered, or a text unless a partial answer will do.
    """
    raw = _json(body)
    _check_counts(raw, ("texts", "labels"), settings.max_pairs)
    _check_keys(raw, "the body")
    asked = _shaped(ManyTexts, raw) if "texts" in raw else _shaped(OneText, raw)
    texts = asked.texts if isinstance(asked, ManyTexts) else [asked.text]
    _check_some(len(texts), "texts")
    _check_some(len(asked.labels), "labels")
    longest = settings.max_characters
    named = {"the template": asked.template, **{f"label {index}": label for index, label in enumerate(asked.labels)}}
    for name, text in named.items():
        if problem := _problem(text, name, longest):
            raise problem
    for index, label in enumerate(asked.labels):
        if (first := asked.labels.index(label)) < index:
            raise ApiError(400, "invalid_request", f"labels {first} and {index} are the same; send each once")
    try:
        made = hypotheses(asked.template, asked.labels)
    except ValueError as error:
        raise ApiError(400, "invalid_request", str(error)) from None
    reader = _Reader(asked.truncate, longest, Problems(asked.partial))
    texts = [reader.read(text, f"text {index}: it", index) for index, text in enumerate(texts)]
    return ZeroShot(texts, reader.problems, reader.cut, asked.labels, made, asked.multi_label, asked.language, asked.truncate)


@dataclass
class _Reader:
    """Takes the texts of a request's items one by one.

    Attributes:
        longest: characters of a text that are read.
        problems: of items that cannot be computed.
        cut: indices of the items that had more characters than are read.
    """

    truncate: bool
    longest: int
    problems: Problems
    cut: set[int] = field(default_factory=set)

    def read(self, text: str, name: str, index: int) -> str:
        """A text of the item ``index`` as it is computed.

        Raises:
            ApiError: what is wrong with it, unless a partial answer will do.
        """
        if self.truncate and len(text) > self.longest:
            self.cut.add(index)
            text = text[: self.longest]
        if problem := _problem(text, name, self.longest, index):
            self.problems.add({index: problem})
        return text


def _json(body: bytes) -> dict[str, Any]:
    try:
        # not json.loads(bytes), which would guess UTF-16 and UTF-32
        raw = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # a decoding error's own message would quote the body
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8{where}") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "invalid_request", "the body must be a JSON object; /openapi.json has examples")
    return raw


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_counts(raw: Mapping[str, Any], names: Sequence[str], most: int) -> None:
    """Refuse what is too much before its shape is looked at: to tell what is wrong with each of thousands takes seconds."""
    counts = {name: len(raw[name]) for name in names if isinstance(raw.get(name), list)}
    # one that is empty, or no list, is told as that when the others are of a bearable length
    pairs = math.prod(max(1, count) for count in counts.values())
    if pairs > most:
        told = " with ".join(f"{count} {name}" for name, count in counts.items())
        are = f" are {pairs} pairs" if len(counts) > 1 else ""
        raise ApiError(413, "too_many_pairs", f"{told}{are}, at most {most} are answered in one request")


def _check_keys(place: object, name: str, index: int | None = None) -> None:
    """Likewise for what has too many keys."""
    if isinstance(place, dict) and len(place) > _MOST_KEYS:
        message = f"{name} has {len(place)} keys, more than there are; /openapi.json has examples"
        raise ApiError(400, "invalid_request", message, index=index)


def _shaped(shape: type[Shape], raw: dict[str, Any]) -> Shape:
    try:
        return shape.model_validate(raw)
    except ValidationError as error:
        raise _shape_error(error) from None


def _shape_error(error: ValidationError) -> ApiError:
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    told = "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in errors[:3])
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    match errors[0]["loc"]:
        case ("pairs" | "texts", int(index), *_):
            return ApiError(400, "invalid_request", told + more, index=index)
    return ApiError(400, "invalid_request", told + more)


def _place(path: tuple[int | str, ...]) -> str:
    # names that the client made up may be of any length
    return ".".join(str(part)[:40] for part in path) or "body"


def _check_some(count: int, name: str) -> None:
    if not count:
        raise ApiError(400, "invalid_request", f"{name} is empty; send at least one")


def _problem(text: str, name: str, longest: int, index: int | None = None) -> ApiError | None:
    """What keeps a text of the item ``index``, or one that belongs to all of them, from being answered."""
    if len(text) > longest:
        # what belongs to all is never cut: labels that differ could become the same
        way_out = "" if index is None else ', or send "truncate": true'
        message = f"{name} has {len(text)} characters, at most {longest} are read: shorten it{way_out}"
        return ApiError(422, "too_long", message, index=index)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return ApiError(422, "invalid_text", f"{name} holds half of a surrogate pair, which is no character", index=index)
    if not any(map(_is_visible, text)):
        return ApiError(422, "empty_text", f"{name} is empty", index=index)
    return None


def _is_visible(character: str) -> bool:
    """Neither space nor control nor format: not byte-order marks, zero-width spaces, directions of writing."""
    category = unicodedata.category(character)
    return category[0] != "Z" and category not in ("Cc", "Cf")
