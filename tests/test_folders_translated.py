"""The back-translation view between folders: whose texts are translated, and what other translations change."""

from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset

from conlst.contract.errors import ArtifactError, ConfigError, UnsupportedDirection
from conlst.data.pairs import FEATURES
from conlst.stages import folders
from world import POOL, WEIGHTS, Interrupted, World, digest, history, stop_at, translations_through


def translations(path: Path, to: str) -> Path:
    """A table that sends every text of the pool to itself with a word more, and back."""
    texts = {row[name] for row in POOL for name in ("premise", "hypothesis")}
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    lines += [f"{text}\tX {text}\tsw\ten" for text in sorted(texts)]
    lines += [f"X {text}\t{text} {to}\ten\tsw" for text in sorted(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_back_translation_is_a_view_of_its_own(world: World, tmp_path: Path) -> None:
    table = translations(tmp_path / "t.tsv", "again")
    only = {"masking": None, "mixup": None, "back_translation": {"backend": f"tsv:{table}"}}
    folders.self_train_model(world.config(selftrain=only), world.model, world.pairs("pool"), "sw", tmp_path / "translated")
    assert history(tmp_path / "translated")["selftrain"]["back_translation"] is True
    translations(table, "river")
    folders.self_train_model(world.config(selftrain=only), world.model, world.pairs("pool"), "sw", tmp_path / "other")
    assert (tmp_path / "translated" / WEIGHTS).read_bytes() != (tmp_path / "other" / WEIGHTS).read_bytes()


def test_a_checkpoint_of_other_translations_is_refused(world: World, tmp_path: Path) -> None:
    table = translations(tmp_path / "t.tsv", "again")
    config = world.config(selftrain={"back_translation": {"backend": f"tsv:{table}"}})
    with pytest.raises(Interrupted):
        folders.self_train_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "out", sink=stop_at(3))
    translations(table, "river")
    with pytest.raises(ArtifactError, match="another run"):
        folders.self_train_model(config, world.model, world.pairs("pool"), "sw", tmp_path / "out")


def test_a_language_is_not_translated_through_itself(world: World, tmp_path: Path) -> None:
    settings = {"back_translation": {"backend": "tsv:none.tsv", "pivots": {"sw": "sw"}}}
    with pytest.raises(ConfigError, match="sends sw through itself"):
        folders.self_train_model(world.config(selftrain=settings), world.model, world.pairs("pool"), "sw", tmp_path / "out")


def test_each_language_of_a_pool_is_translated_in_its_own_place(world: World, tmp_path: Path) -> None:
    mixed = [language for _ in range(3) for language in ("ur", "sw", "sw")]
    texts = [f"text {number}" for number in range(9)]
    columns = {"premise": texts, "hypothesis": texts, "label": [None] * 9, "language": mixed, "genre": [""] * 9, "pair_id": texts}
    lines = ["source_text\ttarget_text\tsource_language\ttarget_language"]
    for text, language in zip(texts, mixed, strict=True):
        pivot = {"sw": "en", "ur": "hi"}[language]
        lines += [f"{text}\t{text} {pivot}\t{language}\t{pivot}", f"{text} {pivot}\t{language} {text}\t{pivot}\t{language}"]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    settings = {"backend": f"tsv:{tmp_path / 't.tsv'}", "pivots": {"ur": "hi"}}
    config = world.config(selftrain={"back_translation": settings})

    view = folders.pairs.translated_view(config, Dataset(pa.table(columns, schema=FEATURES.arrow_schema)))

    assert view is not None
    assert view["premise"][:] == [f"{language} {text}" for text, language in zip(texts, mixed, strict=True)]
    assert view["pair_id"][:] == texts


def test_pairs_of_a_language_without_a_way_keep_their_texts_beside_those_that_have_one(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Partial:
        name, version = "partial", "1"

        def translate(self, texts: list[str], source: str, target: str) -> list[str]:
            if "el" in (source, target):
                raise UnsupportedDirection(f"no {source} to {target}")
            return [f"{text} in {target}" for text in texts]

    monkeypatch.setattr(folders.pairs, "open_backend", lambda _spec: Partial())
    texts = [f"text {number}" for number in range(4)]
    columns = {"premise": texts, "hypothesis": texts, "label": [None] * 4, "genre": [""] * 4, "pair_id": texts}
    config = world.config(selftrain={"back_translation": {"backend": "seq2seq:x"}})

    def view(*languages: str) -> Dataset | None:
        pool = Dataset(pa.table({**columns, "language": list(languages)}).select(list(FEATURES)).cast(FEATURES.arrow_schema))
        return folders.pairs.translated_view(config, pool)

    found = view("el", "de", "el", "de")
    assert found is not None
    assert found["premise"][:] == ["text 0", "text 1 in en in de", "text 2", "text 3 in en in de"]
    assert "el trains without the back-translation view: no el" in caplog.text
    assert view("el", "el", "el", "el") is None


def test_other_translations_make_another_model(world: World, calibrated: Path, tmp_path: Path) -> None:
    def train(there: str) -> str:
        backend = translations_through(tmp_path / f"{there}.tsv", POOL, there)
        config = world.config(selftrain={"back_translation": {"backend": backend}})
        folders.self_train_model(config, calibrated, world.pairs("pool"), "sw", tmp_path / "out")
        assert history(tmp_path / "out")["selftrain"]["back_translation"]
        return digest(tmp_path / "out")

    assert train("cat") != train("dog")


def test_a_language_that_the_backend_lacks_trains_without_that_view(
    world: World, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Lacking:
        name, version = "lacking", "1"

        def translate(self, texts: list[str], source: str, target: str) -> list[str]:
            raise UnsupportedDirection(f"no {source} to {target} for {len(texts)} texts")

    monkeypatch.setattr(folders.pairs, "open_backend", lambda _spec: Lacking())
    config = world.config(selftrain={"back_translation": {"backend": "seq2seq:x"}})
    folders.self_train_model(config, calibrated, world.pairs("pool"), "sw", tmp_path / "out")
    assert not history(tmp_path / "out")["selftrain"]["back_translation"]
    assert "trains without the back-translation view: no sw" in caplog.text
