"""The client: what it sends, how it reads answers, when it asks again, and streams of any length."""

import asyncio
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from conlst import __version__
from conlst.client import (
    ApiError,
    AsyncClient,
    Backoff,
    BadAnswer,
    Busy,
    Client,
    ClientError,
    Deadline,
    Gate,
    Limits,
    ModelName,
    NotReady,
    Prediction,
    RateLimited,
    Refused,
    Rejected,
    Unauthorized,
    UnknownLanguage,
    Unreachable,
    ZeroShotResult,
)
from conlst.contract.errors import ConfigError
from pretended_endpoint import LIMITS, MODEL, Endpoint, error, probabilities_of, score_of

ROOT = Path(__file__).parents[1]
PAIRS = [("watu wawili", "watu"), ("mvua leo", "hakuna mvua"), ("mtu", "mpira")]
URL = "http://nli.test"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONLST_API_KEY", raising=False)


@dataclass
class Asker:
    """Asks through one of the two clients, on a clock that only pauses move."""

    kind: str
    endpoint: Endpoint
    seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)
    oversleeps: float = 0.0

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds + self.oversleeps

    async def _sleep_async(self, seconds: float) -> None:
        self._sleep(seconds)

    def __call__(self, method: str, *args: Any, url: str = URL, key: str | None = None, timeout: float = 60, **more: Any) -> Any:
        backoff = Backoff(first=1, longest=10, random=lambda: 0.5, now=lambda: self.seconds)
        shared: dict[str, Any] = {"timeout": timeout, "backoff": backoff, "transport": httpx.MockTransport(self.endpoint)}

        async def ask() -> Any:
            async with AsyncClient(url, key, sleep=self._sleep_async, **shared) as client:
                return await getattr(client, method)(*args, **more)

        if self.kind == "async":
            return asyncio.run(ask())
        with Client(url, key, sleep=self._sleep, **shared) as client:
            return getattr(client, method)(*args, **more)


@pytest.fixture(params=["blocking", "async"])
def ask(request: pytest.FixtureRequest) -> Asker:
    return Asker(request.param, Endpoint())


def posts(ask: Asker) -> list[httpx.Request]:
    return [request for request in ask.endpoint.seen if request.method == "POST"]


def test_predictions_are_typed_and_in_order(ask: Asker) -> None:
    answers = ask("predict", PAIRS, language="sw", logits=True)
    assert [answer.probabilities for answer in answers] == [probabilities_of(*pair) for pair in PAIRS]
    assert answers[0] == Prediction(
        label=max(answers[0].probabilities, key=answers[0].probabilities.__getitem__),
        probabilities=probabilities_of(*PAIRS[0]),
        language="sw",
        language_source="given",
        model=ModelName(**MODEL),
        truncated=False,
        logits={"entailment": 0.5, "neutral": 0.5, "contradiction": 0.5},
    )
    assert ask("predict", PAIRS)[0].language_source == "detected"
    assert ask("predict", PAIRS)[0].logits is None


def test_only_what_is_asked_for_is_sent(ask: Asker) -> None:
    pairs = [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in PAIRS]
    ask("predict", PAIRS)
    ask("predict", PAIRS, language="sw", truncate=True, logits=True, partial=True, feedback=True)
    switches = {"truncate": True, "logits": True, "partial": True, "feedback": True}
    assert ask.endpoint.asked == [{"pairs": pairs}, {"pairs": pairs, "language": "sw", **switches}]
    request = posts(ask)[0]
    assert request.url == f"{URL}/predict"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"conlst/{__version__}"
    # the server's log tells two questions apart
    assert len({request.headers["x-request-id"] for request in posts(ask)}) == 2


def test_a_bad_pair_is_refused_alone_if_asked_for(ask: Asker) -> None:
    answers = ask("predict", [PAIRS[0], (" ", "watu"), PAIRS[1]], partial=True)
    assert answers[1] == Refused("empty_text", "the premise is empty")
    assert [type(answer) for answer in answers] == [Prediction, Refused, Prediction]


def test_half_a_surrogate_pair_does_not_spoil_the_body(ask: Asker) -> None:
    ask("predict", [("watu \ud83d", "mvua"), ("é☃", "ü")])
    assert ask.endpoint.asked[0]["pairs"] == [
        {"premise": "watu \ud83d", "hypothesis": "mvua"},
        {"premise": "é☃", "hypothesis": "ü"},
    ]
    # as few bytes as possible where they are text
    assert "é☃".encode() in posts(ask)[0].content


