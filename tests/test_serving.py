import asyncio
import json
import logging
import pickle
import re
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import get_args

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlst import __version__
from conlst.client.errors import KINDS as CLIENT_KINDS
from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import RegistryError
from conlst.contract.labels import NAMES
from served import CANARY, MANY, ONE, Bomb, Server, expected, serve
from serving.errors import ApiError, Kind
from serving.models import Refusal, Source
from serving.openapi import openapi_document
from serving.settings import Settings
from tiny_onnx import PAIRS, slow_logits, tiny_onnx_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")


@pytest.fixture(scope="module")
def server(folder):
    return serve(f"sw={folder}")


def test_a_list_is_answered_in_its_order(server, folder):
    answer = server.predict(MANY)
    assert answer.status_code == 200
    body = answer.json()
    found = [[prediction["probabilities"][name] for name in NAMES] for prediction in body["predictions"]]
    np.testing.assert_allclose(found, expected(PAIRS), atol=1e-6)
    assert [prediction["label"] for prediction in body["predictions"]] == [NAMES[i] for i in expected(PAIRS).argmax(axis=1)]
    assert len({prediction["label"] for prediction in body["predictions"]}) > 1
    assert body["language"] == "sw"
    assert body["language_source"] == "given"
    assert body["model"] == {"name": "nli-sw", "version": None, "digest": read_manifest(folder).digest, "precision": "fp32"}
    assert body["models"] == {"sw": body["model"]}


def test_one_pair_is_answered_as_in_a_list(server):
    one, many = server.predict(ONE).json(), server.predict(MANY).json()
    assert len(one["predictions"]) == 1
    assert one["predictions"][0]["label"] == many["predictions"][0]["label"]
    assert one["predictions"][0]["probabilities"] == pytest.approx(many["predictions"][0]["probabilities"], abs=1e-6)


def test_a_long_pair_is_refused_by_index_and_cut_only_on_demand(server):
    long = {"premise": " ".join(["mvua"] * 40), "hypothesis": "mvua"}
    question = {**MANY, "pairs": [MANY["pairs"][0], long, MANY["pairs"][1]]}
    error = server.refusal(422, "too_long", server.predict(question))
    assert error["index"] == 1
    assert "45 tokens" in error["message"]
    predictions = server.predict({**question, "truncate": True}).json()["predictions"]
    assert [prediction["truncated"] for prediction in predictions] == [False, True, False]


