"""API keys. The server knows their hashes only: lines ``name:sha256`` in a file that may change while it runs.

``python -m serving.keys NAME`` makes a key.
"""

import argparse
import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from conlst.contract.errors import ConfigError
from serving.errors import ApiError
from serving.settings import Settings

log = logging.getLogger(__name__)

CHOOSE = (
    "choose whether requests need a key: CONLST_AUTH=keys and CONLST_KEYS_FILE=/path/to/keys, whose lines "
    "`python -m serving.keys NAME` makes, or CONLST_AUTH=none if everyone who reaches this address may ask"
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
# tells a key from other secrets, for those who search for leaked ones
_PREFIX = "conlst_"


def open_keys(settings: Settings) -> "Keys | None":
    """The keys that requests need, ``None`` if by choice they need none.

    Raises:
        ConfigError: if nothing was chosen, or the choice cannot be kept.
    """
    match settings.auth:
        case "keys":
            if settings.keys_file is None:
                raise ConfigError(f"CONLST_AUTH is keys, but CONLST_KEYS_FILE is not set; {CHOOSE}")
            return Keys(settings.keys_file, settings.rate_per_minute)
        case "none":
            if settings.keys_file is not None:
                raise ConfigError(
                    f"CONLST_KEYS_FILE is {settings.keys_file}, but CONLST_AUTH is none, which asks for no key; "
                    "set CONLST_AUTH=keys or unset one of them"
                )
            if settings.rate_per_minute:
                raise ConfigError("CONLST_RATE_PER_MINUTE counts by key; set CONLST_AUTH=keys or unset it")
            return None
        case "":
            raise ConfigError(f"CONLST_AUTH is not set; {CHOOSE}")
    raise ConfigError(f"CONLST_AUTH is {settings.auth!r}; {CHOOSE}")


@dataclass
class _Bucket:
    """Requests that a name may still make at a time, on the clock of ``time.monotonic``."""

    left: float
    at: float


class Keys:
    """The keys of a file, which is read again when it changes: a key is added or revoked without a restart.

    A name may have several keys, so that it can change its own without a gap; they share a rate. A file that becomes unusable
    leaves the keys as they were, also one that it was to revoke, and is told in the log and the metrics: to shut everyone out,
    stop the server.

    Attributes:
        problem: why the file as it is now cannot be used, ``None`` if it can.
    """

    def __init__(self, file: Path, rate_per_minute: int) -> None:
        """Read the file.

        Args:
            rate_per_minute: requests that a name may make, at once or spread over a minute; 0 for no limit.

        Raises:
            ConfigError: if it cannot be read, has no key, or has a line of another form.
        """
        self._file = file
        self._rate = rate_per_minute
        self._buckets: dict[str, _Bucket] = {}
        self._seen = self._state()
        self._names = _read(file)
        self.problem: str | None = None

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        if (state := self._state()) != self._seen:
            self._seen = state
            self._reread()

    def identify(self, authorization: str) -> str:
        """The name that the value of an Authorization header belongs to.

        Raises:
            ApiError: 401 without a known key.
        """
        self.refresh()
        name = self._name_of(authorization)
        if name is None:
            message = "this needs an API key that the server knows: send it as Authorization: Bearer <key>"
            raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        return name

    def admit(self, name: str) -> None:
        """Count a request of a name.

        Raises:
            ApiError: 429 if it asks too often.
        """
        if self._rate:
            self._take(name)

    def _name_of(self, authorization: str) -> str | None:
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        # every hash is compared, each in constant time: how long it takes tells nothing of which one it is
        for known, name in self._names.items():
            if hmac.compare_digest(given, known):
                found = name
        return found if scheme.lower() == "bearer" else None

    def _take(self, name: str) -> None:
        now = time.monotonic()
        bucket = self._buckets.setdefault(name, _Bucket(self._rate, now))
        bucket.left = min(self._rate, bucket.left + (now - bucket.at) * self._rate / 60)
        bucket.at = now
        if bucket.left < 1:
            wait = max(1, math.ceil((1 - bucket.left) * 60 / self._rate))
            message = f"this key may ask {self._rate} times a minute; try again in {wait} s"
            raise ApiError(429, "rate_limited", message, headers={"Retry-After": str(wait)})
        bucket.left -= 1

    def _state(self) -> tuple[int, int, int] | None:
        try:
            # follows the links that Kubernetes swaps when a secret changes
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _reread(self) -> None:
        try:
            self._names = _read(self._file)
        except ConfigError as error:
            self.problem = str(error)
            log.error("the keys stay as they were: %s", error)
            return
        self.problem = None
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in self._names.values()}
        log.info("%d keys are known now", len(self._names))


def _read(file: Path) -> dict[str, str]:
    """Names by hash."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        # a decoding error's own message would quote the file
        reason = error if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"the keys in {file} cannot be read: {reason}") from None
    names: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        name, _, key_hash = line.partition(":")
        # the line is not told: it may be a key that someone wrote in place of its hash
        if not _NAME.fullmatch(name) or not _HASH.fullmatch(key_hash):
            raise ConfigError(f"line {number} of {file} is not name:sha256 as `python -m serving.keys NAME` prints it")
        if names.setdefault(key_hash, name) != name:
            raise ConfigError(f"line {number} of {file} gives the key of {names[key_hash]} to {name} too")
    if not names:
        raise ConfigError(f"{file} has no key; `python -m serving.keys NAME` makes one")
    return names


def make_key(name: str) -> tuple[str, str]:
    """A new key and its line for the file.

    Raises:
        ConfigError: if it is no name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a key; use letters, digits, dots, dashes and underscores, 64 at most")
    # 256 random bits need no salt and no slow hash
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.keys", description="Make an API key.")
    parser.add_argument("name", help="whose key it is, as it stands in the file")
    try:
        key, line = make_key(parser.parse_args().name)
    except ConfigError as error:
        parser.error(str(error))
    print(f"key, shown this once; its owner sends it as Authorization: Bearer <key>:\n{key}\n")
    print(f"line for the file that CONLST_KEYS_FILE names:\n{line}")


if __name__ == "__main__":
    main()
