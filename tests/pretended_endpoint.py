"""An endpoint that answers by rule, as an httpx transport or on a port: what the client's tests ask instead of a model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from conlst.contract.labels import NAMES

MODEL: dict[str, Any] = {"name": "nli-sw", "version": 3, "digest": "ab" * 32, "precision": "int8"}
LIMITS = {"pairs": 4, "characters": 100, "body_bytes": 2000}
REFUSED = {"version": 4, "digest": "cd" * 32, "reason": "golden pair 0 differs", "since": "2026-11-22T11:00:00Z"}
CATALOGUE = {
    "ready": True,
    "reason": None,
    "fallback": "sw",
    "models": [
        {
            **MODEL,
            "language": "sw",
            "max_tokens": 128,
            "temperature": 1.25,
            "loaded_at": "2026-11-22T10:00:00+00:00",
            "gate": {"promote": True, "reasons": ["first of its language"], "decided_at": "2026-11-21T10:00:00Z"},
            "card": {"precision": {"served": "int8"}},
            "refused": REFUSED,
            "without_champion": True,
        }
    ],
    "refused": {"sw": REFUSED},
    "limits": LIMITS,
}

Rule = Callable[[httpx.Request], httpx.Response | Exception | None]


def probabilities_of(premise: str, hypothesis: str) -> dict[str, float]:
    """An answer by which a test knows the pair."""
    entailment = (len(premise) % 7 + 1) / 16
    neutral = (sum(map(ord, hypothesis)) % 7 + 1) / 16
    return dict(zip(NAMES, (entailment, neutral, 1 - entailment - neutral), strict=True))


def score_of(text: str, label: str) -> float:
    """A candidate label's score by which a test knows the text."""
    return sum(map(ord, text + label)) % 100 / 100


def error(status: int, kind: str, message: str = "because", index: int | None = None, **headers: str) -> httpx.Response:
    told: dict[str, Any] = {"type": kind, "message": message}
    if index is not None:
        told["index"] = index
    return httpx.Response(
        status, json={"error": told}, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


@dataclass
class Endpoint:
    """Answers like the server; ``rules`` are asked first, one request each, for POST only."""

    rules: list[Rule | httpx.Response | Exception | None] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    key: str = ""
    seen: list[httpx.Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.seen.append(request)
            rule = self.rules.pop(0) if self.rules and request.method == "POST" else None
        outcome = rule(request) if callable(rule) else rule
        if isinstance(outcome, Exception):
            raise outcome
        return _fresh(outcome) if outcome is not None else self._answer(request)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of what was posted."""
        return [json.loads(request.content) for request in self.seen if request.method == "POST"]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "unauthorized")
        if request.url.path == "/models":
            return httpx.Response(200, json={**CATALOGUE, "limits": self.limits})
        question = json.loads(request.content)
        assert len(request.content) <= self.limits["body_bytes"]
        if request.url.path == "/zero-shot":
            texts, labels = question["texts"], question["labels"]
            if (pairs := len(texts) * len(labels)) > self.limits["pairs"]:
                told = (
                    f"{len(texts)} texts with {len(labels)} labels are {pairs} pairs, at most {self.limits['pairs']} are answered"
                )
                return error(413, "too_many_pairs", f"{told} in one request")
            items = {"results": [_result(index, text, question) for index, text in enumerate(texts)]}
            refused = [index for index, item in enumerate(items["results"]) if "error" in item]
            if refused and not question.get("partial"):
                return error(422, "empty_text", f"text {refused[0]}: it is empty", refused[0])
        else:
            assert len(question["pairs"]) <= self.limits["pairs"]
            items = {"predictions": [_prediction(pair, question) for pair in question["pairs"]]}
        source = "given" if "language" in question else "detected"
        return httpx.Response(200, json={**items, "language_source": source, "models": {"sw": MODEL}})


def _fresh(response: httpx.Response) -> httpx.Response:
    """A response that may be given again: whoever reads one uses it up."""
    try:
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)
    except httpx.ResponseNotRead:
        return response


def _result(index: int, text: str, question: dict[str, Any]) -> dict[str, Any]:
    if not text.strip():
        return {"error": {"type": "empty_text", "message": f"text {index}: it is empty"}}
    scores = [score_of(text, label) for label in question["labels"]]
    return {"labels": question["labels"], "scores": scores, "language": "sw", "truncated": question["truncate"]}


def _prediction(pair: dict[str, str], question: dict[str, Any]) -> dict[str, Any]:
    if not pair["premise"].strip() and question.get("partial"):
        return {"error": {"type": "empty_text", "message": "the premise is empty"}}
    probabilities = probabilities_of(**pair)
    answer: dict[str, Any] = {"label": max(probabilities, key=probabilities.__getitem__), "probabilities": probabilities}
    answer |= {"language": "sw", "truncated": False}
    if question.get("logits"):
        answer["logits"] = dict.fromkeys(NAMES, 0.5)
    return answer


@contextmanager
def on_a_port(endpoint: Endpoint) -> Iterator[str]:
    """Address of the endpoint on a real socket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                answer = endpoint(
                    httpx.Request(self.command, f"http://test{self.path}", headers=dict(self.headers), content=body)
                )
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "content-length" not in answer.headers:
                    self.send_header("content-length", "0")
                self.end_headers()
                self.wfile.write(answer.content)
            except (BrokenPipeError, ConnectionResetError):
                # a test killed who asked
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
