"""A translation service of LibreTranslate's shape."""

import email.utils
import logging
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from conlst.contract.errors import BackendError

KEY_VARIABLE = "CONLST_TRANSLATE_KEY"

_BATCH = 32
_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)

_log = logging.getLogger(__name__)


class HttpTranslator:
    """Posts batches of texts to ``<endpoint>/translate``.

    The API key comes from the environment variable ``CONLST_TRANSLATE_KEY`` alone and is in no message. The version is the
    endpoint: the protocol tells no version of the model behind it.

    Args:
        sleep: waits so many seconds before a request is sent again.
    """

    name = "http"

    def __init__(self, endpoint: str, sleep: Callable[[float], None] = time.sleep) -> None:
        try:
            url = httpx.URL(endpoint)
        except httpx.InvalidURL as error:
            raise BackendError(f"translation endpoint {endpoint!r} is not a URL: {error}") from error
        if url.userinfo or url.query:
            # such a URL would stand in configurations, manifests and logs
            raise BackendError(f"the translation endpoint on {url.host} must be a plain URL; give its key in {KEY_VARIABLE}")
        if url.scheme not in ("http", "https") or not url.host:
            raise BackendError(f"translation endpoint {endpoint!r} is not of the form http(s)://host[:port][/path]")
        self.version = str(url).rstrip("/").removesuffix("/translate")
        self._sleep = sleep

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Translate in batches; a busy or broken service is asked again a few times.

        Raises:
            BackendError: if it stays busy or broken, refuses the request, or answers in another shape.
        """
        translations: list[str] = []
        with httpx.Client(timeout=_TIMEOUT) as client:
            for start in range(0, len(texts), _BATCH):
                batch = texts[start : start + _BATCH]
                body: dict[str, Any] = {"q": batch, "source": source, "target": target, "format": "text"}
                if key := os.environ.get(KEY_VARIABLE):
                    body["api_key"] = key
                translations += self._translations(self._post(client, body), len(batch))
        return translations

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        problem = ""
        for attempt in range(1, _ATTEMPTS + 1):
            asked_for = None
            try:
                response = client.post(f"{self.version}/translate", json=body)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response
                problem = f"status {response.status_code}: {_told(response)}"
                if response.status_code != 429 and response.status_code < 500:
                    raise BackendError(
                        f"{self.version} refused to translate {body['source']} to {body['target']}, {problem}; "
                        f"check the languages it offers, its limits and {KEY_VARIABLE}"
                    )
                asked_for = _retry_after(response)
            if attempt < _ATTEMPTS:
                wait = _wait(attempt) if asked_for is None else asked_for
                _log.info("%s: %s; asking again in %.1f s", self.version, problem, wait)
                self._sleep(wait)
        raise BackendError(f"{self.version} did not translate in {_ATTEMPTS} attempts, last {problem}; try again later")

    def _translations(self, response: httpx.Response, expected: int) -> list[str]:
        try:
            translated = response.json()["translatedText"]
        except (ValueError, KeyError, TypeError):
            translated = None
        if not isinstance(translated, list) or not all(isinstance(text, str) for text in translated):
            raise BackendError(f"{self.version} answered without a list translatedText; it is not of LibreTranslate's shape")
        if len(translated) != expected:
            raise BackendError(f"{self.version} answered {len(translated)} texts for {expected}")
        return translated


def open_translator(spec: str) -> HttpTranslator:
    return HttpTranslator(spec)


def _wait(attempt: int) -> float:
    """Doubling, with jitter so that parallel runs do not come back together."""
    return min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.5)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the service asks to wait, as a number or a date; bounded."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_WAIT_SECONDS)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max((when - datetime.now(UTC)).total_seconds(), 0.0), _LONGEST_WAIT_SECONDS)


def _told(response: httpx.Response) -> str:
    """What the service says is wrong; never more than a line."""
    try:
        message = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    return " ".join(str(message).split())[:200]