@pytest.mark.parametrize(
    "text", ["mvua\x00leo", "\u202emvua\u200f", "\ufeffmvua", "🌧️", "م\u0651طر", "a\u0300" * 20, "\U0010ffff"]
)
def test_odd_but_valid_unicode_is_answered(server, text):
    answer = server.predict({"premise": text, "hypothesis": text, "language": "sw", "truncate": True})
    assert answer.status_code == 200
    assert sum(answer.json()["predictions"][0]["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"premise": NaN}',
        b'\xff\xfe{\x00"\x00',
        json.dumps(ONE).encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"premise": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"premise": ' + b"1" * 10_000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(server, body):
    answer = server.ask("POST", "/predict", content=body, headers={"content-type": "application/json"})
    server.refusal(400, "invalid_json", answer)


@pytest.mark.parametrize(
    ("question", "where"),
    [
        ([], "body"),
        ("text", "body"),
        (None, "body"),
        ({}, "premise"),
        ({"language": "sw", "pairs": []}, "pairs is empty"),
        ({"language": "sw", "pairs": {}}, "pairs"),
        ({"language": "sw", "pairs": None}, "pairs"),
        ({**ONE, "premise": 5}, "premise"),
        ({**ONE, "premise": ["a"]}, "premise"),
        ({**ONE, "truncate": "yes"}, "truncate"),
        ({**ONE, "language": ""}, "language"),
        ({**ONE, "language": "../sw"}, "language"),
        ({**ONE, "labels": 3}, "labels"),
        ({**ONE, "pairs": MANY["pairs"]}, "premise"),
        ({**ONE, "x" * 5000: 1}, "x" * 40),
        ({**ONE, "\ud800": 1}, "body"),
    ],
)
def test_another_shape_is_refused_and_named(server, question, where):
    answer = server.ask("POST", "/predict", content=json.dumps(question), headers={"content-type": "application/json"})
    error = server.refusal(400, "invalid_request", answer)
    assert where in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("pair", "status", "kind"),
    [
        ({"premise": "mvua"}, 400, "invalid_request"),
        ({"premise": "mvua", "hypothesis": None}, 400, "invalid_request"),
        ({"premise": "mvua", "hypothesis": ""}, 422, "empty_text"),
        ({"premise": " \n\u3000", "hypothesis": "mvua"}, 422, "empty_text"),
        ({"premise": "\ufeff\u200b\u202e", "hypothesis": "mvua"}, 422, "empty_text"),
        ({"premise": "m" * 4001, "hypothesis": "mvua"}, 422, "too_long"),
        ({"premise": "mvua", "hypothesis": "\ud83d"}, 422, "invalid_text"),
        ({"premise": "\udc00mvua", "hypothesis": "mvua"}, 422, "invalid_text"),
    ],
)
def test_the_one_bad_pair_is_named_by_its_index(server, pair, status, kind):
    body = json.dumps({**MANY, "pairs": [*MANY["pairs"], pair]})
    answer = server.ask("POST", "/predict", content=body, headers={"content-type": "application/json"})
    assert server.refusal(status, kind, answer)["index"] == len(PAIRS)


def test_a_language_that_is_not_served_is_told_which_are(server):
    error = server.refusal(404, "unknown_language", server.predict({**ONE, "language": "qu"}))
    assert "'qu'" in error["message"]
    assert "sw" in error["message"]


def test_too_many_pairs_are_refused(server):
    assert server.predict({**MANY, "pairs": MANY["pairs"] * 16}).status_code == 200
    server.refusal(413, "too_many_pairs", server.predict({**MANY, "pairs": MANY["pairs"] * 16 + MANY["pairs"][:1]}))


@pytest.mark.parametrize(
    ("path", "question", "told"),
    [
        ("/predict", {"pairs": [1] * 65}, "65 pairs, at most 64"),
        ("/zero-shot", {"texts": [1] * 65, "labels": ["mvua"]}, "65 texts with 1 labels are 65 pairs, at most 64"),
        ("/zero-shot", {"text": "leo", "labels": [1] * 65}, "65 labels, at most 64"),
        ("/zero-shot", {"texts": [], "labels": [1] * 65}, "65 labels"),
        ("/zero-shot", {"texts": [1] * 65, "labels": None}, "65 texts"),
    ],
)
def test_too_many_items_are_refused_before_they_are_looked_at(server, monkeypatch, path, question, told):
    # a problem of each of 500,000 items would be found on the event loop, which everyone waits for
    monkeypatch.setattr("serving.question._shaped", lambda *_: pytest.fail("looked at"))
    error = server.refusal(413, "too_many_pairs", server.ask("POST", path, json=question))
    assert told in error["message"]


@pytest.mark.parametrize(
    ("path", "question", "name", "index"),
    [
        ("/predict", ONE, "the body", None),
        ("/zero-shot", {"text": "leo", "labels": ["mvua"]}, "the body", None),
        ("/predict", MANY, "pair 1", 1),
    ],
)
def test_too_many_keys_are_not_told_one_by_one(server, monkeypatch, path, question, name, index):
    monkeypatch.setattr("serving.question._shaped", lambda *_: pytest.fail("looked at"))
    many = {f"k{number}": 1 for number in range(33)}
    asked = {"pairs": [MANY["pairs"][0], many]} if index else {**question, **many}
    error = server.refusal(400, "invalid_request", server.ask("POST", path, json=asked))
    assert f"{name} has {33 if index else 33 + len(question)} keys" in error["message"]
    assert error.get("index") == index


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/vnd.bentoml+pickle", pickle.dumps(Bomb())),
        ("application/octet-stream", pickle.dumps(Bomb())),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="premise"\r\n\r\na\r\n--x--\r\n'),
        ("text/plain", json.dumps(ONE).encode()),
        ("application/x-www-form-urlencoded", b"premise=a"),
        ("application/jsonp", json.dumps(ONE).encode()),
        ("", json.dumps(ONE).encode()),
    ],
)
def test_other_content_types_are_refused(server, content_type, body):
    answer = server.ask("POST", "/predict", content=body, headers={"content-type": content_type})
    server.refusal(415, "unsupported_media_type", answer)


def test_json_may_name_its_charset_but_not_be_compressed(server):
    body = json.dumps(ONE)
    ok = server.ask("POST", "/predict", content=body, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert ok.status_code == 200
    zipped = {"content-type": "application/json", "content-encoding": "gzip"}
    server.refusal(415, "unsupported_media_type", server.ask("POST", "/predict", content=body, headers=zipped))


def test_a_body_over_the_limit_is_refused_while_it_arrives(server):
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    answer = server.ask("POST", "/predict", content=endless(), headers={"content-type": "application/json"})
    server.refusal(413, "too_large", answer)
    assert sent < 1_000_000 + 2 * 65536


def test_an_announced_length_over_the_limit_is_refused_unread(server):
    async def once() -> list[dict]:
        sent: list[dict] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": b" " * 10, "more_body": True}

        async def send(message: dict) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000001")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers, "root_path": ""}
        await server.app(scope, receive, send)
        return sent

    start, body = asyncio.run(once())
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["error"]["type"] == "too_large"


def test_bodies_that_have_not_ended_are_bounded_together(folder):
    server = serve(f"sw={folder}", max_body_bytes=1000)
    asked = json.dumps(ONE).encode()

    async def crowd() -> tuple[list[httpx.Response], int, list[httpx.Response]]:
        go_on = asyncio.Event()

        async def half() -> AsyncIterator[bytes]:
            yield b" " * (1000 - len(asked))
            await go_on.wait()
            yield asked

        async with server.client() as client:
            ask = partial(client.post, "/predict", headers={"content-type": "application/json"})
            slow = [asyncio.create_task(ask(content=half())) for _ in range(50)]
            while len(refused := [task for task in slow if task.done()]) < 50 - 32 * 1000 // (1000 - len(asked)):
                await asyncio.sleep(0.001)
            whole = await _in_one_piece(server, asked)
            go_on.set()
            return [await task for task in refused], whole, [await task for task in slow if task not in refused]

    refused, whole, answered = asyncio.run(crowd())
    for answer in refused:
        assert "bodies" in server.refusal(429, "busy", answer)["message"]
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"
    # what is all there needs no room
    assert whole == 200
    assert {answer.status_code for answer in answered} == {200}
    # and those that have ended, one way or another, hold none
    assert server.predict(ONE).status_code == 200


async def _in_one_piece(server: Server, body: bytes) -> int:
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict] = []

    async def receive() -> dict:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers, "root_path": ""}
    await server.app(scope, receive, send)
    return sent[0]["status"]


