"""The peer: the same model as a Hugging Face text-classification pipeline, torch in fp32, behind BentoML's own typed API.

Started by ``benchmarks/serving.py``, which sets the variables. The routes batch in different ways; the best one counts.
"""

import os
from pathlib import Path
from typing import Any, cast

import bentoml
import torch
from pydantic import BaseModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TextClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput

from conlst.contract.labels import ID2LABEL
from conlst.model.folder import load_model

MODEL = Path(os.environ["PEER_MODEL"])
THREADS = int(os.environ["PEER_THREADS"])
# a request must not fail in the benchmark because BentoML's batching expects it to be late
PATIENCE_MS = 600_000

Answers = list[list[dict[str, Any]]]


class Pair(BaseModel):
    text: str
    text_pair: str


class SequenceClassifier(PreTrainedModel):
    """conlst's classifier in the form that pipelines call."""

    _supports_sdpa = True

    def __init__(self, folder: Path) -> None:
        model = load_model(folder, attention="sdpa")
        config = model.classifier.config
        config.id2label = dict(ID2LABEL)
        super().__init__(config)
        self.classifier = model.classifier
        tokens = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
        self.words = PreTrainedTokenizerFast(
            tokenizer_object=model.tokenizer,
            model_max_length=model.text.max_length,
            # one type of token, as in training
            model_input_names=["input_ids", "attention_mask"],
            **tokens,
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.classifier(input_ids, attention_mask))


@bentoml.service(
    name="pipeline",
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    traffic={"timeout": PATIENCE_MS // 1000},
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
class Pipeline:
    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        model = SequenceClassifier(MODEL).eval()
        self._classify = TextClassificationPipeline(model=model, tokenizer=model.words, device="cpu")

    def _answer(self, pairs: list[Pair], batch_size: int) -> Answers:
        asked = [pair.model_dump() for pair in pairs]
        # declared for the case of one label a text
        return cast(Answers, self._classify(asked, batch_size=batch_size, top_k=None, truncation=True))

    @bentoml.api
    def each(self, pairs: list[Pair]) -> Answers:
        """A request's pairs together, requests one after the other."""
        return self._answer(pairs, batch_size=16)

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=PATIENCE_MS)
    def gather8(self, pairs: list[Pair]) -> Answers:
        """BentoML's adaptive batching over requests."""
        return self._answer(pairs, batch_size=8)

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=PATIENCE_MS)
    def gather32(self, pairs: list[Pair]) -> Answers:
        return self._answer(pairs, batch_size=32)
