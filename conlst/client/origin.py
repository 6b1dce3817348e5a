"""The one server that a client speaks to, and the key that is for it alone."""

import os
import re
import uuid
from typing import Any

import httpx

from conlst import __version__
from conlst.client.calls import Call, T
from conlst.client.exchange import Backoff, Exchange
from conlst.contract.errors import ConfigError

KEY_VARIABLE = "CONLST_API_KEY"
_CONNECT_SECONDS = 10.0


class Origin:
    """Makes the requests to an address, with the headers that every one has.

    Args:
        url: ``http(s)://host[:port][/path]``.
        api_key: ``None`` for that of the variable ``CONLST_API_KEY``, ``""`` for none.
        timeout: seconds for one question, repetitions and their pauses included.

    Raises:
        ConfigError: if one of them cannot be used.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, backoff: Backoff) -> None:
        self.url = _checked(url)
        self._headers = {"User-Agent": f"conlst/{__version__}", "Accept": "application/json"}
        key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
        if key := key.strip():
            if not re.fullmatch(r"[!-~]+", key):
                # never quoted: errors end up in logs
                raise ConfigError("the API key holds spaces or characters beyond ASCII; give the key alone")
            self._headers["Authorization"] = f"Bearer {key}"
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout}, give seconds above 0")
        self._timeout = timeout
        self._backoff = backoff

    def begin(self, call: Call[T]) -> Exchange:
        return Exchange(call, self.url + call.path, self._timeout, self._backoff, uuid.uuid4().hex)

    def request(self, call: Call[T], exchange: Exchange) -> dict[str, Any]:
        """Arguments of ``httpx.Client.stream`` for the next attempt."""
        left = exchange.left()
        headers = {**self._headers, "X-Request-ID": exchange.request_id}
        if call.body is not None:
            # what nobody waits for any more need not be computed
            headers |= {"Content-Type": "application/json", "X-Deadline-Ms": str(max(1, int(left * 1000)))}
        return {
            "method": call.method,
            "url": self.url + call.path,
            "headers": headers,
            "content": call.body,
            "timeout": httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS)),
        }


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"{url!r} is no address ({error}); give http://host:port") from error
    if parsed.userinfo:
        raise ConfigError("the address holds a user or password; give a key as api_key or in CONLST_API_KEY")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigError(f"{url!r} is not of the form http(s)://host[:port][/path]")
    return str(parsed).rstrip("/")