def test_a_body_that_ends_when_there_is_no_room_is_not_parsed(folder, monkeypatch):
    server = serve(f"sw={folder}")
    admitted, check = [], server.scheduler.check_room

    def full_at_second_sight() -> None:
        admitted.append(True)
        if len(admitted) > 1:
            raise ApiError(429, "busy", "too many requests are waiting", headers={"Retry-After": "1"})
        check()

    monkeypatch.setattr(server.scheduler, "check_room", full_at_second_sight)
    answer = server.ask("POST", "/predict", content=b"no JSON", headers={"content-type": "application/json"})
    server.refusal(429, "busy", answer)


def test_unknown_paths_and_methods_are_answered_in_the_same_form(server):
    server.refusal(404, "not_found", server.ask("GET", "/nope"))
    answer = server.ask("GET", "/predict")
    server.refusal(405, "method_not_allowed", answer)
    assert answer.headers["allow"] == "POST"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4),
    max_leaves=12,
)
questions = json_values | st.fixed_dictionaries(
    {"language": st.just("sw")},
    optional={
        "premise": st.text(st.characters()) | json_values,
        "hypothesis": st.text(st.characters()) | json_values,
        "pairs": st.lists(
            st.fixed_dictionaries({"premise": st.text(st.characters()), "hypothesis": st.text(st.characters())}), max_size=70
        ),
        "truncate": st.booleans(),
    },
)


@settings(max_examples=150, deadline=None)
@given(questions.map(lambda question: json.dumps(question).encode()) | st.binary(max_size=200))
def test_no_body_is_answered_with_a_server_error(server, body):
    answer = server.ask("POST", "/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422), answer.text
    assert ("error" in answer.json()) == (answer.status_code != 200)


def test_beyond_the_waiting_line_requests_are_sent_away_and_the_others_answered(folder, monkeypatch):
    server = serve(f"sw={folder}", max_waiting=2)
    predictor = server.catalogue.model_for("sw").predictor
    begun, release, run = threading.Event(), threading.Event(), predictor.run

    def held(rows):
        begun.set()
        assert release.wait(30)
        return run(rows)

    monkeypatch.setattr(predictor, "run", held)

    async def crowd() -> tuple[list[httpx.Response], httpx.Response, list[httpx.Response]]:
        async with server.client() as client:
            inside = [asyncio.create_task(client.post("/predict", json=ONE))]
            while not begun.is_set():
                await asyncio.sleep(0.001)
            inside += [asyncio.create_task(client.post("/predict", json=ONE)) for _ in range(2)]
            while server.scheduler.waiting < 2:
                await asyncio.sleep(0.001)
            refused = [await client.post("/predict", json=ONE), await client.post("/predict", content=b"not even read")]
            # the loop is free although the thread computes
            metrics = await client.get("/metrics")
            release.set()
            return refused, metrics, await asyncio.gather(*inside)

    refused, metrics, answered = asyncio.run(crowd())
    for answer in refused:
        server.refusal(429, "busy", answer)
        assert int(answer.headers["retry-after"]) > 0
    assert "conlst_waiting_requests 2.0" in metrics.text
    assert [answer.status_code for answer in answered] == [200, 200, 200]
    assert server.scheduler.waiting == 0
    assert server.predict(ONE).status_code == 200


def test_the_page_is_where_a_browser_looks(server):
    assert server.ask("GET", "/").headers["location"] == "ui"
    assert "<title>" in server.ask("GET", "/ui").text


def test_a_partial_answer_has_errors_in_their_places(server):
    bad = [{"premise": "", "hypothesis": "mvua"}, {"premise": "mvua " * 40, "hypothesis": "leo"}]
    pairs = [bad[0], MANY["pairs"][0], bad[1], MANY["pairs"][1]]
    answer = server.predict({**MANY, "pairs": pairs, "partial": True})
    assert answer.status_code == 200
    told = answer.json()["predictions"]
    assert [entry.get("error", {}).get("type") for entry in told] == ["empty_text", None, "too_long", None]
    alone = [server.predict({**pairs[index], "language": "sw"}).json()["predictions"][0] for index in (1, 3)]
    for index, prediction in zip((1, 3), alone, strict=True):
        assert told[index]["probabilities"] == pytest.approx(prediction["probabilities"], abs=1e-6)
    nothing = server.predict({**MANY, "pairs": bad, "partial": True}).json()
    assert (nothing["language"], nothing["models"]) == (None, {})


def test_logits_come_on_request_and_give_the_probabilities(server):
    assert "logits" not in server.predict(ONE).json()["predictions"][0]
    (told,) = server.predict({**ONE, "logits": True}).json()["predictions"]
    logits = np.array([told["logits"][name] for name in NAMES])
    np.testing.assert_allclose(logits, slow_logits(PAIRS[:1])[0], atol=1e-5)
    found = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([told["probabilities"][name] for name in NAMES], found, atol=1e-6)


def test_probabilities_are_those_of_the_models_temperature(tmp_path):
    server = serve(f"sw={tiny_onnx_folder(tmp_path / 'sw', temperature=2.5)}")
    (told,) = server.predict({**ONE, "logits": True}).json()["predictions"]
    scaled = np.exp(np.array([told["logits"][name] for name in NAMES]) / 2.5)
    np.testing.assert_allclose([told["probabilities"][name] for name in NAMES], scaled / scaled.sum(), atol=1e-6)


def test_a_pair_that_breaks_the_model_fails_alone(server, monkeypatch):
    predictor = server.catalogue.model_for("sw").predictor
    poison = predictor.encode([PAIRS[2]]).ids[0]
    run = predictor.run

    def fragile(rows):
        if poison in rows:
            raise RuntimeError("no answer for this one")
        return run(rows)

    monkeypatch.setattr(predictor, "run", fragile)
    assert server.refusal(500, "internal", server.predict(MANY))["index"] == 2
    told = server.predict({**MANY, "partial": True}).json()["predictions"]
    assert [entry.get("error", {}).get("type") for entry in told] == [None, None, "internal", None]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(PAIRS))), st.integers(1, 12))
