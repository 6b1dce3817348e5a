"""A backbone small enough to train in a test: random BERT or XLM-R weights in Hugging Face form, with a word tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from conlst.contract.labels import parse_label
from conlst.data.tokens import TokenizedPairs, tokenize
from conlst.model.folder import Model

_TEXT = """
a the cat dog man woman child sleeps runs eats sings not never always some all no one two three red blue old young house river
city night day is was in on under near with without and or but he she they it sees wants buys sells
"""
WORDS = _TEXT.split()


def tiny_backbone(folder: Path, kind: str = "bert", seed: int = 0, spare: int = 0) -> Path:
    """Write a two-layer encoder of kind ``bert`` or ``xlm-roberta`` with its fast tokenizer.

    Args:
        spare: further rows of the vocabulary that no text uses; with 100 the embedding table is the largest tensor, as in real
            encoders.
    """
    specials = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *WORDS, *(f"spare{n}" for n in range(spare))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>"
    )
    sizes: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**sizes)) if kind == "bert" else XLMRobertaModel(XLMRobertaConfig(**sizes))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Labelled pairs of random words; the hypothesis repeats the premise, negates it, or says more."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        words = [
            WORDS[i]
            for i in torch.randint(11, len(WORDS), (int(torch.randint(3, 9, (1,), generator=generator)),), generator=generator)
        ]
        label = ("entailment", "neutral", "contradiction")[index % 3]
        hypothesis = {"entailment": words[:3], "neutral": [*words[:2], "always"], "contradiction": ["never", *words[:2]]}[label]
        rows.append(
            {
                "premise": " ".join(words),
                "hypothesis": " ".join(hypothesis),
                "label": label,
                "genre": "fiction",
                "pair_id": f"{seed}-{index}",
            }
        )
    return rows


def tokens_of(model: Model, rows: list[dict[str, str]]) -> tuple[TokenizedPairs, Tensor]:
    """Rows as what a stage takes: tokens, and labels ``[n]``."""
    premises, hypotheses = [row["premise"] for row in rows], [row["hypothesis"] for row in rows]
    tokens = tokenize(premises, hypotheses, model.tokenizer, max_length=model.text.max_length, pad_id=model.text.pad_id)
    return tokens, torch.tensor([int(parse_label(row["label"])) for row in rows])


def write_tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as the TSV that ``conlst`` reads."""
    columns = ["premise", "hypothesis", "label", "genre", "pair_id"]
    lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_config(backbone: Path, /, **overrides: object) -> dict:
    """A configuration that trains in about a second."""
    return {
        "name": "tiny",
        "languages": ["sw"],
        "backbone": {"name": str(backbone), "pooling": "mean", "max_length": 32, "projection": 16, "freeze_embeddings": False},
        "compute": {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_every": 2},
        "source": {"lr": 1e-3, "batch_tokens": 128, "epochs": 2},
        "calibrate": {"lr": 1e-4, "threshold": 0.34, "batch_tokens": 128, "negatives": 2},
        "selftrain": {"lr": 1e-4, "threshold": 0.4, "floor": 0.34, "batch_tokens": 128, "max_iterations": 2},
        **json.loads(json.dumps(overrides)),
    }


def counts_drawn(stage: ModuleType, monkeypatch: pytest.MonkeyPatch, train: Callable[[], object]) -> list[int]:
    """How many source pairs each step of a stage asks for."""
    asked: list[int] = []
    draw = stage.draw_of_like_length

    def record(lengths: Tensor, count: int, generator: torch.Generator) -> Tensor:
        asked.append(count)
        return draw(lengths, count, generator)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "draw_of_like_length", record)
        train()
    return asked
