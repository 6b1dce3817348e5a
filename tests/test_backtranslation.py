import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

from conlst.contract.errors import BackendError
from conlst.data.backtranslation import back_translate, open_backend, translate_all
from conlst.data.backtranslation.cache import TranslationCache
from conlst.data.backtranslation.http import HttpTranslator
from conlst.data.pairs import FEATURES, ingest
from machine import needs

_APERTIUM = shutil.which("apertium") is not None
_FRENCH = _APERTIUM and "fr-es" in subprocess.run(["apertium", "-l"], capture_output=True, text=True, check=True).stdout
needs_apertium = needs(_APERTIUM, "apertium")
needs_french = needs(_FRENCH, "apertium-fr-es")

SCOPE = ("fake", "1", "sw", "en")


class Fake:
    """Marks every text with the target language; keeps what it was asked."""

    name = "fake"

    def __init__(self, version: str = "1", empty: tuple[str, ...] = ()) -> None:
        self.version = version
        self.asked: list[tuple[list[str], str, str]] = []
        self._empty = empty

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        self.asked.append((texts, source, target))
        return ["" if text in self._empty else f" {text}>{target}" for text in texts]


@pytest.fixture
def cache(tmp_path: Path) -> TranslationCache:
    return TranslationCache(tmp_path / "cache" / "translations.sqlite")


@pytest.fixture
def pairs() -> Any:
    rows = [
        {"premise": "a", "hypothesis": "b", "label": "neutral", "genre": "g", "pair_id": "1"},
        {"premise": "a", "hypothesis": "c", "pair_id": "2"},
        {"premise": "c", "hypothesis": "a", "pair_id": "3"},
    ]
    return ingest(rows, language="sw", max_bad_share=0.0).pairs


def test_every_text_goes_there_and_back_once(pairs: Any, cache: TranslationCache) -> None:
    translator = Fake()
    views = back_translate(pairs, "sw", "en", translator, cache)
    assert translator.asked == [
        (["a", "c", "b"], "sw", "en"),
        (["a>en", "c>en", "b>en"], "en", "sw"),
    ]
    assert views["premise"] == ["a>en>sw", "a>en>sw", "c>en>sw"]
    assert views["hypothesis"] == ["b>en>sw", "c>en>sw", "a>en>sw"]
    assert views.features == FEATURES
    for name in ("label", "language", "genre", "pair_id"):
        assert views[name] == pairs[name]


def test_second_run_translates_nothing_but_another_version_or_direction_does(pairs: Any, cache: TranslationCache) -> None:
    first = back_translate(pairs, "sw", "en", Fake(), cache)
    again = Fake()
    assert back_translate(pairs, "sw", "en", again, TranslationCache(cache.path)).to_list() == first.to_list()
    assert again.asked == []
    other_version, other_pivot = Fake(version="2"), Fake()
    back_translate(pairs, "sw", "en", other_version, cache)
    back_translate(pairs, "sw", "fr", other_pivot, cache)
    assert len(other_version.asked) == len(other_pivot.asked) == 2


@pytest.mark.parametrize("empty", [("a",), ("a>en",)])
def test_empty_translations_keep_the_original_and_are_counted(
    pairs: Any, cache: TranslationCache, caplog: pytest.LogCaptureFixture, empty: tuple[str, ...]
) -> None:
    views = back_translate(pairs, "sw", "en", Fake(empty=empty), cache)
    assert views["premise"] == ["a", "a", "c>en>sw"]
    assert "of them 1 because they came back empty" in caplog.text


def test_pivot_must_be_another_language(pairs: Any, cache: TranslationCache) -> None:
    with pytest.raises(BackendError, match="another pivot"):
        back_translate(pairs, "sw", "sw", Fake(), cache)


def test_a_translator_that_loses_texts_is_an_error(cache: TranslationCache) -> None:
    translator = Fake()
    translator.translate = lambda texts, source, target: texts[1:]  # type: ignore[method-assign]  # noqa: ARG005
    with pytest.raises(BackendError, match="fake returned 1 translations for 2 texts"):
        translate_all(["a", "b"], "sw", "en", translator, cache)
    assert cache.get(SCOPE, ["a", "b"]) == {}