def test_a_neighbour_changes_no_answer(server, order, copies):
    pairs = [MANY["pairs"][index] for index in order] * copies
    together = server.predict({**MANY, "pairs": pairs}).json()["predictions"]
    found = [[prediction["probabilities"][name] for name in NAMES] for prediction in together]
    np.testing.assert_allclose(found, expected([PAIRS[index] for index in order] * copies), atol=1e-4)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    return ",".join(f"{code}={tiny_onnx_folder(place / code, code, seed=seed)}" for seed, code in enumerate(("sw", "fr")))


class TestLanguages:
    def test_it_is_found_for_each_pair(self, two):
        swahili = {"premise": "Watoto wawili wanacheza mpira uwanjani leo", "hypothesis": "Hakuna mtu anayecheza"}
        french = {"premise": "Deux enfants jouent au ballon dans le jardin", "hypothesis": "Personne ne joue dehors"}
        answer = serve(two).predict({"pairs": [swahili, french, swahili], "truncate": True}).json()
        assert [prediction["language"] for prediction in answer["predictions"]] == ["sw", "fr", "sw"]
        assert (answer["language"], answer["language_source"], answer["model"]) == (None, "detected", None)
        assert answer["models"].keys() == {"sw", "fr"}

    def test_one_without_a_model_is_refused_or_goes_to_the_fallback(self, two):
        german = {"premise": "Zwei Kinder spielen im Garten mit dem Ball", "hypothesis": "Niemand spielt", "truncate": True}
        error = serve(two).refusal(404, "unknown_language", serve(two).predict(german))
        assert error["index"] == 0
        assert "'de'" in error["message"]
        answer = serve(two, fallback="fr").predict(german).json()
        assert (answer["language"], answer["language_source"]) == ("fr", "fallback")
        given = serve(two, fallback="fr").predict({**german, "language": "de"}).json()
        assert given["language_source"] == "fallback"

    @pytest.mark.parametrize("fallback", ["", "fr"])
    @pytest.mark.parametrize("tag", ["SW", "sw-KE", "sw_TZ", "Sw-Latn-KE"])
    def test_a_tag_means_its_language_in_any_case_and_region(self, two, tmp_path, tag, fallback):
        server = serve(two, fallback=fallback, feedback=str(tmp_path))
        answer = server.predict({**ONE, "language": tag, "feedback": True}).json()
        assert (answer["language"], answer["language_source"]) == ("sw", "given")
        assert answer["predictions"] == server.predict(ONE).json()["predictions"]
        server.feedback.close()
        assert {path.parts[-3] for path in tmp_path.rglob("*.parquet")} == {"language=sw"}
        drift = server.ask("GET", "/drift").json()["languages"]
        assert {code: told["pairs"] for code, told in drift.items()} == {"fr": 0, "sw": 2}

    def test_a_language_is_not_one_that_its_tag_begins_like(self, two):
        for tag in ("swa", "x-sw", "s", "und-sw"):
            error = serve(two).refusal(404, "unknown_language", serve(two).predict({**ONE, "language": tag}))
            assert repr(tag) in error["message"]

    def test_one_word_is_answered_by_the_served_language_that_it_speaks_for(self, two):
        answer = serve(two).predict({"premise": "Ndiyo", "hypothesis": "Ndiyo"}).json()
        assert (answer["language"], answer["language_source"]) == ("sw", "detected")

    def test_one_pair_without_a_model_leaves_the_others_their_answers(self, two):
        german = {"premise": "Zwei Kinder spielen im Garten mit dem Ball", "hypothesis": "Niemand spielt"}
        french = {"premise": "Deux enfants jouent au ballon dans le jardin", "hypothesis": "Personne ne joue dehors"}
        answer = serve(two).predict({"pairs": [german, french], "truncate": True, "partial": True}).json()
        assert answer["predictions"][0]["error"]["type"] == "unknown_language"
        assert answer["predictions"][1]["language"] == answer["language"] == "fr"
        assert answer["language_source"] == "detected"

    def test_feedback_of_the_fallback_is_kept_under_the_texts_own_language(self, two, tmp_path):
        german = {"premise": "Zwei Kinder spielen im Garten mit dem Ball", "hypothesis": "Niemand spielt"}
        swahili = {"premise": "Watoto wawili wanacheza mpira uwanjani leo", "hypothesis": "Hakuna mtu anayecheza"}
        server = serve(two, fallback="fr", feedback=str(tmp_path))
        server.predict({"pairs": [german, swahili, german], "truncate": True, "feedback": True})
        server.feedback.close()
        kept = {path.parts[-3]: pq.read_table(path).to_pylist() for path in tmp_path.rglob("*.parquet")}
        assert {place: len(rows) for place, rows in kept.items()} == {"language=de": 2, "language=sw": 1}
        assert {row["model"] for row in kept["language=de"]} == {"nli-fr"}
        drift = server.ask("GET", "/drift").json()["languages"]
        # nor are they French that could be compared with its evaluation
        assert {code: told["pairs"] for code, told in drift.items()} == {"fr": 0, "sw": 1}
        counted = server.ask("GET", "/metrics").text
        assert 'conlst_text_languages_total{language="other",source="fallback"} 2.0' in counted
        assert 'conlst_feedback_pairs_total{state="written"} 3.0' in counted

    def test_a_request_is_in_the_sample_as_a_whole_or_not_at_all(self, two, tmp_path):
        swahili = {"premise": "Watu wawili wanacheza mpira", "hypothesis": "Mtu anacheza"}
        server = serve(two, fallback="fr", feedback=str(tmp_path), feedback_percent=50)
        kept = []
        for number in range(40):
            german = {"premise": f"{number} Kinder spielen im Garten mit dem Ball", "hypothesis": "Niemand spielt"}
            pairs = [german, swahili, {"premise": " ", "hypothesis": "mtu"}]
            server.predict({"pairs": pairs, "truncate": True, "partial": True, "feedback": True})
            kept.append(server.feedback.kept)
        server.feedback.close()
        assert set(np.diff([0, *kept]).tolist()) == {0, 2}
        assert server.feedback.offered == 80

    def test_a_language_that_a_caller_made_up_is_no_place_for_feedback(self, two, tmp_path):
        german = {"premise": "Zwei Kinder spielen im Garten mit dem Ball", "hypothesis": "Niemand spielt"}
        server = serve(two, fallback="fr", feedback=str(tmp_path))
        for language in ("x1", "x2", "zxx", "de", "DE", "de-AT"):
            answer = server.predict({**german, "language": language, "truncate": True, "feedback": True}).json()
            assert (answer["language"], answer["language_source"]) == ("fr", "fallback")
        server.feedback.close()
        kept = {path.parts[-3]: len(pq.read_table(path)) for path in tmp_path.rglob("*.parquet")}
        assert kept == {"language=und": 3, "language=de": 3}

    def test_metrics_tell_that_the_registry_or_the_feedback_fails(self, two, tmp_path, monkeypatch):
        def unreachable(_settings):
            raise RegistryError("no answer")

        (tmp_path / "language=sw").write_text("in the way of the folder")
        server = serve(two, feedback=str(tmp_path))
        counted = server.ask("GET", "/metrics").text
        assert "conlst_feedback_failing 0.0" in counted
        assert "conlst_registry_failing 0.0" in counted
        server.predict({**ONE, "feedback": True})
        server.feedback.close()
        monkeypatch.setattr("serving.watch.find_champions", unreachable)
        server.watcher.poll()
        counted = server.ask("GET", "/metrics").text
        assert "conlst_feedback_failing 1.0" in counted
        assert "conlst_registry_failing 1.0" in counted

    def test_finding_it_has_a_time_of_its_own(self, two):
        german = {"premise": "Zwei Kinder spielen im Garten mit dem Ball", "hypothesis": "Niemand spielt", "truncate": True}
        server = serve(two, fallback="fr")
        assert "detect;dur=" in server.predict(german).headers["server-timing"]
        assert "detect" not in server.predict(ONE).headers["server-timing"]

    def test_each_model_answers_its_own(self, two):
        server = serve(two)
        answers = [server.predict({**ONE, "language": code}).json()["predictions"][0]["probabilities"] for code in ("sw", "fr")]
        assert answers[0] != answers[1]