def test_zero_shot(ask: Asker) -> None:
    results = ask("zero_shot", ["mvua leo", "mpira"], ["hewa", "michezo"], "Hii ni {}.", multi_label=True, language="sw")
    assert ask.endpoint.asked == [
        {
            "texts": ["mvua leo", "mpira"],
            "labels": ["hewa", "michezo"],
            "template": "Hii ni {}.",
            "multi_label": True,
            "truncate": False,
            "language": "sw",
        }
    ]
    assert [result.labels for result in results] == [("hewa", "michezo")] * 2
    assert results[1].scores == (score_of("mpira", "hewa"), score_of("mpira", "michezo"))
    assert (results[0].language, results[0].language_source, results[0].model) == ("sw", "given", ModelName(**MODEL))
    assert not results[0].truncated
    assert ask("zero_shot", ["mpira"], ["michezo"], truncate=True)[0].truncated
    assert ask.endpoint.asked[1]["template"] == "This example is {}."
    assert "language" not in ask.endpoint.asked[1]


TEXTS = [f"mvua {index * index}" for index in range(11)]


def scores(results: list[ZeroShotResult]) -> list[tuple[float, ...]]:
    return [result.scores for result in results]


@pytest.mark.parametrize(("labels", "texts_at_once"), [(1, 4), (2, 2), (3, 1), (4, 1)])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 11])
def test_texts_for_zero_shot_are_divided_by_the_endpoint_s_own_limit(
    ask: Asker, labels: int, texts_at_once: int, count: int
) -> None:
    texts, candidates = TEXTS[:count], ["hewa", "michezo", "siasa", "chakula"][:labels]
    results = ask("zero_shot", texts, candidates, "Hii ni {}.", language="sw")
    assert scores(results) == [tuple(score_of(text, label) for label in candidates) for text in texts]
    asked = [question["texts"] for question in ask.endpoint.asked]
    assert asked == [texts[first : first + texts_at_once] for first in range(0, count, texts_at_once)]
    assert {(tuple(question["labels"]), question["template"]) for question in ask.endpoint.asked} == {
        (tuple(candidates), "Hii ni {}.")
    }


def test_a_single_text_needs_no_question_about_limits(ask: Asker) -> None:
    ask("zero_shot", ["mvua"], ["hewa"])
    assert [request.url.path for request in ask.endpoint.seen] == ["/zero-shot"]


def test_requests_for_zero_shot_are_within_the_bytes(ask: Asker) -> None:
    # the endpoint asserts it; two hundred texts would be allowed
    ask.endpoint.limits = {"pairs": 200, "characters": 1000, "body_bytes": 700}
    texts = ["ñ" * (index * 7 % 150 + 1) for index in range(60)]
    assert scores(ask("zero_shot", texts, ["hewa"])) == [(score_of(text, "hewa"),) for text in texts]
    assert max(len(request.content) for request in posts(ask)) > 500


@pytest.mark.parametrize("texts", [["mvua"], ["mvua", "mpira", "mtu"]])
def test_more_labels_than_the_limit_are_an_error_that_says_so(ask: Asker, texts: list[str]) -> None:
    with pytest.raises(ApiError, match="1 texts with 5 labels are 5 pairs, at most 4 are answered in one request") as caught:
        ask("zero_shot", texts, ["hewa", "michezo", "siasa", "chakula", "muziki"], partial=True)
    assert (caught.value.kind, caught.value.status, len(posts(ask))) == ("too_many_pairs", 413, 1)


def test_a_bad_text_is_named_by_its_place_among_all_texts(ask: Asker) -> None:
    with pytest.raises(ApiError, match="text 5: it is empty") as caught:
        ask("zero_shot", [*TEXTS[:5], " ", *TEXTS[5:]], ["hewa", "michezo"])
    assert (caught.value.kind, caught.value.index) == ("empty_text", 5)


def test_a_bad_text_is_refused_alone_if_asked_for(ask: Asker) -> None:
    results = ask("zero_shot", ["", *TEXTS[:4], " ", *TEXTS[4:]], ["hewa", "michezo"], partial=True)
    assert results[0] == Refused("empty_text", "text 0: it is empty")
    assert results[5] == Refused("empty_text", "text 5: it is empty")
    answered = [result for result in results if isinstance(result, ZeroShotResult)]
    assert scores(answered) == [(score_of(text, "hewa"), score_of(text, "michezo")) for text in TEXTS]
    assert all(question["partial"] for question in ask.endpoint.asked)


