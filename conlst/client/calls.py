"""What is asked: one value that both clients can send, with the reader of its answer."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from conlst.client.answers import (
    Catalogue,
    Pair,
    Prediction,
    Refused,
    ZeroShotResult,
    read_catalogue,
    read_predictions,
    read_zero_shot,
)

T = TypeVar("T")

TEMPLATE = "This example is {}."
# between the items of a request's list
SEPARATOR = b", "
# bytes that a request holds beside its pairs or texts, each with a separator, and its options
OVERHEAD = len(b'{"pairs": []')


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how to read its answer.

    Attributes:
        read: takes status and JSON; a KeyError, TypeError, ValueError or AttributeError says that no conlst endpoint answered.
        answers: the statuses that are answers rather than errors.
        parse: whether the answer is JSON.
        repeat: whether to ask again after a failure that may pass.
        first: place of the request's first text among all that were given, if they need several requests.
    """

    method: str
    path: str
    read: Callable[[int, Any], T]
    body: bytes | None = None
    answers: tuple[int, ...] = (200,)
    parse: bool = True
    repeat: bool = True
    first: int = 0


MODELS: Call[Catalogue] = Call("GET", "/models", lambda _, answer: read_catalogue(answer))
# 503 is its word for no; whoever waits for the server asks again by himself
READY: Call[bool] = Call("GET", "/readyz", lambda status, _: status == 200, answers=(200, 503), parse=False, repeat=False)


def pair_json(pair: Pair) -> bytes:
    """A pair as it stands in a request.

    Raises:
        TypeError: if it is no pair of strings.
    """
    match pair:
        case (str(premise), str(hypothesis)):
            return _json({"premise": premise, "hypothesis": hypothesis})
    raise TypeError(f"expected a pair (premise, hypothesis) of strings, got {type(pair).__name__}")


def check_concurrency(requests: int) -> None:
    """Of a stream, which would otherwise send nothing or everything at once.

    Raises:
        ValueError: below 1.
    """
    if requests < 1:
        raise ValueError(f"concurrency is {requests}, the number of requests in flight: at least 1")


def texts_json(texts: Sequence[str]) -> list[bytes]:
    """Texts as they stand in a request.

    Raises:
        TypeError: if they are no strings.
    """
    _check_strings("texts", texts)
    return list(map(_json, texts))


def renumbered(message: str, index: int, first: int) -> str:
    """The endpoint's words about text ``index`` of a request, which follows ``first`` others, with its place among all texts."""
    return re.sub(rf"\btext {index}\b", f"text {first + index}", message)


def options_json(language: str | None, *, truncate: bool, logits: bool, partial: bool, feedback: bool) -> bytes:
    """The settings of a request for predictions; those that are off are left out."""
    switches = {"truncate": truncate, "logits": logits, "partial": partial, "feedback": feedback}
    given = {name: True for name, on in switches.items() if on}
    return _json({"language": language, **given} if language is not None else given)


def predict(pairs: Sequence[bytes], options: bytes, partial: bool) -> Call[Sequence[Prediction | Refused]]:
    """Ask for predictions of pairs in JSON; ``options`` says the same of ``partial``."""

    def read(_: int, answer: Any) -> list[Prediction | Refused]:
        predictions = read_predictions(answer)
        if not partial and any(isinstance(item, Refused) for item in predictions):
            raise ValueError("a pair is refused by itself though that was not asked for")
        return _complete(predictions, len(pairs))

    return Call("POST", "/predict", read, _body("pairs", pairs, options))


def candidates_json(
    labels: Sequence[str], template: str, *, multi_label: bool, language: str | None, truncate: bool, partial: bool
) -> bytes:
    """What is asked about each text, and the settings; ``partial`` is left out if it is off.

    Raises:
        TypeError: if labels are no strings.
    """
    _check_strings("labels", labels)
    question: dict[str, Any] = {"labels": list(labels), "template": template, "multi_label": multi_label, "truncate": truncate}
    if language is not None:
        question["language"] = language
    if partial:
        question["partial"] = True
    return _json(question)


def zero_shot(
    texts: Sequence[bytes], candidates: bytes, partial: bool, first: int = 0
) -> Call[Sequence[ZeroShotResult | Refused]]:
    """Ask for the labels of texts in JSON, which follow ``first`` others; ``candidates`` says the same of ``partial``."""

    def read(_: int, answer: Any) -> list[ZeroShotResult | Refused]:
        results = read_zero_shot(answer)
        if not partial and any(isinstance(item, Refused) for item in results):
            raise ValueError("a text is refused by itself though that was not asked for")
        return [
            Refused(item.kind, renumbered(item.message, index, first)) if isinstance(item, Refused) else item
            for index, item in enumerate(_complete(results, len(texts)))
        ]

    return Call("POST", "/zero-shot", read, _body("texts", texts, candidates), first=first)


def _body(name: str, items: Sequence[bytes], options: bytes) -> bytes:
    rest = b"}" if options == b"{}" else b", " + options[1:]
    return f'{{"{name}": ['.encode() + SEPARATOR.join(items) + b"]" + rest


def _check_strings(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        # a string is a sequence of strings too
        raise TypeError(f"{name} is one string; give a list of strings")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{index}] is of type {type(value).__name__}; give a list of strings")


def _complete(answers: list[T], count: int) -> list[T]:
    if len(answers) != count:
        raise ValueError(f"{len(answers)} answers to {count} questions")
    return answers


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # half a surrogate pair: the endpoint refuses that text by name rather than the whole body
        return json.dumps(value).encode()