class TestDeadlines:
    def test_what_takes_longer_is_not_answered(self, folder, monkeypatch):
        server = serve(f"sw={folder}")
        predictor = server.catalogue.model_for("sw").predictor
        run, release = predictor.run, threading.Event()
        monkeypatch.setattr(predictor, "run", lambda rows: run(rows) if release.wait(30) else None)
        # in whose words is a matter of microseconds: the scheduler's timer and that of the whole request end together
        server.refusal(504, "deadline", server.predict(ONE, headers={"X-Deadline-Ms": "50"}))
        release.set()
        assert server.predict(ONE, headers={"X-Deadline-Ms": "20000"}).status_code == 200

    def test_a_body_that_does_not_end_is_not_waited_for(self, server):
        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(30)

        headers = {"content-type": "application/json", "X-Deadline-Ms": "50"}
        answer = server.ask("POST", "/predict", content=slow(), headers=headers)
        error = server.refusal(504, "deadline", answer)
        assert error["message"] == "no answer within 0.05 s; try again, or send fewer pairs"
        assert answer.headers["connection"] == "close"

    def test_a_client_that_left_leaves_the_queue(self, folder, monkeypatch):
        server = serve(f"sw={folder}")
        predictor = server.catalogue.model_for("sw").predictor
        run, begun, release = predictor.run, threading.Event(), threading.Event()

        def held(rows):
            begun.set()
            assert release.wait(30)
            return run(rows)

        monkeypatch.setattr(predictor, "run", held)
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers, "root_path": ""}

        async def crowd() -> int:
            left = asyncio.Event()
            messages = [{"type": "http.request", "body": json.dumps(ONE).encode(), "more_body": False}]
            sent: list[dict] = []

            async def receive() -> dict:
                if messages:
                    return messages.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict) -> None:
                sent.append(message)

            async with server.client() as client:
                first = asyncio.create_task(client.post("/predict", json=ONE))
                while not begun.is_set():
                    await asyncio.sleep(0.001)
                leaving = asyncio.create_task(server.app(scope, receive, send))
                while not server.scheduler.waiting_tokens:
                    await asyncio.sleep(0.001)
                left.set()
                await leaving
                # what the server does with the task afterwards is not cancelled any more
                assert leaving.cancelling() == 0
                waiting = server.scheduler.waiting
                release.set()
                assert (await first).status_code == 200
            assert sent[0]["status"] == 499
            return waiting

        assert asyncio.run(crowd()) == 0

    @pytest.mark.parametrize("where", ["body", "run"])
    def test_one_that_the_end_of_the_server_cuts_short_is_told_so(self, folder, monkeypatch, where):
        server = serve(f"sw={folder}")
        begun, release = threading.Event(), threading.Event()
        run = server.catalogue.model_for("sw").predictor.run

        def held(rows):
            begun.set()
            assert release.wait(30)
            return run(rows)

        async def body() -> AsyncIterator[bytes]:
            if where == "body":
                begun.set()
                await asyncio.sleep(30)
            yield json.dumps(ONE).encode()

        monkeypatch.setattr(server.catalogue.model_for("sw").predictor, "run", held)

        async def ended() -> httpx.Response:
            async with server.client() as client:
                asked = client.post("/predict", content=body(), headers={"content-type": "application/json"})
                task = asyncio.create_task(asked)
                while not begun.is_set():
                    await asyncio.sleep(0.001)
                # as uvicorn does when its grace is over
                task.cancel()
                return await task

        answer = asyncio.run(ended())
        release.set()
        assert "ending" in server.refusal(503, "not_ready", answer)["message"]
        assert int(answer.headers["retry-after"]) > 0
        assert 'conlst_requests_total{error="not_ready",route="/predict",status="503"} 1.0' in server.ask("GET", "/metrics").text

    @pytest.mark.parametrize("own", ["0", "-5", "1.5", "soon", "", "٣"])
    def test_one_that_is_no_number_is_refused(self, server, own):
        error = server.refusal(400, "invalid_request", server.predict(ONE, headers={"X-Deadline-Ms": own.encode()}))
        assert "X-Deadline-Ms" in error["message"]


