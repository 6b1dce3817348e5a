"""What the environment may set. One table, read once, wrong values refused at the start."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from conlst.contract.cache import cache_folder
from conlst.contract.errors import ConfigError
from conlst.runtime.onnx import CPU


@dataclass(frozen=True)
class Settings:
    """Each field ``x`` is read from ``CONLST_X``.

    Attributes:
        models: what to serve, ``sw=/a/folder,fr=s3://bucket/models/manifests/<digest>.json``; empty for the registry's champions.
        languages: serve these only, for example ``sw,fr``; empty for all that there are.
        cache: where fetched models are kept.
        max_pairs: pairs in a request.
        max_characters: characters in a text. How many tokens a pair may have is the model's own limit.
        max_body_bytes: bytes of a request's body.
        max_waiting: requests that may wait for the computing thread; one more is told to come back.
        threads: CPU threads of a model run, 0 for what the process may use.
        provider: onnxruntime execution provider; the start fails if onnxruntime takes another.
    """

    models: str = ""
    languages: str = ""
    cache: Path = field(default_factory=cache_folder)
    max_pairs: int = 64
    max_characters: int = 4000
    max_body_bytes: int = 1_000_000
    max_waiting: int = 32
    threads: int = 0
    provider: str = CPU

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables; an unset or empty one leaves the default.

        Raises:
            ConfigError: naming the variable that is not a number, or too small.
        """
        values: dict[str, str | int | Path] = {}
        for item in fields(cls):
            variable = f"CONLST_{item.name.upper()}"
            if text := environment.get(variable, "").strip():
                values[item.name] = _number(variable, text) if item.type is int else item.type(text)  # type: ignore[operator]
        return cls(**values)  # type: ignore[arg-type]


def _number(variable: str, text: str) -> int:
    least = 0 if variable in ("CONLST_THREADS", "CONLST_MAX_WAITING") else 1
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ConfigError(f"{variable} is {text!r}, expected a whole number from {least}")
    return int(text)
