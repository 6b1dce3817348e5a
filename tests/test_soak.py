"""A real server under mixed load for some seconds: every answer right, memory flat, overload refused and survived."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest

from conlst.contract.labels import NAMES
from test_serving_process import Process, start, stop
from tiny_onnx import PAIRS, slow_logits, tiny_onnx_folder

SECONDS = 20
SEEDS = {"sw": 0, "fr": 1}
# between the second and the last third, in which some thousand requests are answered: half a megabyte was seen, and BentoML's
# timers of 7 kB a request show
GROWTH_MB = 3

JSON = {"content-type": "application/json"}

Question = tuple[str, list[tuple[str, str]]]

POISON = [
    (b"{", 400),
    (b"\x80\x05pickle", 400),
    (json.dumps({"language": "sw", "premise": "mvua", "hypothesis": ""}).encode(), 422),
    (json.dumps({"language": "sw", "premise": "mvua", "hypothesis": "\ud83d"}).encode(), 422),
    (json.dumps({"language": "sw", "premise": "mvua " * 700, "hypothesis": "leo"}).encode(), 422),
    (json.dumps({"language": "qu", "premise": "mvua", "hypothesis": "leo"}).encode(), 404),
    (json.dumps({"language": "sw", "pairs": [{"premise": "mvua", "hypothesis": "leo"}] * 65}).encode(), 413),
    (b" " * 2_000_000, 413),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    root = tmp_path_factory.mktemp("soak")
    for language, seed in SEEDS.items():
        tiny_onnx_folder(root / language, language, seed=seed)
    models = ",".join(f"{language}={root / language}" for language in SEEDS)
    process = start(root, models, CONLST_MAX_WAITING="16", CONLST_BATCH_TOKENS="128")
    try:
        process.until(lambda answer: answer.status_code == 200)
        yield process
    finally:
        stop(process)


def resident_mb(process: Process) -> float:
    parent = psutil.Process(process.popen.pid)
    return sum(each.memory_info().rss for each in [parent, *parent.children(recursive=True)]) / 1e6


def question(number: int) -> Question:
    """One of many mixes of language, size and lengths, the same for a number every time."""
    rng = np.random.default_rng(number)
    return str(rng.choice(list(SEEDS))), [PAIRS[place] for place in rng.integers(0, len(PAIRS), rng.choice([1, 1, 2, 7, 40]))]


def body(asked: Question) -> bytes:
    language, pairs = asked
    return json.dumps({"language": language, "pairs": [{"premise": p, "hypothesis": h} for p, h in pairs]}).encode()


async def ask(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await client.post("/predict", content=content, headers=JSON)


def check(asked: Question, answer: httpx.Response) -> None:
    """The answer is that of the slow reference, pair by pair, so that of each pair alone."""
    assert answer.status_code == 200, answer.text
    language, pairs = asked
    found = [[prediction["probabilities"][name] for name in NAMES] for prediction in answer.json()["predictions"]]
    exponentials = np.exp(slow_logits(pairs, SEEDS[language]))
    np.testing.assert_allclose(found, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_mixed_load_with_poison_in_it_is_answered_right_in_flat_memory(server: Process) -> None:
    end = time.monotonic() + SECONDS
    resident: list[float] = []
    answered: Counter[str] = Counter()

    async def asks(client: httpx.AsyncClient, first: int) -> None:
        number = first
        while time.monotonic() < end:
            check(question(number % 97), await ask(client, body(question(number % 97))))
            answered["good"] += 1
            number += 1

    async def poisons(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            for content, status in POISON:
                try:
                    assert (await ask(client, content)).status_code == status
                except httpx.TransportError:
                    # a server that refuses a body need not read it, and the refusal may be lost when it then closes
                    assert status == 413
                answered["poison"] += 1

    async def leaves() -> None:
        content = body(("sw", PAIRS * 16))
        head = f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        while time.monotonic() < end:
            _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
            writer.write(head.encode() + content)
            await writer.drain()
            writer.close()
            answered["left"] += 1
            await asyncio.sleep(0.05)

    async def watches() -> None:
        while time.monotonic() < end:
            resident.append(resident_mb(server))
            await asyncio.sleep(0.2)

    async def everyone() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client, asyncio.TaskGroup() as tasks:
            for work in (*(asks(client, 31 * first) for first in range(6)), poisons(client), leaves(), watches()):
                tasks.create_task(work)

    asyncio.run(everyone())
    assert min(answered["good"], answered["poison"], answered["left"]) > 10, answered
    settled = resident[len(resident) // 3 :]
    half = len(settled) // 2
    assert np.median(settled[half:]) - np.median(settled[:half]) < GROWTH_MB, resident
    assert gauge(server, "conlst_waiting_requests") == 0


@pytest.mark.slow
def test_overload_is_refused_with_a_time_to_come_back_and_then_over(server: Process) -> None:
    many = ("sw", PAIRS * 16)

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(ask(client, body(many)) for _ in range(300)))

    answers = asyncio.run(flood())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            check(many, answer)
        else:
            assert answer.json()["error"]["type"] == "busy"
            assert int(answer.headers["retry-after"]) >= 1
    # nobody is left in it, so the very next ones are answered
    for number in range(10):
        check(question(number), httpx.post(f"{server.url}/predict", content=body(question(number)), headers=JSON))
    assert gauge(server, "conlst_waiting_requests") == 0


def gauge(server: Process, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))