def test_the_parts_of_the_time_are_told(server):
    header = server.predict(ONE).headers["server-timing"]
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", header))
    assert {"queue", "tokenize", "inference"} <= parts.keys()
    assert float(parts["inference"]) > 0


def test_feedback_is_kept_only_where_it_is_allowed(folder, tmp_path):
    server = serve(f"sw={folder}", feedback=str(tmp_path / "kept"), feedback_batch=1)
    server.predict(ONE)
    assert not list((tmp_path / "kept").rglob("*.parquet"))
    server.predict({**ONE, "feedback": True})
    server.feedback.close()
    (file,) = (tmp_path / "kept").rglob("*.parquet")
    (row,) = pq.read_table(file).to_pylist()
    assert (row["premise"], row["hypothesis"], row["language"]) == (ONE["premise"], ONE["hypothesis"], "sw")


def test_drift_does_not_count_what_the_model_before_a_swap_answered(folder, tmp_path, monkeypatch):
    server = serve(f"sw={folder}")
    predictor = server.catalogue.model_for("sw").predictor
    other = server.catalogue.open(Source("sw", "nli-sw", 2, str(tiny_onnx_folder(tmp_path / "other", seed=1))))
    run = predictor.run

    def swapped_meanwhile(rows):
        server.catalogue.swap("sw", other)
        return run(rows)

    monkeypatch.setattr(predictor, "run", swapped_meanwhile)
    for pairs in (0, len(PAIRS)):
        assert server.predict(MANY).status_code == 200
        assert server.ask("GET", "/drift").json()["languages"]["sw"]["pairs"] == pairs


