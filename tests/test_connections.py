"""Connections of a real uvicorn, whose own wait for ever for a request."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

import serving.service  # noqa: F401
from serving.connections import Connection

SECONDS = 0.2
ASKED = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[float]]


async def slow_app(scope, _, send):
    if scope["type"] == "http":
        await asyncio.sleep(float(scope["query_string"] or 0))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def _with_server(client: Client) -> float:
    config = uvicorn.Config(slow_app, port=0, lifespan="off", log_level="error", timeout_keep_alive=2)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    try:
        return await client(reader, writer)
    finally:
        writer.close()
        server.should_exit = True
        await serving


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.connections._HEAD_SECONDS", SECONDS)


async def _until_closed(reader: asyncio.StreamReader) -> float:
    """Seconds until the other side closed."""
    begin = time.monotonic()
    assert await asyncio.wait_for(reader.read(), 30) == b""
    return time.monotonic() - begin


def test_the_servers_that_bentoml_starts_have_these_connections() -> None:
    config = uvicorn.Config(slow_app)
    config.load()
    assert config.http_protocol_class is Connection


@pytest.mark.parametrize("sent", [b"", ASKED[:20]], ids=["nothing", "half a head"])
def test_one_that_sends_no_whole_head_is_closed(sent: bytes) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(sent)
        return await _until_closed(reader)

    assert SECONDS < asyncio.run(_with_server(client)) < 2


def test_one_that_sends_half_a_head_after_an_answer_is_closed() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(ASKED)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(ASKED[:20])
        return await _until_closed(reader)

    assert SECONDS / 2 < asyncio.run(_with_server(client)) < 2


@pytest.mark.parametrize("asked_before", [False, True])
def test_one_that_sends_a_head_without_end_is_closed(asked_before: bool) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        if asked_before:
            writer.write(ASKED)
            await reader.readuntil(b"ok")
        writer.write(ASKED[:-2])
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 10_000_000:
                writer.write(b"x: " + b"a" * 1000 + b"\r\n")
                await writer.drain()
                sent += 1005
        return sent

    # what was on its way is sent, but not kept
    assert asyncio.run(_with_server(client)) < 10_000_000


def test_bodies_are_no_heads() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        # answered before it is read, as what is refused
        for _ in range(2):
            writer.write(ASKED.replace(b"GET", b"POST")[:-2] + b"Content-Length: 300000\r\n\r\n" + b"a" * 300_000)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        return 0

    asyncio.run(_with_server(client))


def test_one_that_rests_between_requests_is_left_to_the_keep_alive_timer() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(ASKED)
        await reader.readuntil(b"ok")
        return await _until_closed(reader)

    assert asyncio.run(_with_server(client)) > 1.5


def test_one_whose_body_came_after_the_answer_may_rest_as_long() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(ASKED.replace(b"GET", b"POST")[:-2] + b"Content-Length: 3\r\n\r\n")
        await reader.readuntil(b"ok")
        writer.write(b"abc")
        return await _until_closed(reader)

    assert 1.5 < asyncio.run(_with_server(client)) < 4


def test_one_that_waits_for_an_answer_is_left_alone() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(ASKED.replace(b"/ ", b"/?1.0 "))
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        return 0

    asyncio.run(_with_server(client))