def test_what_was_translated_before_a_failure_is_not_translated_again(cache: TranslationCache) -> None:
    texts = [f"text {number}" for number in range(1200)]

    class Failing(Fake):
        def translate(self, texts: list[str], source: str, target: str) -> list[str]:
            if self.asked:
                raise BackendError("down")
            return super().translate(texts, source, target)

    failing, second = Failing(), Fake()
    with pytest.raises(BackendError, match="down"):
        translate_all(texts, "sw", "en", failing, cache)
    assert translate_all(texts, "sw", "en", second, cache) == [f"{text}>en" for text in texts]
    done = failing.asked[0][0]
    assert done
    assert [text for asked, _, _ in second.asked for text in asked] == texts[len(done) :]


def test_cache_keeps_scopes_apart(cache: TranslationCache) -> None:
    cache.put(SCOPE, {"a": "x", "b": ""})
    assert cache.get(SCOPE, ["a", "b", "c"]) == {"a": "x", "b": ""}
    for other in [("x", "1", "sw", "en"), ("fake", "2", "sw", "en"), ("fake", "1", "fr", "en"), ("fake", "1", "sw", "fr")]:
        assert cache.get(other, ["a"]) == {}


def test_cache_serves_two_writing_processes(cache: TranslationCache) -> None:
    code = (
        "import sys; from pathlib import Path; from conlst.data.backtranslation.cache import TranslationCache\n"
        "cache = TranslationCache(Path(sys.argv[1]))\n"
        "for n in range(60): cache.put(('fake', '1', 'sw', 'en'), {f'{sys.argv[2]} {n}': str(n), 'shared': 'same'})\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(cache.path), who]) for who in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    texts = [f"{who} {n}" for who in "ab" for n in range(60)]
    assert cache.get(SCOPE, [*texts, "shared"]) == {text: text[2:] for text in texts} | {"shared": "same"}


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"no database" * 100)
    with pytest.raises(BackendError, match="delete it"):
        TranslationCache(tmp_path / "c").get(SCOPE, ["a"])


@pytest.mark.parametrize("spec", ["google", "", "ftp://host", "apertium2"])
def test_unknown_backends_list_the_known(spec: str) -> None:
    with pytest.raises(BackendError, match=r"give apertium, tsv:<file>, seq2seq:.*http\(s\)"):
        open_backend(spec)


def test_apertium_that_is_not_installed_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"apt-get install apertium .*apertium-fr-es.*apertium-urd-hin"):
        open_backend("apertium")