def test_drift_counts_what_was_answered(folder):
    server = serve(f"sw={folder}")
    server.predict(MANY)
    told = server.ask("GET", "/drift").json()["languages"]["sw"]
    assert told["pairs"] == len(PAIRS)
    assert sum(told["served"]["labels"].values()) == pytest.approx(1)


@pytest.mark.parametrize("own", ["abc-1", "A" * 128, "018f:trace.7_x"])
def test_a_request_keeps_its_id(server, own):
    assert server.predict(ONE, headers={"X-Request-ID": own}).headers["x-request-id"] == own
    assert server.ask("GET", "/nope", headers={"X-Request-ID": own}).headers["x-request-id"] == own


@pytest.mark.parametrize("own", ["", "two words", "a" * 129, "{json}", "é"])
def test_a_missing_or_strange_id_is_replaced(server, own):
    headers = {"X-Request-ID": own.encode()} if own else {}
    first, second = (server.predict(ONE, headers=headers).headers["x-request-id"] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_texts_are_never_logged_but_the_id_is(server, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    canary = {"premise": CANARY, "hypothesis": CANARY, "language": "sw"}
    server.predict(canary, headers={"X-Request-ID": "id-ok"})
    server.predict({**canary, CANARY: CANARY})
    server.predict({**canary, "premise": CANARY * 500})
    server.ask("POST", "/predict", content=f'{{"premise": "{CANARY}"', headers={"content-type": "application/json"})
    server.ask("GET", f"/{CANARY}")
    zero_shot = {"text": CANARY, "labels": [CANARY, "leo"], "template": f"{CANARY} {{}}"}
    for question in ({**zero_shot, "language": "sw"}, zero_shot, {**zero_shot, "template": CANARY}):
        server.ask("POST", "/zero-shot", json=question)

    def fail(*_):
        raise RuntimeError("the model broke")

    monkeypatch.setattr(server.catalogue.model_for("sw").predictor, "encode", fail)
    answer = server.predict(canary, headers={"X-Request-ID": "id-broken"})
    error = server.refusal(500, "internal", answer)
    assert "broke" not in error["message"]
    ours = [
        record.getMessage() + (record.exc_text or "")
        for record in caplog.records
        if record.name.startswith(("serving", "conlst"))
    ]
    assert any("id-ok /predict 200" in line for line in ours)
    assert any("id-broken" in line and "the model broke" in line for line in ours)
    assert not [line for line in ours if CANARY in line]


def test_metrics_count_by_fixed_labels_only(folder):
    server = serve(f"sw={folder}")
    server.predict(MANY)
    server.predict({**ONE, "language": "qu"})
    for path in ("/a", "/b", "/c"):
        server.ask("GET", path)
    text = server.ask("GET", "/metrics").text
    assert 'conlst_requests_total{error="",route="/predict",status="200"} 1.0' in text
    assert 'conlst_requests_total{error="unknown_language",route="/predict",status="404"} 1.0' in text
    assert 'conlst_requests_total{error="not_found",route="other",status="404"} 3.0' in text
    counts = re.findall(r'conlst_predictions_total\{label="\w+",language="sw"\} (\S+)', text)
    assert sum(map(float, counts)) == len(PAIRS)
    assert '"qu"' not in text


def test_models_says_what_is_served(tmp_path):
    folders = {language: tiny_onnx_folder(tmp_path / language, language, seed=seed) for seed, language in enumerate(("fr", "sw"))}
    server = serve(",".join(f"{language}={folder}" for language, folder in folders.items()))
    body = server.ask("GET", "/models").json()
    assert body["ready"] is True
    assert {model["language"]: model["digest"] for model in body["models"]} == {
        language: read_manifest(folder).digest for language, folder in folders.items()
    }
    assert body["models"][0]["max_tokens"] == 16
    assert body["limits"] == {"pairs": 64, "characters": 4000, "body_bytes": 1_000_000}
    assert server.predict(ONE).json()["predictions"] != server.predict({**ONE, "language": "fr"}).json()["predictions"]


def test_a_refused_promotion_is_seen_beside_the_model_that_goes_on(folder):
    server = serve(f"sw={folder}")
    since = datetime(2026, 1, 2, tzinfo=UTC)
    server.catalogue.refuse("sw", Refusal(7, "d" * 64, "golden pair 0 is answered otherwise", since))
    server.catalogue.refuse("fr", Refusal(None, None, "has no digest", since))
    body = server.ask("GET", "/models").json()
    (model,) = body["models"]
    told = {"version": 7, "digest": "d" * 64, "reason": "golden pair 0 is answered otherwise", "since": "2026-01-02T00:00:00Z"}
    assert model["refused"] == body["refused"]["sw"] == told
    assert body["refused"]["fr"]["reason"] == "has no digest"
    assert (model["gate"], model["temperature"], body["fallback"]) == (None, 1.0, None)
    assert 'conlst_refused_promotions{language="sw"} 1.0' in server.ask("GET", "/metrics").text
    assert server.predict(ONE).status_code == 200


def test_the_openapi_document_names_every_type_of_error_and_the_client_knows_no_other():
    told = openapi_document()["components"]["schemas"]["ErrorDetail"]["properties"]["type"]["enum"]
    assert tuple(told) == get_args(Kind)
    assert CLIENT_KINDS.keys() <= set(told)


def test_the_openapi_document_is_closed_and_its_examples_are_answered(tmp_path):
    server = serve(f"sw={tiny_onnx_folder(tmp_path / 'sw', max_length=128)}")
    for path in ("/openapi.json", "/docs.json"):
        answer = server.ask("GET", path)
        assert answer.json() == openapi_document()
        assert answer.headers["x-request-id"]
    document = openapi_document()
    # those are BentoML's own answers
    assert "X-Request-ID, but for those of the probes /livez and /readyz" in document["info"]["description"]
    assert document["info"]["version"] == __version__
    text = json.dumps(document)
    assert "#/$defs" not in text
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
    for path, schema in (("/predict", "Answer"), ("/zero-shot", "ZeroShotAnswer")):
        post = document["paths"][path]["post"]
        for example in post["requestBody"]["content"]["application/json"]["examples"].values():
            answer = server.ask("POST", path, json=example["value"])
            assert answer.status_code == 200, answer.text
            assert answer.json().keys() == document["components"]["schemas"][schema]["properties"].keys()
        assert {"400", "401", "404", "413", "415", "422", "429", "503", "504"} <= post["responses"].keys()


def test_nothing_is_answered_before_the_golden_pairs_are(folder):
    server = Server(Settings(models=f"sw={folder}", threads=1, auth="none"))
    answer = server.predict(ONE)
    assert "loaded" in server.refusal(503, "not_ready", answer)["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert server.ask("GET", "/models").json()["ready"] is False
    server.catalogue.load()
    assert server.predict(ONE).status_code == 200


def test_one_model_that_answers_otherwise_is_told_and_the_others_are_served(folder, tmp_path, caplog):
    wrong = tiny_onnx_folder(tmp_path / "fr", "fr", golden_offset=0.5)
    server = Server(Settings(models=f"sw={folder},fr={wrong}", threads=1, auth="none"))
    server.catalogue.load()
    assert server.predict(ONE).status_code == 200
    body = server.ask("GET", "/models").json()
    assert (body["ready"], [model["language"] for model in body["models"]]) == (True, ["sw"])
    assert "golden pair 0" in body["refused"]["fr"]["reason"]
    assert 'conlst_refused_promotions{language="fr"} 1.0' in server.ask("GET", "/metrics").text
    assert "golden pair 0" in caplog.text


def test_a_needed_model_that_answers_otherwise_keeps_the_server_unready(folder, tmp_path):
    wrong = tiny_onnx_folder(tmp_path / "fr", "fr", golden_offset=0.5)
    server = Server(Settings(models=f"sw={folder},fr={wrong}", languages="fr,sw", threads=1, auth="none"))
    server.catalogue.load()
    assert "golden pair 0" in server.refusal(503, "not_ready", server.predict(ONE))["message"]
    assert "golden pair 0" in server.ask("GET", "/models").json()["reason"]


def test_what_has_too_many_characters_is_cut_on_demand_and_told(server):
    pairs = [{"premise": "mvua " * 900, "hypothesis": "leo"}, MANY["pairs"][0], {"premise": "leo", "hypothesis": "mvua " * 900}]
    error = server.refusal(422, "too_long", server.predict({**MANY, "pairs": pairs}))
    assert error["index"] == 0
    assert '4500 characters, at most 4000 are read: shorten it, or send "truncate": true' in error["message"]
    told = server.predict({**MANY, "pairs": pairs, "truncate": True}).json()["predictions"]
    assert [prediction["truncated"] for prediction in told] == [True, False, True]
    shorter = [{role: text[:4000] for role, text in pair.items()} for pair in pairs]
    assert told == server.predict({**MANY, "pairs": shorter, "truncate": True}).json()["predictions"]


def test_a_cut_is_told_where_the_model_would_have_read_all(folder):
    server = serve(f"sw={folder}", max_characters=10)
    question = {"hypothesis": "leo", "language": "sw", "truncate": True}
    cut, whole = (server.predict({**question, "premise": premise}) for premise in ("mvua leo mtu", "mvua leo m"))
    assert [answer.json()["predictions"][0]["truncated"] for answer in (cut, whole)] == [True, False]
    assert cut.json()["predictions"][0]["probabilities"] == whole.json()["predictions"][0]["probabilities"]
    server.refusal(422, "empty_text", server.predict({**ONE, "premise": " " * 10 + "mvua", "truncate": True}))


def test_configured_limits_hold(folder):
    server = serve(f"sw={folder}", max_pairs=1, max_characters=10, max_body_bytes=200)
    server.refusal(413, "too_many_pairs", server.predict({**MANY, "pairs": MANY["pairs"][:2]}))
    server.refusal(422, "too_long", server.predict({**ONE, "premise": "m" * 11}))
    server.refusal(413, "too_large", server.predict({**ONE, "premise": "m" * 200}))
