import asyncio
import json
import logging
import pickle
import re
import threading
from collections.abc import AsyncIterator
from functools import partial

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlst import __version__
from conlst.contract.artifacts import read_manifest
from conlst.contract.labels import NAMES
from served import CANARY, MANY, ONE, Bomb, Server, expected, serve
from serving.lane import Lane
from serving.models import Catalogue
from serving.openapi import openapi_document
from serving.settings import Settings
from tiny_onnx import PAIRS, tiny_onnx_folder


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
    assert body["model"] == {"name": "nli-sw", "version": None, "digest": read_manifest(folder).digest}


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


@pytest.mark.parametrize("text", ["mvua\x00leo", "\u202emvua\u200f", "\ufeff", "🌧️", "م\u0651طر", "a\u0300" * 20, "\U0010ffff"])
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
        ({"pairs": MANY["pairs"]}, "language"),
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
    release, encode = threading.Event(), predictor.encode

    def held(pairs):
        assert release.wait(30)
        return encode(pairs)

    monkeypatch.setattr(predictor, "encode", held)

    async def crowd() -> tuple[list[httpx.Response], httpx.Response, list[httpx.Response]]:
        async with server.client() as client:
            inside = [asyncio.create_task(client.post("/predict", json=ONE)) for _ in range(3)]
            while server.lane.waiting < 2:
                await asyncio.sleep(0)
            refused = [await client.post("/predict", json=ONE) for _ in range(2)]
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
    assert server.lane.waiting == 0
    assert server.predict(ONE).status_code == 200


def test_work_cancelled_while_it_waits_is_never_begun():
    async def scenario() -> tuple[list[str], int]:
        lane, release, done = Lane(max_waiting=1), threading.Event(), []
        running = asyncio.create_task(lane.run(partial(release.wait, 30)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(lane.run(partial(done.append, "cancelled")))
        while not lane.waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        # its place is free again
        third = asyncio.create_task(lane.run(partial(done.append, "third")))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(running, third)
        return done, lane.waiting

    assert asyncio.run(scenario()) == (["third"], 0)


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

    def fail(_):
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
    assert 'conlst_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'conlst_requests_total{route="/predict",status="404"} 1.0' in text
    assert 'conlst_requests_total{route="other",status="404"} 3.0' in text
    counts = re.findall(r'conlst_predictions_total\{label="\w+",language="sw"\} (\S+)', text)
    assert sum(map(float, counts)) == len(PAIRS)
    assert '"qu"' not in text


def test_models_and_the_page_say_what_is_served(tmp_path):
    folders = {language: tiny_onnx_folder(tmp_path / language, language, seed=seed) for seed, language in enumerate(("fr", "sw"))}
    server = serve(",".join(f"{language}={folder}" for language, folder in folders.items()))
    body = server.ask("GET", "/models").json()
    assert body["ready"] is True
    assert {model["language"]: model["digest"] for model in body["models"]} == {
        language: read_manifest(folder).digest for language, folder in folders.items()
    }
    assert body["models"][0]["max_tokens"] == 16
    assert body["limits"] == {"pairs": 64, "characters": 4000, "body_bytes": 1_000_000}
    page = server.ask("GET", "/")
    assert "nli-fr" in page.text
    assert "nli-sw" in page.text
    assert not re.search(r"<script|<link|<img|src=|@import|//[a-z]", page.text.replace("http://…/predict", ""))
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert server.predict(ONE).json()["predictions"] != server.predict({**ONE, "language": "fr"}).json()["predictions"]


def test_the_openapi_document_is_closed_and_its_examples_are_answered(tmp_path):
    server = serve(f"sw={tiny_onnx_folder(tmp_path / 'sw', max_length=128)}")
    for path in ("/openapi.json", "/docs.json"):
        assert server.ask("GET", path).json() == openapi_document()
    document = openapi_document()
    assert document["info"]["version"] == __version__
    text = json.dumps(document)
    assert "#/$defs" not in text
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
    post = document["paths"]["/predict"]["post"]
    for example in post["requestBody"]["content"]["application/json"]["examples"].values():
        answer = server.predict(example["value"])
        assert answer.status_code == 200
        assert answer.json().keys() == document["components"]["schemas"]["Answer"]["properties"].keys()
    assert {"400", "404", "413", "415", "422", "429", "503"} <= post["responses"].keys()


def test_nothing_is_answered_before_the_golden_pairs_are(folder):
    server = Server(Settings(), Catalogue(), Lane(1))
    answer = server.predict(ONE)
    assert "loaded" in server.refusal(503, "not_ready", answer)["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert server.ask("GET", "/models").json()["ready"] is False
    server.catalogue.load(Settings(models=f"sw={folder}", threads=1))
    assert server.predict(ONE).status_code == 200


def test_one_model_that_answers_otherwise_keeps_the_server_unready(folder, tmp_path, caplog):
    wrong = tiny_onnx_folder(tmp_path / "fr", "fr", golden_offset=0.5)
    server = Server(Settings(), Catalogue(), Lane(1))
    server.catalogue.load(Settings(models=f"sw={folder},fr={wrong}", threads=1))
    assert "golden pair 0" in server.refusal(503, "not_ready", server.predict(ONE))["message"]
    assert "golden pair 0" in server.ask("GET", "/models").json()["reason"]
    assert "Not ready: " in server.ask("GET", "/").text
    assert "golden pair 0" in caplog.text


def test_configured_limits_hold(folder):
    server = serve(f"sw={folder}", max_pairs=1, max_characters=10, max_body_bytes=200)
    server.refusal(413, "too_many_pairs", server.predict({**MANY, "pairs": MANY["pairs"][:2]}))
    server.refusal(422, "too_long", server.predict({**ONE, "premise": "m" * 11}))
    server.refusal(413, "too_large", server.predict({**ONE, "premise": "m" * 200}))