def test_texts_that_are_all_refused_name_no_model(ask: Asker) -> None:
    refused = {"error": {"type": "unknown_language", "message": "text 0: its language cannot be told"}}
    answer = {"results": [refused], "language": None, "language_source": "detected", "model": None, "models": {}}
    ask.endpoint.rules = [httpx.Response(200, json=answer)]
    assert ask("zero_shot", ["???"], ["hewa"], partial=True) == [
        Refused("unknown_language", "text 0: its language cannot be told")
    ]


def test_a_text_is_not_refused_alone_unless_asked_for(ask: Asker) -> None:
    refused = {"error": {"type": "empty_text", "message": "text 0: it is empty"}}
    answer = {"results": [refused], "language_source": "given", "models": {}}
    ask.endpoint.rules = [httpx.Response(200, json=answer)]
    with pytest.raises(BadAnswer, match="a text is refused by itself though that was not asked for"):
        ask("zero_shot", ["mvua"], ["hewa"])


def test_models_are_described(ask: Asker) -> None:
    catalogue = ask("models")
    assert (catalogue.ready, catalogue.reason, catalogue.fallback) == (True, None, "sw")
    assert catalogue.limits == Limits(**LIMITS)
    (model,) = catalogue.models
    assert (model.name, model.version, model.language, model.max_tokens) == ("nli-sw", 3, "sw", 128)
    assert (model.precision, model.temperature) == ("int8", 1.25)
    assert model.loaded_at == datetime(2026, 11, 22, 10, tzinfo=UTC)
    assert model.gate == Gate(True, ("first of its language",), "2026-11-21T10:00:00Z")
    assert model.refused == Rejected(4, "cd" * 32, "golden pair 0 differs", datetime(2026, 11, 22, 11, tzinfo=UTC))
    assert model.without_champion
    assert catalogue.refused == {"sw": model.refused}
    assert model.card == {"precision": {"served": "int8"}}


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_ready_is_asked_once(ask: Asker, status: int, ready: bool) -> None:
    ask.endpoint = Readiness(status)
    assert ask("ready") is ready
    assert (len(ask.endpoint.seen), ask.pauses) == (1, [])


def test_ready_does_not_wait_for_a_server_that_is_not_there(ask: Asker) -> None:
    ask.endpoint = Readiness(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable):
        ask("ready")
    assert len(ask.endpoint.seen) == 1


class Readiness(Endpoint):
    def __init__(self, outcome: int | Exception) -> None:
        super().__init__()
        self._outcome = outcome

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return httpx.Response(self._outcome)


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("no answer"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("silence"),
        httpx.RemoteProtocolError("server disconnected"),
        error(429, "busy"),
        error(429, "rate_limited"),
        error(503, "not_ready"),
        error(504, "deadline"),
        httpx.Response(502, text="<html>Bad gateway</html>"),
    ],
    ids=lambda failure: type(failure).__name__ if isinstance(failure, Exception) else str(failure.status_code),
)
def test_what_may_pass_is_asked_again(ask: Asker, failure: Exception | httpx.Response) -> None:
    ask.endpoint.rules = [failure, failure]
    assert ask("predict", PAIRS)[2].probabilities == probabilities_of(*PAIRS[2])
    assert ask.pauses == [0.5, 1.0]
    assert len({(request.content, request.headers["x-request-id"]) for request in posts(ask)}) == 1
    assert len(posts(ask)) == 3


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (error(400, "invalid_request", index=2), ApiError),
        (error(401, "unauthorized"), Unauthorized),
        (error(403, "forbidden"), ApiError),
        (error(404, "unknown_language"), UnknownLanguage),
        (error(408, "slow"), ApiError),
        (error(413, "too_large"), ApiError),
        (error(422, "too_long", Retry_After="1"), ApiError),
        (error(500, "internal"), ApiError),
        (httpx.Response(301, headers={"location": "http://other.test/predict"}), ApiError),
        (httpx.UnsupportedProtocol("ftp"), Unreachable),
        (httpx.LocalProtocolError("bad header"), Unreachable),
        (httpx.DecodingError("not gzip"), Unreachable),
    ],
    ids=lambda value: str(getattr(value, "status_code", type(value).__name__)),
)
def test_what_stays_is_asked_once(ask: Asker, failure: Exception | httpx.Response, kind: type[ClientError]) -> None:
    ask.endpoint.rules = [failure]
    with pytest.raises(kind) as caught:
        ask("predict", PAIRS)
    assert type(caught.value) is kind
    assert (len(posts(ask)), ask.pauses) == (1, [])


