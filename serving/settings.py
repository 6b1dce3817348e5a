"""What the environment may set. One table, read once, wrong values refused at the start."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from conlst.contract.cache import cache_folder
from conlst.contract.errors import ConfigError
from conlst.runtime.cpu import available_cpus
from conlst.runtime.onnx import BATCH_TOKENS, CPU

_FROM_ZERO = ("CONLST_THREADS", "CONLST_MAX_WAITING", "CONLST_RATE_PER_MINUTE", "CONLST_WATCH_SECONDS")
_MOST = {"CONLST_FEEDBACK_PERCENT": 100}


@dataclass(frozen=True)
class Settings:
    """Each field ``x`` is read from ``CONLST_X``.

    Attributes:
        models: what to serve, ``sw=/a/folder,fr=s3://bucket/models/manifests/<digest>.json``; empty for the registry's champions.
        languages: serve these only, for example ``sw,fr``, and not before all of them can be; empty for those that there are.
        cache: where fetched models are kept.
        max_pairs: pairs in a request; for candidate labels, texts times labels.
        max_characters: characters in a text. How many tokens a pair may have is the model's own limit.
        max_body_bytes: bytes of a request's body.
        max_waiting: requests that may wait for a computing thread; one more is told to come back.
        max_waiting_tokens: tokens that may wait for one, likewise.
        batch_tokens: budget of padded tokens in one run of a model.
        deadline_seconds: what takes longer is not answered, from the first byte of a body on.
        threads: CPU threads that compute, 0 for what the process may use.
        provider: onnxruntime execution provider; the start fails if onnxruntime takes another.
        fallback: the language whose model answers where a text's own is not served or cannot be told, and without which nothing
            is served; empty to refuse instead.
        auth: ``keys`` if requests need an API key, ``none`` if not. Nothing is served before one is chosen; ``python -m serving``
            takes ``keys`` where a file of keys is named, else ``none`` on a loopback address.
        keys_file: the keys, as ``python -m serving.keys`` makes them.
        rate_per_minute: requests of a key, 0 for no limit.
        watch_seconds: between two looks at the registry for new champions, 0 for none.
        feedback: where pairs go that callers let us keep, ``s3://bucket/prefix`` or a folder; empty to keep none.
        feedback_percent: share of them that is kept.
        feedback_batch: pairs in a file.
    """

    models: str = ""
    languages: str = ""
    cache: Path = field(default_factory=cache_folder)
    max_pairs: int = 64
    max_characters: int = 4000
    max_body_bytes: int = 1_000_000
    max_waiting: int = 256
    max_waiting_tokens: int = 131_072
    batch_tokens: int = BATCH_TOKENS
    deadline_seconds: int = 60
    threads: int = 0
    provider: str = CPU
    fallback: str = ""
    auth: str = ""
    keys_file: Path | None = None
    rate_per_minute: int = 0
    watch_seconds: int = 30
    feedback: str = ""
    feedback_percent: int = 100
    feedback_batch: int = 500

    @property
    def runs(self) -> int:
        """How many runs there may be at the same time: one for each CPU that computes, or one that a device has for itself."""
        return (self.threads or available_cpus()) if self.provider == CPU else 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables; an unset or empty one leaves the default.

        Raises:
            ConfigError: naming the variable that is not a number, too small or too large.
        """
        values: dict[str, str | int | Path] = {}
        for item in fields(cls):
            variable = f"CONLST_{item.name.upper()}"
            if text := environment.get(variable, "").strip():
                values[item.name] = _value(item.type, variable, text)
        return cls(**values)  # type: ignore[arg-type]


def _value(kind: object, variable: str, text: str) -> str | int | Path:
    if kind is int:
        return _number(variable, text)
    return text if kind is str else Path(text)


def _number(variable: str, text: str) -> int:
    least, most = 0 if variable in _FROM_ZERO else 1, _MOST.get(variable)
    if not text.isascii() or not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        up = "" if most is None else f" to {most}"
        raise ConfigError(f"{variable} is {text!r}, expected a whole number from {least}{up}")
    return int(text)
