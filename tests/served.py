"""Helpers of the serving tests: the application in this process, and questions for it."""

import asyncio
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx
import numpy as np

from serving.detection import Detector
from serving.drift import Drift
from serving.feedback import Feedback
from serving.http import Parts, create_app
from serving.models import Catalogue
from serving.scheduler import Scheduler
from serving.settings import Settings
from serving.watch import Watcher
from tiny_onnx import PAIRS, slow_logits

CHECKOUT = Path(__file__).parents[1]
CANARY = "kanari7f3a"
ONE = {"premise": PAIRS[0][0], "hypothesis": PAIRS[0][1], "language": "sw"}
MANY = {"pairs": [{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in PAIRS], "language": "sw"}


@cache
def detector() -> Detector:
    return Detector()


@dataclass
class Server:
    """The application in this process, asked without a network. Its models are not loaded yet."""

    settings: Settings

    def __post_init__(self):
        settings = self.settings
        self.catalogue = Catalogue(settings)
        self.scheduler = Scheduler(settings.max_waiting, settings.max_waiting_tokens, settings.batch_tokens, settings.runs)
        self.feedback = Feedback(settings)
        self.watcher = Watcher(self.catalogue, settings)
        drift = Drift(self.catalogue)
        self.app = create_app(Parts(settings, self.catalogue, self.scheduler, detector(), self.feedback, drift, self.watcher))

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
    server = Server(Settings(**{"models": models, "threads": 1, "auth": "none", **changes}))
    server.catalogue.load()
    assert server.catalogue.problem is None
    return server


def expected(pairs):
    exponentials = np.exp(slow_logits(pairs))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)