def test_apertium_takes_no_argument() -> None:
    with pytest.raises(BackendError, match="takes no argument"):
        open_backend("apertium:fr-es")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apertium whose behaviour the test writes as a shell script."""
    path = tmp_path / "bin" / "apertium"
    path.parent.mkdir()
    path.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    monkeypatch.setenv("APERTIUM_DATADIR", str(tmp_path / "data"))
    return path


def test_apertium_mode_names_come_in_two_or_three_letters(program: Path) -> None:
    program.write_text('#!/bin/sh\nif [ "$1" = -l ]; then echo "  fr-es\n  spa-eng"; else shift 3; printf "%s\\n\\n" "$1"; fi\n')
    translator = open_backend("apertium")
    assert translator.translate(["x"], "fr", "es") == ["fr-es"]
    assert translator.translate(["x"], "es", "en") == ["spa-eng"]
    with pytest.raises(BackendError, match=r"no mode urd-hin \(installed: fr-es, spa-eng\); apt-get install apertium-urd-hin"):
        translator.translate(["x"], "ur", "hi")
    with pytest.raises(BackendError, match=r"no mode sw-eng .*choose a pivot"):
        translator.translate(["x"], "sw", "en")


def test_apertium_that_merges_texts_is_an_error(program: Path) -> None:
    program.write_text('#!/bin/sh\nif [ "$1" = -l ]; then echo fr-es; else tr -d "\\n"; fi\n')
    with pytest.raises(BackendError, match="made 1 texts of 2"):
        open_backend("apertium").translate(["a", "b"], "fr", "es")


def test_apertium_that_fails_tells_why(program: Path) -> None:
    program.write_text('#!/bin/sh\nif [ "$1" = -l ]; then echo fr-es; else echo broken mode >&2; exit 3; fi\n')
    with pytest.raises(BackendError, match="failed with code 3: broken mode"):
        open_backend("apertium").translate(["a"], "fr", "es")


def test_apertium_version_changes_with_its_language_data(program: Path, tmp_path: Path) -> None:
    program.write_text("#!/bin/sh\necho Apertium 3.8.3\n")
    data = tmp_path / "data" / "fr-es.bin"
    data.parent.mkdir()
    versions = []
    for content in ("one", "two", "one"):
        data.write_text(content)
        versions.append(open_backend("apertium").version)
    assert versions[0] == versions[2] != versions[1]
    assert versions[0].startswith("3.8.3+")


@needs_french
def test_apertium_translates_each_text_alone() -> None:
    translator = open_backend("apertium")
    texts = [
        "Le chat dort dans la maison.",
        "",
        "la voiture",
        "le jardin est grand",
        "deux\nlignes\n\net une vide",
        "[crochets] {accolades} ^a/b$ @c <b> \\ ~ # *",
        "Blorptown",
        "La voiture est rouge",
    ]
    together = translator.translate(texts, "fr", "es")
    assert together == [translator.translate([text], "fr", "es")[0] for text in texts]
    assert together[0] == "El gato duerme en la casa."
    assert together[1] == ""
    assert together[6] == "Blorptown"
    assert "[" in together[5]
    assert "*" in together[5]


@needs_french
def test_apertium_back_translates_the_sample(cache: TranslationCache) -> None:
    from conlst.data.sources import load_source

    pairs = load_source(["sample:fr"], language="fr").pairs.select(range(30))
    views = back_translate(pairs, "fr", "es", open_backend("apertium"), cache)
    assert len(views) == 30
    assert all(views["premise"])
    changed = sum(old != new for old, new in zip(pairs["premise"], views["premise"], strict=True))
    assert changed > 15


@needs_apertium
def test_apertium_version_is_the_programs() -> None:
    assert open_backend("apertium").version.partition("+")[0].count(".") >= 1


def write_translations(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return f"tsv:{path}"


def test_tsv_translates_by_direction(tmp_path: Path, pairs: Any, cache: TranslationCache) -> None:
    spec = write_translations(
        tmp_path / "t.tsv",
        "source_text\ttarget_text\tsource_language\ttarget_language",
        *(f"{text}\t{text.upper()}\tsw\ten" for text in "abc"),
        *(f"{text.upper()}\t{text}{text}\ten\tsw" for text in "abc"),
        "a\tother\tsw\tfr",
    )
    assert back_translate(pairs, "sw", "en", open_backend(spec), cache)["premise"] == ["aa", "aa", "cc"]


def test_tsv_without_languages_and_with_missing_texts(tmp_path: Path) -> None:
    translator = open_backend(write_translations(tmp_path / "t.tsv", "target_text\tsource_text", "x y\ta b"))
    assert translator.translate(["a\nb"], "sw", "en") == ["x y"]
    with pytest.raises(BackendError, match=r"lacks 2 of 3 translations sw to en, first 'p'"):
        translator.translate(["a b", "p", "q"], "sw", "en")


def test_tsv_version_is_its_content(tmp_path: Path) -> None:
    first, same, other = (
        open_backend(write_translations(tmp_path / f"{name}.tsv", "source_text\ttarget_text", line)).version
        for name, line in (("1", "a\tb"), ("2", "a\tb"), ("3", "a\tc"))
    )
    assert first == same != other


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text\ttarget_text", "a\tb"], "has the columns text, target_text"),
        (["source_text\ttarget_text\tsource_language", "a\tb\tsw"], "or neither"),
        (["source_text\ttarget_text", "a\tb", "a\tc"], "in two ways"),
        (["source_text\ttarget_text", "a"], "line 2 has 1 fields"),
        (["source_text\ttarget_text"], "holds no translations"),
    ],
)
def test_tsv_errors(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(write_translations(tmp_path / "t.tsv", *lines))


def test_tsv_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"gone\.tsv does not exist"):
        open_backend(f"tsv:{tmp_path / 'gone.tsv'}")


class Service:
    """LibreTranslate's shape on a free port. ``faults`` are answered first, one a request: status, headers, body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.faults: list[tuple[int, dict[str, str], Any]] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append(body)
                service.paths.append(self.path)
                translated = [f"{text}>{body['target']}" for text in body["q"]]
                status, headers, answer = service.faults.pop(0) if service.faults else (200, {}, {"translatedText": translated})
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.delenv("CONLST_TRANSLATE_KEY", raising=False)
    service = Service()
    yield service
    service.close()