def test_a_certificate_that_is_not_trusted_is_not_tried_again(ask: Asker) -> None:
    def untrusted(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("handshake") from ssl.SSLCertVerificationError("self-signed certificate")

    ask.endpoint.rules = [untrusted]
    with pytest.raises(Unreachable, match=r"http://nli\.test/predict gives no answer"):
        ask("predict", PAIRS)
    assert len(posts(ask)) == 1


def test_pauses_double_up_to_the_longest(ask: Asker) -> None:
    ask.endpoint.rules = [error(429, "busy")] * 7
    ask("predict", PAIRS)
    # half of 1, 2, 4, 8 and then of 10 at most
    assert ask.pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_jitter_is_full() -> None:
    drawn = iter([0.0, 0.25, 0.999])
    backoff = Backoff(first=2, longest=100, random=lambda: next(drawn))
    assert [backoff.pause(0, 0), backoff.pause(1, 0), backoff.pause(2, 3)] == [0.0, 1.0, pytest.approx(3 + 7.992)]
    assert 0 <= Backoff().pause(10_000, 0) <= Backoff().longest


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry_After": "7"}, 7.5),
        ({"Retry_After": "2.5"}, 3.0),
        ({"Retry_After": "Sun, 22 Nov 2026 10:00:20 GMT", "Date": "Sun, 22 Nov 2026 10:00:00 GMT"}, 20.5),
        ({"Retry_After": "Sun, 22 Nov 2026 09:00:00 GMT", "Date": "Sun, 22 Nov 2026 10:00:00 GMT"}, 0.5),
        ({"Retry_After": "Sun, 22 Nov 2026 09:00:00 -0000", "Date": "Sun, 22 Nov 2026 10:00:00 GMT"}, 0.5),
        ({"Retry_After": "Sun, 22 Nov 1998 10:00:00 GMT"}, 0.5),
        ({"Retry_After": "-3"}, 0.5),
        ({"Retry_After": "9e999"}, 0.5),
        ({"Retry_After": "soon"}, 0.5),
        ({}, 0.5),
    ],
)
def test_retry_after_is_honoured(ask: Asker, headers: dict[str, str], pause: float) -> None:
    ask.endpoint.rules = [error(429, "rate_limited", "because", None, **headers)]
    ask("predict", PAIRS)
    assert ask.pauses == [pause]


def test_a_pause_that_the_time_does_not_allow_is_not_begun(ask: Asker) -> None:
    ask.endpoint.rules = [error(429, "rate_limited", "3 requests a minute", Retry_After="60")]
    with pytest.raises(RateLimited, match="3 requests a minute"):
        ask("predict", PAIRS, timeout=60)
    assert (len(posts(ask)), ask.pauses) == (1, [])


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (error(429, "busy"), Busy),
        (error(503, "not_ready"), NotReady),
        (error(504, "deadline"), Deadline),
        (httpx.ConnectError("refused"), Unreachable),
    ],
    ids=["busy", "not_ready", "deadline", "unreachable"],
)
def test_the_time_limit_spans_all_attempts(ask: Asker, failure: httpx.Response | Exception, kind: type[ClientError]) -> None:
    ask.endpoint.rules = [failure] * 100
    with pytest.raises(kind):
        ask("predict", PAIRS, timeout=10)
    # 0.5 + 1 + 2 + 4 = 7.5, and 5 more would be too many
    assert ask.pauses == [0.5, 1.0, 2.0, 4.0]
    # the server is told how long somebody waits
    assert [request.headers["x-deadline-ms"] for request in posts(ask)] == ["10000", "9500", "8500", "6500", "2500"]
    assert [request.extensions["timeout"]["read"] for request in posts(ask)] == [10.0, 9.5, 8.5, 6.5, 2.5]
    assert max(request.extensions["timeout"]["connect"] for request in posts(ask)) <= 10


def test_a_pause_that_outlasts_the_time_ends_with_the_last_failure(ask: Asker) -> None:
    ask.oversleeps = 100
    ask.endpoint.rules = [error(429, "busy", "too much waits")]
    with pytest.raises(Busy, match="too much waits"):
        ask("predict", PAIRS, timeout=10)
    assert len(posts(ask)) == 1


