"""Apertium: rule-based translation that works offline, through its command."""

import hashlib
import os
import shutil
import subprocess
from functools import cached_property
from pathlib import Path

from conlst.contract.errors import BackendError, UnsupportedDirection

# language data is named by either code, by the age of the package: fr-es, but eng-spa
_ISO_639_3 = {
    "bg": "bul",
    "en": "eng",
    "es": "spa",
    "fr": "fra",
    "hi": "hin",
    "id": "ind",
    "mk": "mkd",
    "ms": "zlm",
    "ru": "rus",
    "uk": "ukr",
    "ur": "urd",
}
_PACKAGES = {
    frozenset({"en", "es"}): "apertium-eng-spa",
    frozenset({"fr", "es"}): "apertium-fr-es",
    frozenset({"ur", "hi"}): "apertium-urd-hin",
    frozenset({"ru", "uk"}): "apertium-rus-ukr",
    frozenset({"bg", "mk"}): "apertium-mkd-bul",
    frozenset({"id", "ms"}): "apertium-ind-zlm",
}
# an empty line ends a sentence for Apertium; a single line feed does not, and words would move across it
_BREAK = "\n\n"
_TIMEOUT_SECONDS = 600


class Apertium:
    """The installed program and its language data."""

    name = "apertium"

    def __init__(self, program: str) -> None:
        self._program = program

    @cached_property
    def version(self) -> str:
        """The program's version and a digest of all installed language data, because either changes the translations."""
        data = Path(os.environ.get("APERTIUM_DATADIR", "/usr/share/apertium"))
        digest = hashlib.sha256()
        for path in sorted(path for path in data.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest.update(path.relative_to(data).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
        return f"{self._run('-V').split()[-1]}+{digest.hexdigest()[:12]}"

    @cached_property
    def _modes(self) -> list[str]:
        return self._run("-l").split()

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Translate in one process; words that Apertium does not know stay as they are.

        Raises:
            BackendError: if the language pair is not installed, or the program fails or loses count of the texts.
        """
        mode = self._mode(source, target)
        lines = [" ".join(text.split()) for text in texts]
        spoken = [line for line in lines if line]
        # -u leaves out the marks of unknown words
        output = self._run("-u", "-f", "txt", mode, given="".join(line + _BREAK for line in spoken))
        parts = output.removesuffix(_BREAK).split(_BREAK) if spoken else []
        if len(parts) != len(spoken):
            raise BackendError(f"apertium {mode} made {len(parts)} texts of {len(spoken)}; use another backend for {source}")
        translated = iter(parts)
        return [" ".join(next(translated).split()) if line else "" for line in lines]

    def _mode(self, source: str, target: str) -> str:
        names = [f"{a}-{b}" for a in _codes(source) for b in _codes(target)]
        for name in names:
            if name in self._modes:
                return name
        package = _PACKAGES.get(frozenset({source, target}))
        hint = f"apt-get install {package}" if package else "choose a pivot that Apertium translates to"
        installed = ", ".join(self._modes) or "none"
        raise UnsupportedDirection(f"apertium has no mode {names[-1]} (installed: {installed}); {hint}")

    def _run(self, *options: str, given: str = "") -> str:
        try:
            done = subprocess.run(
                [self._program, *options],
                input=given.encode(),
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"{self._program} {' '.join(options)} did not run to its end: {error}") from error
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip()[-300:]
            raise BackendError(f"{self._program} {' '.join(options)} failed with code {done.returncode}: {told}")
        return done.stdout.decode(errors="replace")


def open_translator(spec: str) -> Apertium:
    """Find the program.

    Raises:
        BackendError: if it is not installed, or the spec is more than ``apertium``.
    """
    if spec != "apertium":
        raise BackendError(f"backend {spec!r}: apertium takes no argument, write only 'apertium'")
    program = shutil.which("apertium")
    if program is None:
        raise BackendError(
            "apertium is not installed: apt-get install apertium and a language pair, "
            f"one of {', '.join(sorted(_PACKAGES.values()))}"
        )
    return Apertium(program)


def _codes(language: str) -> list[str]:
    return list(dict.fromkeys((language, _ISO_639_3.get(language, language))))
