"""Helpers of the serving tests: the application in this process, and questions for it."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from serving.http import create_app
from serving.lane import Lane
from serving.models import Catalogue
from serving.settings import Settings
from tiny_onnx import PAIRS, slow_logits

CHECKOUT = Path(__file__).parents[1]
CANARY = "kanari7f3a"
ONE = {"premise": PAIRS[0][0], "hypothesis": PAIRS[0][1], "language": "sw"}
MANY = {"pairs": [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in PAIRS], "language": "sw"}


@dataclass
class Server:
    """The application in this process, asked without a network."""

    settings: Settings
    catalogue: Catalogue
    lane: Lane

    def __post_init__(self):
        self.app = create_app(self.settings, self.catalogue, self.lane)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    def ask(self, method: str, path: str, **request) -> httpx.Response:
        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **request)

        return asyncio.run(once())

    def predict(self, question: object, **request) -> httpx.Response:
        return self.ask("POST", "/predict", json=question, **request)

    def refusal(self, status: int, kind: str, response: httpx.Response) -> dict:
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (status, kind), response.text
        assert error["message"]
        return error


def serve(models: str, **changes) -> Server:
    configured = Settings(models=models, threads=1, **changes)
    server = Server(configured, Catalogue(), Lane(configured.max_waiting))
    server.catalogue.load(configured)
    assert server.catalogue.problem is None
    return server


def expected(pairs):
    exponentials = np.exp(slow_logits(pairs))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)