def test_an_answer_that_trickles_ends_with_the_time(ask: Asker) -> None:
    def trickle() -> Iterator[bytes]:
        while True:
            ask.seconds += 4
            yield b" "

    async def trickle_async() -> AsyncIterator[bytes]:
        for block in trickle():
            yield block

    content = trickle_async() if ask.kind == "async" else trickle()
    ask.endpoint.rules = [httpx.Response(200, content=content)]
    with pytest.raises(Unreachable, match="not complete in time"):
        ask("predict", PAIRS, timeout=10)
    assert ask.seconds == 12


def test_an_error_says_what_the_endpoint_said(ask: Asker) -> None:
    ask.endpoint.rules = [error(422, "too_long", "pair 2 has 300 tokens", index=2, X_Request_ID="abc")]
    with pytest.raises(ApiError) as caught:
        ask("predict", PAIRS)
    told = caught.value
    assert (told.kind, told.status, told.message, told.index) == ("too_long", 422, "pair 2 has 300 tokens", 2)
    assert told.request_id == "abc"
    assert str(told) == "pair 2 has 300 tokens (too_long, HTTP 422, request abc)"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": "no"}', b'{"error": {"type": "x"}}', b"\xff", b"[" * 100_000])
def test_an_error_of_something_else_is_told_as_such(ask: Asker, body: bytes) -> None:
    ask.endpoint.rules = [httpx.Response(404, content=body)]
    with pytest.raises(ApiError, match=f"{URL}/predict answers with an error that is not") as caught:
        ask("predict", PAIRS)
    assert caught.value.kind == "http_error"
    assert caught.value.request_id == posts(ask)[0].headers["x-request-id"]


ANSWER: dict[str, Any] = {
    "predictions": [
        {"label": "neutral", "probabilities": probabilities_of("a", "b"), "language": "sw", "truncated": False},
    ],
    "language_source": "given",
    "models": {"sw": MODEL},
}


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome</html>",
        b"null",
        b"[" * 100_000,
        json.dumps({**ANSWER, "predictions": []}).encode(),
        json.dumps({**ANSWER, "predictions": ANSWER["predictions"] * 2}).encode(),
        json.dumps({**ANSWER, "models": {}}).encode(),
        json.dumps({**ANSWER, "predictions": [{**ANSWER["predictions"][0], "label": "LABEL_0"}]}).encode(),
        json.dumps({**ANSWER, "predictions": [{**ANSWER["predictions"][0], "probabilities": {"neutral": 1.0}}]}).encode(),
        json.dumps({**ANSWER, "predictions": [{"error": {"type": "empty_text", "message": "empty"}}]}).encode(),
    ],
)
def test_an_answer_of_another_shape_is_an_error(ask: Asker, body: bytes) -> None:
    ask.endpoint.rules = [httpx.Response(200, content=json.dumps(ANSWER)), httpx.Response(200, content=body)]
    assert ask("predict", [("a", "b")])[0].label == "neutral"
    with pytest.raises(BadAnswer, match=f"{URL}/predict did not answer as a conlst endpoint"):
        ask("predict", [("a", "b")])


