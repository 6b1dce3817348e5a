"""Load over HTTP/1.1, in a loop on open connections or at a given rate. Written for little work a request: a client library's own
would be a large part of what a fast server is measured with."""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# more than this many unanswered requests would measure the generator
_MOST_CONNECTIONS = 2000


@dataclass(frozen=True)
class Sample:
    """A request. ``status`` 0 is one that got no answer; times are of ``time.perf_counter``."""

    begin: float
    end: float
    status: int
    retry_after: str | None

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Target:
    """Where requests go, and the bodies that take turns."""

    port: int
    path: str
    bodies: Sequence[bytes]

    def requests(self) -> Iterator[bytes]:
        heads = [
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            for body in self.bodies
        ]
        while True:
            yield from (head + body for head, body in zip(heads, self.bodies, strict=True))


class Connection(asyncio.Protocol):
    """A connection that is kept, and opened again when the server ended it. Asks one thing at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, dict[bytes, bytes], bytes]] | None = None

    async def ask(self, request: bytes) -> Sample:
        begin = time.perf_counter()
        try:
            status, headers, _ = await self.exchange(request)
        except OSError:
            self.close()
            status, headers = 0, {}
        return Sample(begin, time.perf_counter(), status, headers.get(b"retry-after", b"").decode() or None)

    async def exchange(self, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers by lower-case name, and body of the answer.

        Raises:
            OSError: if the server ends the connection before.
            ValueError: if what it answers does not tell its length.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        self._received, self._answer = b"", loop.create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank or self._answer is None or self._answer.done():
            return
        first, *lines = head.split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if b"content-length" not in headers:
            self._answer.set_exception(ValueError(f"an answer without a length: {head!r}"))
            return
        if len(body) < int(headers[b"content-length"]):
            return
        if headers.get(b"connection") == b"close":
            self.close()
        self._answer.set_result((int(first.split()[1]), headers, body))

    def connection_lost(self, _: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server ended the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def in_a_loop(target: Target, connections: int, seconds: float) -> list[Sample]:
    """Each connection asks again as soon as it is answered. What is under way at the end is waited for."""
    requests = target.requests()
    end = time.perf_counter() + seconds
    samples: list[Sample] = []

    async def client() -> None:
        connection = Connection(target.port)
        while time.perf_counter() < end:
            samples.append(await connection.ask(next(requests)))
        connection.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return samples


async def at_a_rate(target: Target, rate: float, seconds: float, seed: int) -> list[Sample]:
    """Requests come at random (exponential) distances whether or not earlier ones are answered."""
    generator = random.Random(seed)
    requests = target.requests()
    idle: list[Connection] = []
    open_connections = 0
    samples: list[Sample] = []
    tasks: set[asyncio.Task[None]] = set()

    async def ask(connection: Connection, request: bytes) -> None:
        samples.append(await connection.ask(request))
        idle.append(connection)

    begin = due = time.perf_counter()
    while due < begin + seconds:
        # one that comes late because the loop was busy is not left out
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if not idle:
            open_connections += 1
            if open_connections > _MOST_CONNECTIONS:
                raise RuntimeError(f"{_MOST_CONNECTIONS} requests are unanswered: the server does not bound its queue")
            idle.append(Connection(target.port))
        task = asyncio.create_task(ask(idle.pop(), next(requests)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += generator.expovariate(rate)
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return samples


def summary(samples: Sequence[Sample], pairs: int, begin: float, end: float) -> dict[str, Any]:
    """Pairs a second and latencies of the answers that came between two times.

    Args:
        pairs: of each request.
    """
    counted = [sample for sample in samples if begin <= sample.end < end]
    good = sorted(sample.seconds * 1000 for sample in counted if sample.status == 200)
    return {
        "pairs_per_second": pairs * len(good) / (end - begin),
        "p50_ms": statistics.median(good) if good else None,
        "p99_ms": good[min(len(good) - 1, int(0.99 * len(good)))] if good else None,
        "statuses": dict(sorted(Counter(str(sample.status) for sample in counted).items())),
    }
