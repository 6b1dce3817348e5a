import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, BackendError, ConfigError, RegistryError
from served import CHECKOUT, ONE, serve
from serving.models import Catalogue, Source, find_sources, open_model
from serving.settings import Settings
from tiny_onnx import tiny_onnx_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_onnx_folder(tmp_path_factory.mktemp("served") / "sw")


def test_an_unforeseen_failure_while_loading_is_told_too(monkeypatch):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr("serving.models.find_sources", fail)
    catalogue = Catalogue()
    catalogue.load(Settings())
    assert "ZeroDivisionError" in catalogue.problem


@pytest.mark.parametrize(
    ("models", "languages", "error", "message"),
    [
        ("sw", "", ConfigError, "'sw', expected language=folder"),
        ("sw=", "", ConfigError, "expected language=folder"),
        ("=FOLDER", "", ConfigError, "expected language=folder"),
        ("sw=FOLDER,sw=FOLDER", "", ConfigError, "two models for sw"),
        ("sw=FOLDER", "sw,fr", ConfigError, "asks for fr"),
        (",", "", ConfigError, "nothing to serve"),
        ("sw=/no/such/folder", "", ArtifactError, "/no/such/folder has no manifest"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(folder, models, languages, error, message):
    with pytest.raises(error, match=message):
        find_sources(Settings(models=models.replace("FOLDER", str(folder)), languages=languages))


def test_languages_restrict_what_is_served(folder):
    models = f"sw={folder}, fr=s3://bucket/models/manifests/{'0' * 64}.json"
    assert [source.language for source in find_sources(Settings(models=models))] == ["sw", "fr"]
    assert [source.language for source in find_sources(Settings(models=models, languages=" sw "))] == ["sw"]


@dataclass
class Champion:
    name: str
    version: int
    uri: str
    digest: str


def test_without_named_models_the_registrys_champions_are_served(folder, tmp_path, monkeypatch):
    digest = read_manifest(folder).digest
    uri = f"s3://bucket/models/manifests/{digest}.json"
    asked, fetched = [], []

    def resolve_champions(languages=None):
        asked.append(languages)
        return {"sw": Champion("nli-sw", 7, uri, digest)}

    def localize(source, cache):
        fetched.append((source, cache))
        return folder

    monkeypatch.setattr("conlst.platform.registry.resolve_champions", resolve_champions)
    monkeypatch.setattr("conlst.platform.objects.localize", localize)
    server = serve("", cache=tmp_path)
    assert server.predict(ONE).json()["model"] == {"name": "nli-sw", "version": 7, "digest": digest}
    assert fetched == [(uri, tmp_path / "served")]
    find_sources(Settings(languages="sw"))
    assert asked == [None, ["sw"]]


def test_a_registry_without_champions_has_nothing_to_serve(monkeypatch):
    monkeypatch.setattr("conlst.platform.registry.resolve_champions", lambda _: {})
    with pytest.raises(ConfigError, match=r"nothing to serve.*conlst promote.*CONLST_MODELS"):
        find_sources(Settings())


def test_a_model_of_another_digest_language_or_provider_is_not_opened(folder):
    source = Source("sw", "nli-sw", 1, str(folder), digest=read_manifest(folder).digest)
    configured = Settings(threads=1)
    assert open_model(source, configured).predictor.language == "sw"
    with pytest.raises(ArtifactError, match="the registry says"):
        open_model(replace(source, digest="0" * 64), configured)
    with pytest.raises(RegistryError, match="adapted to 'sw', it cannot be served for 'fr'"):
        open_model(replace(source, language="fr"), configured)
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        open_model(source, replace(configured, provider="CUDAExecutionProvider"))


def test_settings_come_from_the_environment():
    assert Settings.from_environment({}) == Settings()
    found = Settings.from_environment(
        {"CONLST_MAX_PAIRS": "8", "CONLST_MAX_WAITING": "0", "CONLST_CACHE": "/c", "CONLST_MODELS": "sw=/x", "CONLST_THREADS": ""}
    )
    assert found == Settings(max_pairs=8, max_waiting=0, cache=Path("/c"), models="sw=/x")


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "1e3", "٣"])
def test_a_wrong_setting_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=re.escape(f"CONLST_MAX_PAIRS is {value!r}")):
        Settings.from_environment({"CONLST_MAX_PAIRS": value})


def test_serving_imports_no_training_library():
    program = "import sys, serving.service; print({'torch', 'transformers', 'datasets', 'mlflow'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