@pytest.mark.parametrize("pairs", [("watu", "mvua"), [("watu",)], [("watu", "mvua", "leo")], [("watu", None)], ["ab"]])
def test_what_is_no_pair_is_not_sent(ask: Asker, pairs: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a pair \(premise, hypothesis\) of strings"):
        ask("predict", pairs)
    assert not ask.endpoint.seen


@pytest.mark.parametrize(
    ("texts", "labels", "told"),
    [
        ("mvua", ["hewa"], "texts is one string"),
        (["mvua"], "hewa", "labels is one string"),
        (["mvua", None], ["hewa"], r"texts\[1\] is of type NoneType; give a list of strings"),
        (["mvua"], [b"hewa"], r"labels\[0\] is of type bytes; give a list of strings"),
    ],
)
def test_what_is_no_list_of_strings_is_not_sent(ask: Asker, texts: Any, labels: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        ask("zero_shot", texts, labels)
    assert not ask.endpoint.seen


@pytest.mark.parametrize(
    ("argument", "variable", "sent"),
    [
        (None, None, None),
        ("k-1", None, "Bearer k-1"),
        (None, "k-2", "Bearer k-2"),
        ("k-1", "k-2", "Bearer k-1"),
        ("", "k-2", None),
        ("k-1\n", None, "Bearer k-1"),
    ],
)
def test_the_key_comes_from_the_argument_or_the_variable(
    ask: Asker, monkeypatch: pytest.MonkeyPatch, argument: str | None, variable: str | None, sent: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("CONLST_API_KEY", variable)
    ask("predict", PAIRS, key=argument)
    ask("models", key=argument)
    assert [request.headers.get("authorization") for request in ask.endpoint.seen] == [sent, sent]


def test_the_key_goes_to_no_other_server(ask: Asker) -> None:
    ask.endpoint.rules = [httpx.Response(307, headers={"location": "http://other.test/predict"})]
    with pytest.raises(ApiError, match=r"redirects to http://other\.test/predict, which is not followed") as caught:
        ask("predict", PAIRS, key="k-secret")
    assert caught.value.kind == "redirect"
    assert [request.url.host for request in ask.endpoint.seen] == ["nli.test"]


@pytest.mark.parametrize("key", ["two words", "a\nb", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_unquoted(ask: Asker, key: str) -> None:
    with pytest.raises(ConfigError, match="the API key holds") as caught:
        ask("predict", PAIRS, key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("nli.test:3000", "form http"),
        ("localhost", "form http"),
        ("ftp://nli.test", "form http"),
        ("http://", "form http"),
        ("http://nli.test/?a=b", "form http"),
        ("http://nli.test:port", "is no address"),
        ("http://me:secret@nli.test", "CONLST_API_KEY"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(ask: Asker, url: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names) as caught:
        ask("models", url=url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_limit_is_above_zero(ask: Asker, timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout is"):
        ask("models", timeout=timeout)


def test_an_address_may_have_a_path(ask: Asker) -> None:
    ask.endpoint = Readiness(200)
    ask("ready", url="https://gateway.test/nli/")
    assert ask.endpoint.seen[0].url == "https://gateway.test/nli/readyz"


MANY = [(f"watu {index}", f"mvua {index * index}") for index in range(50)]
Stream = Callable[..., list[Prediction | Refused]]


def stream(kind: str, endpoint: Any, pairs: Any, **options: Any) -> list[Prediction | Refused]:
    """All the answers of a stream."""
    transport = httpx.MockTransport(endpoint)

    async def ask() -> list[Prediction | Refused]:
        async with AsyncClient(URL, transport=transport) as client:
            return [answer async for answer in client.predict_stream(pairs, **options)]

    if kind == "async":
        return asyncio.run(ask())
    with Client(URL, transport=transport) as client:
        return list(client.predict_stream(pairs, **options))


def of(answers: list[Prediction | Refused]) -> list[Any]:
    return [answer.probabilities if isinstance(answer, Prediction) else answer.kind for answer in answers]


KINDS = pytest.mark.parametrize("kind", ["blocking", "async"])


@KINDS
@pytest.mark.parametrize("count", [0, 1, 4, 5, 50])
def test_a_stream_keeps_the_order_within_the_limits(kind: str, count: int) -> None:
    endpoint = Endpoint()
    answers = stream(kind, endpoint, iter(MANY[:count]), language="sw", truncate=True)
    assert of(answers) == [probabilities_of(*pair) for pair in MANY[:count]]
    sizes = sorted((len(question["pairs"]) for question in endpoint.asked), reverse=True)
    assert sizes == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    assert all(question["partial"] and question["truncate"] and question["language"] == "sw" for question in endpoint.asked)


@KINDS
def test_requests_of_a_stream_are_within_the_bytes(kind: str) -> None:
    # the endpoint asserts it; twenty pairs would be allowed
    endpoint = Endpoint(limits={"pairs": 20, "characters": 1000, "body_bytes": 700})
    pairs = [("ñ" * (index * 7 % 150), "mvua") for index in range(1, 60)]
    assert of(stream(kind, endpoint, pairs)) == [probabilities_of(*pair) for pair in pairs]
    assert max(len(request.content) for request in endpoint.seen) > 500


@pytest.mark.parametrize("language", [None, "sw"])
def test_a_request_may_fill_the_limit_to_its_last_byte(language: str | None) -> None:
    sizes = set()
    for length in range(400, 470):
        endpoint = Endpoint(limits={"pairs": 4, "characters": 1000, "body_bytes": 512})
        answers = stream("blocking", endpoint, [("w" * length, "m")], language=language)
        assert of(answers) in ([probabilities_of("w" * length, "m")], ["too_long"])
        sizes |= {len(request.content) for request in endpoint.seen}
    assert 508 <= max(sizes) <= 512


@KINDS
def test_a_pair_that_cannot_be_answered_keeps_its_place(kind: str) -> None:
    endpoint = Endpoint(rules=[error(429, "busy")])
    refused = Refused("malformed_line", "line 7")
    pairs = [*MANY[:3], (" ", "watu"), *MANY[3:6], ("m" * 5000, "watu"), refused, *MANY[6:8], *[refused] * 9, MANY[8]]
    answers = stream(kind, endpoint, pairs)
    expected = [probabilities_of(*pair) for pair in MANY]
    assert of(answers) == [
        *expected[:3],
        "empty_text",
        *expected[3:6],
        "too_long",
        "malformed_line",
        *expected[6:8],
        *["malformed_line"] * 9,
        expected[8],
    ]
    assert answers[8] is refused
    assert "more than a request may hold" in getattr(answers[7], "message", "")


@KINDS
def test_an_error_of_the_whole_request_ends_the_stream(kind: str) -> None:
    endpoint = Endpoint(rules=[None, error(404, "unknown_language", "no model for 'xx'")])
    answers = []
    transport = httpx.MockTransport(endpoint)

    async def ask() -> None:
        async with AsyncClient(URL, transport=transport) as client:
            async for answer in client.predict_stream(MANY, concurrency=1):
                answers.append(answer)

    def read() -> None:
        if kind == "async":
            asyncio.run(ask())
        with Client(URL, transport=transport) as client:
            for answer in client.predict_stream(MANY, concurrency=1):
                answers.append(answer)

    with pytest.raises(UnknownLanguage, match="no model for 'xx'"):
        read()
    assert of(answers) == [probabilities_of(*pair) for pair in MANY[:4]]
    assert len(endpoint.asked) == 2


@KINDS
def test_a_stream_of_something_else_than_pairs_is_a_type_error(kind: str) -> None:
    with pytest.raises(TypeError, match="expected a pair"):
        stream(kind, Endpoint(), [*MANY[:6], "watu"])


def test_a_stream_may_be_an_asynchronous_iterable() -> None:
    async def pairs() -> AsyncIterator[tuple[str, str]]:
        for pair in MANY:
            await asyncio.sleep(0)
            yield pair

    assert of(stream("async", Endpoint(), pairs())) == [probabilities_of(*pair) for pair in MANY]


@dataclass
class Backwards:
    """Answers the requests in flight together only when ``count`` are there, the last one first."""

    count: int
    endpoint: Endpoint = field(default_factory=Endpoint)
    waiting: list[asyncio.Event] = field(default_factory=list)
    most: int = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            mine = asyncio.Event()
            self.waiting.append(mine)
            self.most = max(self.most, len(self.waiting))
            if len(self.waiting) == self.count:
                mine.set()
            await mine.wait()
            self.waiting.remove(mine)
            if self.waiting:
                self.waiting[-1].set()
        return self.endpoint(request)


def test_answers_that_come_in_another_order_are_put_in_order() -> None:
    endpoint = Backwards(3)
    pairs = MANY[:12]
    assert of(stream("async", endpoint, pairs, concurrency=3)) == [probabilities_of(*pair) for pair in pairs]
    assert endpoint.most == 3
    # they did come in another order
    assert [question["pairs"][0]["premise"] for question in endpoint.endpoint.asked] == ["watu 8", "watu 4", "watu 0"]


def test_threads_keep_the_order_and_the_bound() -> None:
    together, in_flight, most, endpoint = threading.Barrier(3), [0], [0], Endpoint()

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            with endpoint.lock:
                in_flight[0] += 1
                most[0] = max(most[0], in_flight[0])
            # broken only if fewer than three are ever in flight
            together.wait(30)
            with endpoint.lock:
                in_flight[0] -= 1
        return endpoint(request)

    pairs = MANY[:36]
    assert of(stream("blocking", handler, pairs, concurrency=3)) == [probabilities_of(*pair) for pair in pairs]
    assert most[0] == 3


@KINDS
@pytest.mark.parametrize("refused", [False, True])
def test_a_stream_takes_no_more_pairs_than_it_needs(kind: str, refused: bool) -> None:
    taken = []

    def endless() -> Iterator[tuple[str, str] | Refused]:
        for index in range(10**6):
            taken.append(index)
            yield Refused("malformed_line", str(index)) if refused else (f"watu {index}", "mvua")

    transport = httpx.MockTransport(Endpoint())

    async def ask() -> list[Prediction | Refused]:
        async with AsyncClient(URL, transport=transport) as client, aclosing(client.predict_stream(endless())) as answers:
            return [await anext(answers) for _ in range(40)]

    if kind == "async":
        answers = asyncio.run(ask())
    else:
        with Client(URL, transport=transport) as client, closing(client.predict_stream(endless())) as found:
            answers = [next(found) for _ in range(40)]
    assert of(answers) == ["malformed_line" if refused else probabilities_of(f"watu {index}", "mvua") for index in range(40)]
    # four requests of four pairs in flight, one batch read, one being filled
    assert len(taken) <= 40 + 4 * 6


def test_who_leaves_a_blocking_stream_leaves_no_thread_that_asks_again() -> None:
    def busy_after_the_first(request: httpx.Request) -> httpx.Response | None:
        # the first batch, not the first to arrive: which of two that is, is chance
        return None if b'"watu 0"' in request.content else error(429, "busy")

    paused, go_on, endpoint = threading.Event(), threading.Event(), Endpoint(rules=[busy_after_the_first] * 50)

    def sleep(_: float) -> None:
        paused.set()
        assert go_on.wait(30)

    with Client(URL, transport=httpx.MockTransport(endpoint), sleep=sleep) as client:
        answers = client.predict_stream(MANY, concurrency=2)
        next(answers)
        assert paused.wait(30)
        answers.close()
        go_on.set()
        for thread in threading.enumerate():
            if thread.name.startswith("conlst-client"):
                thread.join(30)
                assert not thread.is_alive()
        # one answered, two that were busy at most
        assert len(endpoint.asked) <= 3


@KINDS
@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_stream_needs_a_request_in_flight(kind: str, concurrency: int) -> None:
    with pytest.raises(ValueError, match=f"concurrency is {concurrency}.*at least 1"):
        stream(kind, Endpoint(), MANY, concurrency=concurrency)


def test_a_program_that_leaves_a_stream_ends_though_the_endpoint_hangs() -> None:
    program = """
import threading, httpx, sys
from conlst.client import Client
sys.path.insert(0, "tests")
from test_client import MANY, URL, Endpoint

endpoint, hangs = Endpoint(), threading.Event()

def answer(request):
    if request.method == "POST" and b'"watu 0"' not in request.content:
        hangs.set()
        threading.Event().wait()
    return endpoint(request)

answers = Client(URL, transport=httpx.MockTransport(answer)).predict_stream(MANY, concurrency=2)
next(answers)
hangs.wait()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=100)


def test_who_leaves_an_asynchronous_stream_leaves_no_task() -> None:
    async def ask() -> set[asyncio.Task[Any]]:
        async def handler(request: httpx.Request) -> httpx.Response:
            if request.method == "POST" and len(endpoint.asked) == 1:
                await asyncio.sleep(3600)
            return endpoint(request)

        async with AsyncClient(URL, transport=httpx.MockTransport(handler)) as client:
            async with aclosing(client.predict_stream(MANY)) as answers:
                await anext(answers)
            return asyncio.all_tasks() - {asyncio.current_task()}

    endpoint = Endpoint()
    assert not asyncio.run(ask())


def test_the_client_is_light() -> None:
    program = "import sys, conlst.client; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    loaded = set(run.stdout.split())
    assert {"conlst", "httpx"} <= loaded
    heavy = {
        "torch",
        "transformers",
        "datasets",
        "numpy",
        "pyarrow",
        "bentoml",
        "mlflow",
        "boto3",
        "kfp",
        "onnxruntime",
        "pydantic",
    }
    assert not loaded & heavy


def test_the_package_imports_httpx_and_nothing_else_from_outside() -> None:
    program = """
import ast, sys
from pathlib import Path
for file in Path("conlst/client").glob("*.py"):
    for node in ast.parse(file.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] not in sys.stdlib_module_names:
                print(name)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    outside = {name for name in run.stdout.split() if not name.startswith("conlst.client")}
    assert outside == {"httpx", "conlst", "conlst.contract.errors", "conlst.contract.labels"}