@pytest.mark.slow
def test_http_sends_batches_of_the_libretranslate_shape(service: Service) -> None:
    texts = [f"text {number}" for number in range(70)]
    assert open_backend(service.url + "/").translate(texts, "sw", "en") == [f"{text}>en" for text in texts]
    assert [len(request["q"]) for request in service.requests] == [32, 32, 6]
    assert {key: service.requests[0][key] for key in ("source", "target", "format")} == {
        "source": "sw",
        "target": "en",
        "format": "text",
    }
    assert "api_key" not in service.requests[0]
    assert set(service.paths) == {"/translate"}


@pytest.mark.slow
def test_http_endpoint_may_already_end_in_translate(service: Service) -> None:
    translator = open_backend(f"{service.url}/api/translate")
    translator.translate(["a"], "sw", "en")
    assert service.paths == ["/api/translate"]
    assert translator.version == f"{service.url}/api"


@pytest.mark.slow
def test_http_key_comes_from_the_environment_and_stays_out_of_messages(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONLST_TRANSLATE_KEY", "s3cret")
    service.faults = [(403, {}, {"error": "Invalid API key"})]
    translator = HttpTranslator(service.url)
    with pytest.raises(BackendError, match=r"status 403: Invalid API key.*CONLST_TRANSLATE_KEY") as refused:
        translator.translate(["a"], "sw", "en")
    assert service.requests[0]["api_key"] == "s3cret"
    assert "s3cret" not in str(refused.value) + translator.version + translator.name


@pytest.mark.slow
def test_http_waits_as_it_is_asked_and_tries_again(service: Service) -> None:
    waits: list[float] = []
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=30), usegmt=True)
    service.faults = [
        (429, {"Retry-After": "7"}, {"error": "slow down"}),
        (503, {"Retry-After": soon}, {}),
        (429, {"Retry-After": past}, {}),
        (429, {"Retry-After": "86400"}, {}),
    ]
    assert HttpTranslator(service.url, sleep=waits.append).translate(["a"], "sw", "en") == ["a>en"]
    assert waits[0] == 7
    assert 20 < waits[1] <= 30
    assert waits[2:] == [0, 60]


@pytest.mark.slow
def test_http_backs_off_with_jitter_and_gives_up(service: Service) -> None:
    waits: list[float] = []
    service.faults = [(500, {"Retry-After": "soon"}, {"error": "broken"})] * 9
    with pytest.raises(BackendError, match=r"did not translate in 5 attempts, last status 500: broken"):
        HttpTranslator(service.url, sleep=waits.append).translate(["a"], "sw", "en")
    assert len(service.requests) == 5
    assert len(waits) == 4
    for attempt, wait in enumerate(waits):
        assert 0.25 * 2**attempt <= wait <= 0.75 * 2**attempt


@pytest.mark.slow
def test_http_service_that_is_down_is_asked_a_few_times(service: Service) -> None:
    service.close()
    waits: list[float] = []
    with pytest.raises(BackendError, match=r"5 attempts, last ConnectError"):
        HttpTranslator(service.url, sleep=waits.append).translate(["a"], "sw", "en")
    assert len(waits) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, {"error": "xx is not supported"}, "refused to translate sw to en, status 400: xx is not supported"),
        (302, {}, "status 302"),
        (200, {"translatedText": "a string"}, "without a list translatedText"),
        (200, ["a"], "without a list translatedText"),
        (200, {"translatedText": [None]}, "without a list translatedText"),
        (200, {"translatedText": ["a", "b"]}, "answered 2 texts for 1"),
    ],
)
def test_http_refusals_and_wrong_shapes_are_not_tried_again(service: Service, status: int, answer: Any, message: str) -> None:
    service.faults = [(status, {}, answer)]
    with pytest.raises(BackendError, match=message):
        HttpTranslator(service.url).translate(["a"], "sw", "en")
    assert len(service.requests) == 1


