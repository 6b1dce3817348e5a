"""The load generator of ``benchmarks/serving_load.py`` reads answers as they come."""

import asyncio
from collections.abc import Iterator

import pytest

from benchmark import benchmark

load = benchmark("serving_load")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 2\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Answers what it is given, in turn, a few bytes at a time; an empty answer ends the connection."""

    def __init__(self, *answers: bytes) -> None:
        self._answers: Iterator[bytes] = iter(answers)
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.readuntil(b"\r\n\r\n{}"):
            answer = next(self._answers)
            for first in range(0, len(answer), 7):
                writer.write(answer[first : first + 7])
                await writer.drain()
                await asyncio.sleep(0)
            if not answer or b"close" in answer:
                break
        writer.close()


async def asked(server: Server, count: int) -> list[tuple[int, str | None]]:
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        target = load.Target(listening.sockets[0].getsockname()[1], "/predict", [b"{}"])
        connection, requests = load.Connection(target.port), target.requests()
        samples = [await connection.ask(next(requests)) for _ in range(count)]
        connection.close()
    return [(sample.status, sample.retry_after) for sample in samples]


def test_answers_in_pieces_refusals_and_lost_connections_are_told_apart() -> None:
    server = Server(OK, BUSY, OK, b"", OK)
    assert asyncio.run(asked(server, 5)) == [(200, None), (429, "2"), (200, None), (0, None), (200, None)]
    # opened again after the one that the server announced to close, and after the one that it just closed
    assert server.connections == 3


def test_an_answer_without_a_length_ends_the_measurement() -> None:
    with pytest.raises(ValueError, match="without a length"):
        asyncio.run(asked(Server(b"HTTP/1.1 200 OK\r\n\r\n"), 1))


def test_a_loop_keeps_its_connections_and_a_rate_its_number() -> None:
    async def measured() -> tuple[int, int, float]:
        server = Server(*[OK] * 10_000)
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            target = load.Target(listening.sockets[0].getsockname()[1], "/predict", [b"{}"])
            looped = await load.in_a_loop(target, 3, 0.2)
            kept = server.connections
            offered = await load.at_a_rate(target, 100, 1.0, seed=0)
        assert {sample.status for sample in (*looped, *offered)} == {200}
        row = load.summary(looped, 1, looped[0].begin, looped[-1].end + 1e-9)
        assert row["statuses"] == {"200": len(looped)}
        return kept, len(offered), row["pairs_per_second"]

    kept, offered, speed = asyncio.run(measured())
    assert kept == 3
    # of random distances: one standard deviation is ten
    assert 60 <= offered <= 140
    assert speed > 0
