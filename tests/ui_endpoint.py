"""An endpoint with the real one's shapes whose answers and moods a test sets: what the page's tests look at.

Every answer passes through :mod:`serving.schema`, so that one that the real endpoint could not give is an error here.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serving.errors import ApiError
from serving.page import ui_routes
from serving.schema import Answer, Catalogue, Drift, Error, ZeroShotAnswer

DIGEST = "9f2c41d07be35a68" * 4


def model(language: str, version: int | None, **changes: Any) -> dict[str, Any]:
    """A model as GET /models tells of it."""
    return {
        "language": language,
        "name": f"nli-{language}",
        "version": version,
        "digest": DIGEST,
        "precision": "int8",
        "max_tokens": 128,
        "temperature": 1.37,
        "loaded_at": "2026-11-22T09:15:00+00:00",
        "gate": {
            "promote": True,
            "reasons": ["accuracy 0.652 against the champion's 0.631", "no label loses more than 2 points"],
            "decided_at": "2026-11-21T17:40:00+00:00",
        },
        "card": {
            "temperature": {"value": 1.37, "fitted_on": "English development pairs", "ece": {"before": 0.121, "after": 0.043}},
            "precision": {
                "served": "int8",
                "reason": "int8 loses 0.2 points, 0.5 are allowed",
                "pairs": 1500,
                "accuracy": {"fp32": 0.654, "int8": 0.652},
                "agreement": 0.962,
                "allowed_drop": 0.005,
            },
            "reference": {"pairs": 5010, "confidence": [0] * 3 + [90, 520, 800, 900, 1000, 900, 800], "labels": {}},
            "evaluation": {
                "n": 5010,
                "accuracy": 0.652,
                "ece": 0.043,
                "protocol": "XNLI test, read once",
                "bands": [
                    {"band": "high", "lower": 0.9, "upper": 1.0, "count": 812, "share": 0.162, "accuracy": 0.903},
                    {"band": "middle", "lower": 0.5, "upper": 0.9, "count": 3588, "share": 0.716, "accuracy": 0.641},
                    {"band": "low", "lower": 1 / 3, "upper": 0.5, "count": 610, "share": 0.122, "accuracy": None},
                ],
            },
        },
        "refused": None,
        "without_champion": False,
        **changes,
    }


def plain_model() -> dict[str, Any]:
    """A model of a folder: no registry, no gate, an empty card."""
    return model("ur", None, gate=None, card={}, precision="fp32", temperature=1.0)


REFUSED = {
    "version": 5,
    "digest": "00aa" * 16,
    "reason": "golden pair 3 differs by 0.4 from the recorded logits",
    "since": "2026-11-23T08:00:00+00:00",
}
DRIFT = {
    "sw": {
        "pairs": 1204,
        "since": "2026-11-22T09:15:00+00:00",
        "reference": {
            "confidence": [0.0, 0.0, 0.0, 0.04, 0.1, 0.16, 0.18, 0.2, 0.18, 0.14],
            "labels": {"entailment": 0.34, "neutral": 0.33, "contradiction": 0.33},
        },
        "served": {
            "confidence": [0.0, 0.0, 0.0, 0.09, 0.2, 0.22, 0.19, 0.14, 0.1, 0.06],
            "labels": {"entailment": 0.29, "neutral": 0.46, "contradiction": 0.25},
        },
        "psi": {"confidence": 0.271, "labels": 0.074},
    },
    "fr": {
        "pairs": 310,
        "since": "2026-11-22T09:15:00+00:00",
        "reference": {
            "confidence": [0.0, 0.0, 0.0, 0.03, 0.09, 0.14, 0.17, 0.2, 0.2, 0.17],
            "labels": {"entailment": 0.34, "neutral": 0.33, "contradiction": 0.33},
        },
        "served": {
            "confidence": [0.0, 0.0, 0.0, 0.0, 0.13, 0.1, 0.26, 0.13, 0.25, 0.13],
            "labels": {"entailment": 0.42, "neutral": 0.29, "contradiction": 0.29},
        },
        "psi": {"confidence": 0.124, "labels": 0.028},
    },
    "de": {
        "pairs": 12,
        "since": "2026-11-22T09:15:00+00:00",
        "reference": {
            "confidence": [0.0, 0.0, 0.0, 0.03, 0.09, 0.14, 0.17, 0.2, 0.2, 0.17],
            "labels": {"entailment": 0.34, "neutral": 0.33, "contradiction": 0.33},
        },
        "served": {
            "confidence": [0.0, 0.0, 0.0, 0.0, 0.25, 0.0, 0.25, 0.0, 0.25, 0.25],
            "labels": {"entailment": 0.5, "neutral": 0.25, "contradiction": 0.25},
        },
        "psi": None,
    },
    "ur": {"pairs": 0, "since": "2026-11-22T09:15:00+00:00", "reference": None, "served": None, "psi": None},
}


class Endpoint:
    """A stand-in with the endpoint's shapes, whose answers and moods a test sets."""

    def __init__(self) -> None:
        self.models = [model("sw", 4, refused=REFUSED), model("fr", 2, without_champion=True), plain_model()]
        self.unserved: dict[str, dict[str, Any]] = {}
        self.ready = True
        self.fallback = "fr"
        self.most_pairs = 64
        self.key = ""
        self.broken: ApiError | None = None
        self.drift = DRIFT
        self.asked: list[dict[str, Any]] = []

    def routes(self) -> list[Route]:
        return [
            Route("/predict", self._guarded(self._predict), methods=["POST"]),
            Route("/zero-shot", self._guarded(self._zero_shot), methods=["POST"]),
            Route("/models", self._guarded(self._models)),
            Route("/drift", self._guarded(self._drift)),
            *ui_routes(),
        ]

    def _guarded(self, answer: Callable[[dict[str, Any]], Response]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                message = "send a key as Authorization: Bearer"
                return _refusal(ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"}))
            if self.broken:
                return _refusal(self.broken)
            question = await request.json() if request.method == "POST" else {}
            self.asked.append(question)
            return answer(question)

        return guarded

    def _named(self, language: str) -> dict[str, Any]:
        (found,) = [model for model in self.models if model["language"] == language]
        return {name: found[name] for name in ("name", "version", "digest", "precision")}

    def _found(self, question: dict[str, Any], text: str) -> tuple[str, str]:
        if "language" in question:
            return question["language"], "given"
        return ("sw", "detected") if "wa" in text else (self.fallback, "fallback")

    def _predict(self, question: dict[str, Any]) -> Response:
        predictions: list[dict[str, Any]] = []
        answered: dict[str, str] = {}
        for index, pair in enumerate(question["pairs"]):
            language, source = self._found(question, pair["premise"])
            if len(pair["hypothesis"]) > 400 and not question["truncate"]:
                message = f'pair {index} has 431 tokens, the model reads 128: shorten it, or send "truncate": true'
                predictions.append({"error": {"type": "too_long", "message": message}})
                continue
            long = len(pair["hypothesis"]) > 400
            shares = {"entailment": 0.7031, "neutral": 0.2129, "contradiction": 0.084}
            answered[language] = source
            predictions.append({"label": "entailment", "probabilities": shares, "language": language, "truncated": long})
        answer = {
            "predictions": predictions,
            "language": next(iter(answered)) if len(answered) == 1 else None,
            "language_source": "fallback" if "fallback" in answered.values() else source,
            "model": self._named(next(iter(answered))) if len(answered) == 1 else None,
            "models": {language: self._named(language) for language in answered},
        }
        return _answer(Answer, answer, timing="detect;dur=0.33, queue;dur=0.21, tokenize;dur=0.64, inference;dur=8.05")

    def _zero_shot(self, question: dict[str, Any]) -> Response:
        language, source = self._found(question, question["text"])
        shares = [0.61 / 2**place for place in range(len(question["labels"]))]
        # the last label is the best one, so that the page is seen to follow the answer's order
        result = {"labels": question["labels"][::-1], "scores": shares, "language": language, "truncated": question["truncate"]}
        answer = {
            "results": [result],
            "language": language,
            "language_source": source,
            "model": self._named(language),
            "models": {language: self._named(language)},
        }
        return _answer(ZeroShotAnswer, answer, timing="queue;dur=0.1, tokenize;dur=0.2, inference;dur=3")

    def _models(self, _: dict[str, Any]) -> Response:
        answer = {
            "ready": self.ready,
            "reason": None if self.ready else "loading nli-sw",
            "fallback": self.fallback,
            "models": self.models if self.ready else [],
            "refused": {model["language"]: model["refused"] for model in self.models if model["refused"]} | self.unserved,
            "limits": {"pairs": self.most_pairs, "characters": 4000, "body_bytes": 1_000_000},
        }
        return _answer(Catalogue, answer)

    def _drift(self, _: dict[str, Any]) -> Response:
        return _answer(Drift, {"languages": self.drift})


def _answer(schema: type[BaseModel], answer: dict[str, Any], timing: str = "") -> Response:
    headers = {"Server-Timing": timing} if timing else {}
    content = schema.model_validate(answer).model_dump_json(exclude_unset=True)
    return Response(content, headers=headers, media_type="application/json")


def _refusal(error: ApiError) -> Response:
    content = Error.model_validate(error.body()).model_dump_json(exclude_unset=True)
    return Response(content, error.status, error.headers, "application/json")


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
