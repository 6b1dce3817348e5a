"""What is asked: one value that both clients can send, with the reader of its answer."""

import json
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
# bytes that a request for predictions holds beside its pairs, each with a separator of two bytes, and its options
OVERHEAD = len(b'{"pairs": []')


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how to read its answer.

    Attributes:
        read: takes status and JSON; a KeyError, TypeError, ValueError or AttributeError says that no conlst endpoint answered.
        answers: the statuses that are answers rather than errors.
        parse: whether the answer is JSON.
        repeat: whether to ask again after a failure that may pass.
    """

    method: str
    path: str
    read: Callable[[int, Any], T]
    body: bytes | None = None
    answers: tuple[int, ...] = (200,)
    parse: bool = True
    repeat: bool = True


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

    return Call("POST", "/predict", read, _body(pairs, options))


def _body(pairs: Sequence[bytes], options: bytes) -> bytes:
    rest = b"}" if options == b"{}" else b", " + options[1:]
    return b'{"pairs": [' + b", ".join(pairs) + b"]" + rest


def zero_shot(
    texts: Sequence[str], labels: Sequence[str], template: str, multi_label: bool, language: str | None, truncate: bool
) -> Call[list[ZeroShotResult]]:
    for name, value in (("texts", texts), ("labels", labels)):
        if isinstance(value, str):
            # a string is a sequence of strings too
            raise TypeError(f"{name} is one string; give a list of strings")
    question: dict[str, Any] = {"texts": list(texts), "labels": list(labels), "template": template}
    question |= {"multi_label": multi_label, "truncate": truncate}
    if language is not None:
        question["language"] = language
    return Call("POST", "/zero-shot", lambda _, answer: _complete(read_zero_shot(answer), len(texts)), _json(question))


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
