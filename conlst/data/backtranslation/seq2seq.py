"""A many-to-many model of mBART-50's shape, through transformers."""

import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from conlst.contract.artifacts import sha256_of
from conlst.contract.errors import BackendError, UnsupportedDirection

# the XNLI languages, and Indonesian; mBART-50 was trained on neither Greek nor Bulgarian
_CODES = {
    "ar": "ar_AR",
    "de": "de_DE",
    "en": "en_XX",
    "es": "es_XX",
    "fr": "fr_XX",
    "hi": "hi_IN",
    "id": "id_ID",
    "ru": "ru_RU",
    "sw": "sw_KE",
    "th": "th_TH",
    "tr": "tr_TR",
    "ur": "ur_PK",
    "vi": "vi_VN",
    "zh": "zh_CN",
}
# no weights that would be unpickled
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
_BATCH = 16

_log = logging.getLogger(__name__)


class Seq2Seq:
    """A model folder, loaded when the first text is translated.

    Args:
        folder: model and tokenizer in Hugging Face form, weights as safetensors.
        name: what it is called in the cache.
        version: what changes with its content.
    """

    def __init__(self, folder: Path, name: str, version: str) -> None:
        self._folder = folder
        self.name = name
        self.version = version
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Translate by beam search as the model's generation config says, without sampling.

        A text longer than the model's positions gives "", not half a translation.

        Raises:
            BackendError: if the model does not know one of the languages.
        """
        source_code, target_code = self._code(source), self._code(target)
        self._tokenizer.src_lang = source_code
        target_id = self._tokenizer.convert_tokens_to_ids(target_code)
        encoded = self._tokenizer(texts)["input_ids"] if texts else []
        limit = self._model.config.max_position_embeddings
        fitting = [index for index, ids in enumerate(encoded) if len(ids) <= limit]
        if len(fitting) < len(texts):
            _log.warning("%s: %d texts have more than %d tokens", self.name, len(texts) - len(fitting), limit)
        # by length, so that little is padding; the index keeps the order the same on every run
        fitting.sort(key=lambda index: (len(encoded[index]), index))
        translations = [""] * len(texts)
        for start in range(0, len(fitting), _BATCH):
            batch = fitting[start : start + _BATCH]
            for index, text in zip(batch, self._generate([encoded[i] for i in batch], target_id, limit), strict=True):
                translations[index] = text
        return translations

    @torch.inference_mode()
    def _generate(self, encoded: list[list[int]], target_id: int, limit: int) -> list[str]:
        inputs = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self._device)
        # a translation can be longer than its text, but one without end is a loop
        longest = min(2 * inputs["input_ids"].shape[1] + 16, limit)
        output = self._model.generate(**inputs, forced_bos_token_id=target_id, do_sample=False, max_length=longest)
        decoded: list[str] = self._tokenizer.batch_decode(output, skip_special_tokens=True)
        return decoded

    def _code(self, language: str) -> str:
        code = _CODES.get(language)
        if code is None:
            raise UnsupportedDirection(
                f"mBART-50 does not translate {language!r}, only {', '.join(_CODES)}; use another backend for it"
            )
        if self._tokenizer.convert_tokens_to_ids(code) in (None, self._tokenizer.unk_token_id):
            raise BackendError(f"{self.name} has no token {code}: it is not a model of mBART-50's shape")
        return code

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise BackendError(f"{self.name} has no tokenizer that can be read: {error}") from error

    @cached_property
    def _model(self) -> Any:
        try:
            model = AutoModelForSeq2SeqLM.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise BackendError(f"{self.name} cannot be loaded as a seq2seq model: {error}") from error
        return model.eval().to(self._device)


def open_translator(spec: str) -> Seq2Seq:
    """Open ``seq2seq:<folder>`` or ``seq2seq:hub:<id>[@revision]``; the latter is fetched.

    Raises:
        BackendError: if there is no such folder, or the hub does not give the model.
    """
    where = spec.removeprefix("seq2seq:")
    if where.startswith("hub:"):
        return _from_hub(where.removeprefix("hub:"))
    folder = Path(where)
    if not (folder / "config.json").is_file():
        raise BackendError(f"{folder} is no model folder (no config.json); give a folder or hub:<id>@<revision>")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return Seq2Seq(folder, f"seq2seq:{folder.name}", digest.hexdigest())


def _from_hub(address: str) -> Seq2Seq:
    name, _, revision = address.partition("@")
    if not revision:
        _log.warning("seq2seq:hub:%s names no revision and may change; pin it as hub:<id>@<commit>", name)
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
    except (OSError, ValueError, HfHubHTTPError, httpx.HTTPError) as error:
        raise BackendError(f"hub:{address} cannot be fetched ({error}); check id and revision, or give a folder") from error
    # the snapshot's folder is named by its commit
    return Seq2Seq(folder, f"seq2seq:{name}", folder.name)