@pytest.mark.parametrize("endpoint", ["http://", "http://me:pass@host", "https://host/translate?api_key=k", "http://host:port"])
def test_http_endpoint_must_be_a_plain_url(endpoint: str) -> None:
    with pytest.raises(BackendError, match="endpoint") as refused:
        open_backend(endpoint)
    assert "pass" not in str(refused.value)
    assert "api_key=k" not in str(refused.value)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mBART-50 of two narrow layers with a real mBART-50 tokenizer over a few pieces."""
    folder = tmp_path_factory.mktemp("models") / "tiny-mbart"
    letters = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "abcdefghijklmnop")]
    tokenizer = MBart50Tokenizer(vocab=letters)
    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=40,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        init_std=1.0,
    )
    torch.manual_seed(3)
    model = MBartForConditionalGeneration(config)
    model.generation_config.num_beams = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_seq2seq_gives_one_text_a_text_the_same_every_time(model_folder: Path) -> None:
    texts = ["abc", "", "a b c d e f", "p", *("abcdefgh"[:n] for n in range(1, 9)), *("ponm k"[n:] for n in range(6))]
    first = open_backend(f"seq2seq:{model_folder}").translate(texts, "fr", "en")
    assert len(first) == len(texts)
    assert all(isinstance(text, str) for text in first)
    assert any(first)
    assert not any("en_XX" in text or "</s>" in text for text in first)
    assert open_backend(f"seq2seq:{model_folder}").translate(texts, "fr", "en") == first


def test_seq2seq_answers_in_the_order_of_the_texts(model_folder: Path) -> None:
    translator = open_backend(f"seq2seq:{model_folder}")
    texts = ["abcdefgh"[:n] for n in (3, 8, 1, 6, 2)]
    answers = translator.translate(texts, "fr", "en")
    assert len(set(answers)) > 3
    assert translator.translate(texts[::-1], "fr", "en") == answers[::-1]


def test_seq2seq_forces_source_and_target_language_tokens(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translator: Any = open_backend(f"seq2seq:{model_folder}")
    tokenizer = translator._tokenizer
    generate, calls = translator._model.generate, []

    def spy(**options: Any) -> torch.Tensor:
        output = generate(**options)
        calls.append((options["input_ids"], output))
        return output

    monkeypatch.setattr(translator._model, "generate", spy)
    translator.translate(["abc", "a"], "sw", "ur")
    translator.translate(["abc"], "ur", "sw")
    (given, made), (given_back, made_back) = calls
    assert tokenizer.convert_ids_to_tokens(given[:, 0]) == ["sw_KE"] * 2
    assert tokenizer.convert_ids_to_tokens(made[:, 1]) == ["ur_PK"] * 2
    assert tokenizer.convert_ids_to_tokens(given_back[:, 0]) == ["ur_PK"]
    assert tokenizer.convert_ids_to_tokens(made_back[:, 1]) == ["sw_KE"]


def test_seq2seq_does_not_translate_half_a_text(model_folder: Path) -> None:
    long = "a" * 60
    assert open_backend(f"seq2seq:{model_folder}").translate([long, "abc"], "fr", "en")[0] == ""


@pytest.mark.parametrize("language", ["el", "bg"])
def test_seq2seq_refuses_languages_outside_mbart50(model_folder: Path, language: str) -> None:
    translator = open_backend(f"seq2seq:{model_folder}")
    for source, target in ((language, "en"), ("en", language)):
        with pytest.raises(BackendError, match=f"mBART-50 does not translate '{language}'"):
            translator.translate(["abc"], source, target)


def test_seq2seq_version_is_its_content(model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    first = open_backend(f"seq2seq:{model_folder}").version
    assert open_backend(f"seq2seq:{copy}").version == first
    (copy / "generation_config.json").write_text("{}")
    assert open_backend(f"seq2seq:{copy}").version != first


def test_seq2seq_folder_must_be_a_model(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no model folder \(no config\.json\)"):
        open_backend(f"seq2seq:{tmp_path}")


def test_seq2seq_never_unpickles(model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    state = MBartForConditionalGeneration.from_pretrained(model_folder).state_dict()
    torch.save(state, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(BackendError, match="cannot be loaded"):
        open_backend(f"seq2seq:{copy}").translate(["abc"], "fr", "en")


def test_seq2seq_from_the_hub_is_pinned_and_without_pickles(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(model_folder)

    monkeypatch.setattr("conlst.data.backtranslation.seq2seq.snapshot_download", fetch)
    translator = open_backend("seq2seq:hub:acme/mbart@abc123")
    assert asked[0][:2] == ("acme/mbart", "abc123")
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked[0][2])
    assert (translator.name, translator.version) == ("seq2seq:acme/mbart", "tiny-mbart")


def test_seq2seq_that_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("conlst.data.backtranslation.seq2seq.snapshot_download", fetch)
    with pytest.raises(BackendError, match=r"hub:acme/mbart@abc cannot be fetched \(no network\)"):
        open_backend("seq2seq:hub:acme/mbart@abc")
