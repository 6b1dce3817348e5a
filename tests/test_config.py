import itertools
import json
import math
import shutil
import subprocess
import sys
import typing
import zipfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlst.contract.config import (
    Config,
    Section,
    config_from_dict,
    config_from_json,
    load_config,
    profile_names,
    profiles_folder,
    with_settings,
)
from conlst.contract.errors import ConfigError

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)
ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "configs").iterdir())


def sections(model: type[Section] = Config, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where every section stands, the configuration itself and optional ones included."""
    found = [path]
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                found += sections(kind, (*path, name))
    return found


SECTIONS = sections()
# robust trainings of stage 0, of which one can be set, each with what it needs
ROBUST: dict[str, dict[str, Any]] = {
    "r3f": {},
    "perturbation": {},
    "synonyms": {"table": "words.tsv"},
    "ept_apt": {"synonyms": "words.tsv"},
    "meta_learning": {"languages": ["es"]},
}


def nested(path: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """A configuration with ``values`` in the section at ``path``."""
    for name in reversed(path):
        values = {name: values}
    return {"name": "test"} | values


def setting(key: str, value: object) -> dict[str, Any]:
    *path, last = key.split(".")
    return nested(tuple(path), {last: value})


def at(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestProfiles:
    def test_those_that_users_are_promised_are_there(self) -> None:
        assert {"demo", "xnli-e5-small", "xnli-mbert", "xnli-xlmr-large"} <= set(PROFILES)
        assert profile_names() == PROFILES
        assert profiles_folder().samefile(ROOT / "configs")

    @pytest.mark.parametrize("name", PROFILES)
    def test_each_loads_by_name_and_by_path(self, name: str) -> None:
        config = load_config(name)
        assert config.name == name
        assert load_config(ROOT / "configs" / f"{name}.yaml") == config

    @pytest.mark.parametrize("name", PROFILES)
    def test_each_survives_the_way_through_a_pipeline(self, name: str) -> None:
        config = load_config(name)
        again = config_from_json(config.to_json())
        assert again == config
        assert again.digest == config.digest
        assert config_from_dict(config.to_dict()).to_json() == config.to_json()
        # through a reader that knows other spellings of the same numbers and another order
        shuffled = json.dumps(dict(reversed(json.loads(config.to_json()).items())), indent=2)
        assert config_from_json(shuffled).digest == config.digest

    def test_each_has_its_own_digest(self) -> None:
        assert len({load_config(name).digest for name in PROFILES}) == len(PROFILES)

    @pytest.mark.parametrize(
        ("name", "backbone", "lr"),
        [
            ("xnli-mbert", "hub:google-bert/bert-base-multilingual-cased", 2e-6),
            ("xnli-xlmr-large", "hub:FacebookAI/xlm-roberta-large", 5e-6),
        ],
    )
    def test_the_paper_s_constants(self, name: str, backbone: str, lr: float) -> None:
        config = load_config(name)
        assert config.backbone.name == backbone
        assert config.calibrate.lr == config.selftrain.lr == lr
        assert config.calibrate.source_weight == 0.001  # λ of eq. 8
        assert config.selftrain.target_weight == 1.0  # λ of eq. 12
        assert config.selftrain.mixup is not None
        assert config.selftrain.mixup.alpha == 4.0  # λ ~ Beta(4, 4), eq. 9
        assert config.calibrate.epochs == 1
        assert config.calibrate.threshold == 0.9
        assert config.calibrate.objective == "contrastive"
        assert config.calibrate.distance == "euclidean"
        assert not config.calibrate.normalize
        assert not config.backbone.freeze_embeddings
        assert set(config.data.genres) == {"fiction", "government", "slate", "telephone", "travel"}
        assert config.selftrain.masking is not None
        assert config.selftrain.back_translation is not None
        # the protocol that the paper reports: pool = dev + test without labels, accuracy on test
        assert config.data.sources("test", "sw")[0] in config.data.sources("pool", "sw")
        assert len(config.data.sources("pool", "sw")) == 2

    @pytest.mark.parametrize("name", ["xnli-e5-small", "xnli-mbert", "xnli-xlmr-large"])
    def test_xnli_s_fourteen_languages(self, name: str) -> None:
        expected = {"ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"}
        assert set(load_config(name).languages) == expected
        assert len(load_config(name).languages) == 14

    def test_the_small_profile_never_trains_on_what_it_is_tested_on(self) -> None:
        config = load_config("xnli-e5-small")
        assert not set(config.data.sources("pool", "sw")) & set(config.data.sources("test", "sw"))


class TestDefaults:
    def test_are_the_paper_s_where_it_has_any(self) -> None:
        config = Config(name="x")
        assert config.calibrate.lr == config.selftrain.lr == 2e-6
        assert (config.calibrate.source_weight, config.calibrate.epochs, config.calibrate.threshold) == (0.001, 1, 0.9)
        assert config.selftrain.mixup is not None
        assert (config.selftrain.mixup.alpha, config.selftrain.target_weight, config.selftrain.stop_below) == (4.0, 1.0, 0.005)

    def test_cannot_be_changed_by_a_user_of_one_configuration(self) -> None:
        config = Config(name="x")
        for holder, name in ((config, "seed"), (config.source, "lr"), (config.calibrate, "threshold")):
            with pytest.raises(ValueError, match="frozen"):
                setattr(holder, name, 1)


class TestUnknownKeys:
    def test_the_sections_below_are_all(self) -> None:
        names = {".".join(path) for path in SECTIONS}
        assert {"", "adapt", "backbone", "calibrate", "gate", "selftrain.mixup", "selftrain.masking"} <= names
        assert {"selftrain.back_translation", "selflearn", "source.masking"} <= names
        assert {f"source.{name}" for name in ROBUST} <= names
        assert len(names) == 22

    @pytest.mark.parametrize("path", SECTIONS, ids=".".join)
    def test_are_refused_in_every_section_by_name(self, path: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError, match="Extra inputs are not permitted") as caught:
            config_from_dict(nested(path, {"learning_rate": 1}), "my.yaml")
        assert str(caught.value).startswith("my.yaml: ")
        assert ".".join((*path, "learning_rate")) in str(caught.value)

    @pytest.mark.parametrize("path", SECTIONS[1:], ids=".".join)
    def test_a_section_is_a_mapping(self, path: tuple[str, ...]) -> None:
        for value in (3, "text", [1]):
            with pytest.raises(ConfigError, match=".".join(path)):
                config_from_dict(nested(path[:-1], {path[-1]: value}))

    def test_all_faults_are_named_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            config_from_dict({"seed": -1, "source": {"lr": 0, "rate": 1}, "gates": {}})
        for key in ("name", "seed", "source.lr", "source.rate", "gates"):
            assert f" {key}: " in str(caught.value)


OUT_OF_RANGE: list[tuple[str, object]] = [
    ("seed", -1),
    ("seed", 0.5),
    ("name", None),
    ("languages", "sw"),  # a string is no list of letters
    ("languages", [1]),
    ("backbone.pooling", "max"),
    ("backbone.max_length", 7),
    ("backbone.max_length", 513),
    ("backbone.dropout", 1),
    ("backbone.dropout", -0.1),
    ("backbone.projection", 0),
    ("compute.device", "tpu"),
    ("compute.precision", "fp16"),
    ("compute.threads", -1),
    ("compute.checkpoint_every", -1),
    ("data.max_bad_share", 1.01),
    ("data.max_bad_share", -0.01),
    *(
        (f"{stage}.{name}", value)
        for stage in ("source", "calibrate", "selftrain", "selflearn")
        for name, value in (
            ("lr", 0),
            ("lr", -1e-5),
            ("lr", math.nan),
            ("lr", None),
            ("lr", "fast"),
            ("head_lr", 0),
            ("warmup", 1),
            ("warmup", -0.1),
            ("weight_decay", -1),
            ("batch_tokens", 15),
            ("batch_tokens", 20.5),
            ("max_grad_norm", 0),
            ("epochs", 0),
            ("ema", 1),
            ("ema", -0.1),
        )
    ),
    ("source.label_smoothing", 1),
    ("source.keep_pairs", -1),
    *((f"{stage}.threshold", value) for stage in ("calibrate", "selftrain") for value in (0, 1, 90, math.nan)),
    *((f"{stage}.source_share", value) for stage in ("calibrate", "selftrain", "selflearn") for value in (0, 4.1)),
    *(
        (f"source.{name}.{key}", value)
        for name, key, value in [
            ("masking", "share", 0),
            ("r3f", "weight", 0),
            ("r3f", "eps", 0),
            ("r3f", "noise", "laplace"),
            ("perturbation", "sigma", 0),
            ("synonyms", "copies", 0),
            ("synonyms", "copy", 1),
            ("ept_apt", "push", -0.1),
            ("ept_apt", "pull", -0.1),
            ("ept_apt", "robust", -0.1),
            ("ept_apt", "layer", -1),
            ("meta_learning", "languages", []),
            ("meta_learning", "inner_lr", 0),
            ("meta_learning", "outer_lr", 0),
            ("meta_learning", "steps", 0),
            ("meta_learning", "order", 3),
        ]
    ),
    ("source.synonyms", {"copies": 2}),  # without a table
    ("source.ept_apt", {}),
    ("source.meta_learning", {}),
    ("backbone.pooling", "max"),
    ("calibrate.coverage", 0),
    ("calibrate.coverage", 1),
    ("selftrain.rule", "best"),
    ("selftrain.coverage", 0),
    ("selftrain.coverage", 1.1),
    ("selftrain.views", -1),
    ("selflearn.uncertainty", "bald"),
    ("selflearn.rounds", 0),
    ("selflearn.share", 0),
    ("selflearn.share", 1.1),
    ("selflearn.samples", 0),
    ("calibrate.negatives", 0),
    ("calibrate.temperature", 0),
    ("calibrate.temperature", -1),
    ("calibrate.distance", "manhattan"),
    ("calibrate.source_term", "both"),
    ("calibrate.source_weight", -0.001),
    ("calibrate.objective", "negative"),
    ("selftrain.max_iterations", 0),
    ("selftrain.stop_below", 1),
    ("selftrain.floor", 0.33),  # below chance a bar lets everything pass
    ("selftrain.floor", 1),
    ("selftrain.target_weight", -1),
    ("selftrain.masking.share", 0),
    ("selftrain.masking.share", 1),
    ("selftrain.mixup.alpha", 0),
    ("selftrain.back_translation.pivots", {"sw": "en"}),  # without a backend
    ("evaluate.bins", 1),
    ("evaluate.probes", -1),
    ("evaluate.high", 1),
    ("evaluate.low", 0),
    ("export.opset", 16),
    ("export.tolerance", 0),
    ("export.golden", 2),
    ("export.max_drop", -0.1),
    ("export.min_agreement", 97),
    ("export.pairs", 0),
    ("export.calibration", 0),
    ("gate.min_accuracy", 70),
    ("gate.min_gain", -1.1),
    ("gate.max_ece", 0),
    ("gate.min_pairs", 0),
    ("gate.max_parity", 0),
    ("gate.min_accuracy", math.nan),
]


class TestRanges:
    @pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
    def test_a_value_out_of_range_is_refused_by_name(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError) as caught:
            config_from_dict(setting(key, value))
        section, _, last = key.rpartition(".")
        assert section in str(caught.value)
        assert last in str(caught.value) or key.endswith("pivots")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("backbone.max_length", 8),
            ("backbone.max_length", 512),
            ("backbone.dropout", 0),
            ("data.max_bad_share", 1),
            ("calibrate.source_weight", 0),
            ("calibrate.source_share", 4),
            ("selftrain.target_weight", 0),
            ("selftrain.floor", 1 / 3),
            ("selftrain.coverage", 1),
            ("selflearn.share", 1),
            ("source.ema", 0),
            ("selftrain.stop_below", 0),
            ("source.head_lr", None),
            ("gate.min_gain", -1),
        ],
    )
    def test_the_borders_are_allowed(self, key: str, value: object) -> None:
        assert at(config_from_dict(setting(key, value)), key) == value

    @pytest.mark.parametrize(
        "key",
        [
            "source.lr",
            "calibrate.temperature",
            "calibrate.source_weight",
            "selftrain.weight_decay",
            "selftrain.mixup.alpha",
            "export.tolerance",
            "gate.max_parity",  # a gate that nothing fails
        ],
    )
    def test_infinity_is_out_of_range(self, key: str) -> None:
        with pytest.raises(ConfigError, match=key):
            config_from_dict(setting(key, math.inf))

    def test_bands_stand_in_order(self) -> None:
        for low, high in ((0.9, 0.9), (0.95, 0.9)):
            with pytest.raises(ConfigError, match=r"evaluate\.low 0\.9.* must lie below evaluate\.high"):
                config_from_dict({"name": "x", "evaluate": {"low": low, "high": high}})

    def test_self_training_needs_a_view(self) -> None:
        views: dict[str, Any] = {"masking": None, "mixup": None}
        with pytest.raises(ConfigError, match="at least one of masking, mixup, back_translation"):
            config_from_dict({"name": "x", "selftrain": views})
        for name, view in (("masking", {}), ("mixup", {}), ("back_translation", {"backend": "apertium"})):
            config_from_dict({"name": "x", "selftrain": views | {name: view}})

    @pytest.mark.parametrize("names", list(itertools.combinations(ROBUST, 2)), ids=" and ".join)
    def test_stage_0_takes_one_robust_training(self, names: tuple[str, str]) -> None:
        for name in names:
            config = config_from_dict({"name": "x", "source": {name: ROBUST[name], "masking": {}}})
            assert getattr(config.source, name) is not None
        with pytest.raises(ConfigError, match=f"source: .*takes one robust training, not {' and '.join(names)}"):
            config_from_dict({"name": "x", "source": {name: ROBUST[name] for name in names}})

    def test_meta_learning_reads_no_labels_of_a_target_language(self) -> None:
        source = {"meta_learning": {"languages": ["es", "de", "fr"]}}
        with pytest.raises(ConfigError, match="reads labels of de, es, which are target languages"):
            config_from_dict({"name": "x", "languages": ["es", "sw", "de"], "source": source})
        assert config_from_dict({"name": "x", "languages": ["sw"], "source": source}).source.meta_learning is not None

    @pytest.mark.parametrize("stages", [["calibrate", "selftrain"], ["selftrain"], ["calibrate"]])
    def test_an_adaptation_has_its_stages_in_order(self, stages: list[str]) -> None:
        assert list(config_from_dict({"name": "x", "adapt": {"stages": stages}}).adapt.stages) == stages

    @pytest.mark.parametrize("stages", [[], ["selftrain", "calibrate"], ["selftrain", "selftrain"], ["export"]])
    def test_other_orders_of_the_stages_are_refused(self, stages: list[str]) -> None:
        with pytest.raises(ConfigError, match=r"adapt.*stages|adapt\.stages"):
            config_from_dict({"name": "x", "adapt": {"stages": stages}})

    def test_collected_text_is_no_labelled_test(self) -> None:
        raw: dict[str, Any] = {"name": "x", "data": {"tests": "collected:s3://bucket/feedback"}}
        with pytest.raises(ConfigError, match=r"data\.tests collected:s3://bucket/feedback has no labels.*gate\.evidence"):
            config_from_dict(raw)
        config_from_dict(raw | {"gate": {"evidence": "none"}})


class TestSettings:
    def test_replace_values_and_nothing_else(self) -> None:
        base = load_config("demo")
        changed = with_settings(base, {"seed": 7, "calibrate.lr": 1e-5, "selftrain.mixup": None, "source.r3f": {"eps": 1e-3}})
        assert (changed.seed, changed.calibrate.lr, changed.selftrain.mixup) == (7, 1e-5, None)
        assert changed.source.r3f is not None
        assert (changed.source.r3f.eps, changed.source.r3f.weight) == (1e-3, 1.0)
        expected = base.to_dict()
        expected["seed"], expected["calibrate"]["lr"], expected["selftrain"]["mixup"] = 7, 1e-5, None
        expected["source"]["r3f"] = {"eps": 1e-3, "weight": 1.0, "noise": "uniform"}
        assert changed.to_dict() == expected
        assert load_config("demo") == base

    def test_none_is_the_same(self) -> None:
        assert with_settings(load_config("demo"), {}) == load_config("demo")

    def test_a_part_of_a_section_keeps_the_rest(self) -> None:
        base = with_settings(load_config("demo"), {"selftrain.masking": {"share": 0.3}, "selftrain.mixup": {"alpha": 2.0}})
        changed = with_settings(base, {"selftrain.mixup.alpha": 3.0})
        assert changed.selftrain.mixup is not None
        assert (changed.selftrain.mixup.alpha, changed.selftrain.masking) == (3.0, base.selftrain.masking)

    @pytest.mark.parametrize(
        ("key", "value", "named"),
        [
            ("calibrate.rate", 1, r"calibrate\.rate"),
            ("calibrated.lr", 1, "calibrated"),
            ("calibrate.lr", 0, r"calibrate\.lr"),
            ("sedd", 1, "sedd"),
            ("name.first", "x", "name is a value, not a section"),
            ("selftrain.mixup.alpha.x", 1, "alpha is a value, not a section"),
            ("source.r3f", {"weights": 1}, r"source\.r3f\.weights"),
        ],
    )
    def test_what_is_wrong_is_named(self, key: str, value: object, named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            with_settings(load_config("demo"), {key: value})

    def test_they_are_validated_together(self) -> None:
        low, high = {"evaluate.low": 0.95}, {"evaluate.high": 0.99}
        assert with_settings(load_config("demo"), low | high).evaluate.low == 0.95
        with pytest.raises(ConfigError, match="must lie below"):
            with_settings(load_config("demo"), low)


class TestDigest:
    def test_is_of_the_values_and_not_of_their_spelling(self) -> None:
        a = config_from_dict({"name": "x", "source": {"lr": 1, "epochs": 2}})
        b = config_from_dict({"source": {"epochs": 2.0, "lr": 1.0}, "name": "x", "seed": 13})
        assert a.digest == b.digest
        assert len(a.digest) == 64

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("name", "y"),
            ("seed", 14),
            ("languages", ["sw"]),
            ("source_model", "train"),
            ("backbone.revision", "abc"),
            ("source.lr", 2.1e-5),
            ("calibrate.normalize", True),
            ("selftrain.mixup", None),
            ("selftrain.mixup.alpha", 4.5),
            ("selftrain.rule", "fixed"),
            ("selflearn.rounds", 3),
            ("source.r3f", {}),
            ("backbone.pooling", "pair"),
            ("data.tests", "sample:sw"),
            ("gate.min_pairs", 101),
        ],
    )
    def test_changes_with_any_value(self, key: str, value: object) -> None:
        assert config_from_dict({"name": "x"} | setting(key, value)).digest != Config(name="test").digest

    @REPEATABLE
    @given(st.floats(min_value=1e-12, max_value=1e3), st.text(max_size=8), st.lists(st.text(max_size=3), max_size=3))
    def test_any_number_and_text_survives_the_way(self, lr: float, name: str, languages: list[str]) -> None:
        config = config_from_dict({"name": name, "languages": languages, "source": {"lr": lr}})
        again = config_from_json(config.to_json())
        assert (again, again.source.lr, again.digest) == (config, lr, config.digest)

    @pytest.mark.parametrize("text", ["", "{", "name: x"])
    def test_what_is_no_json_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="not JSON"):
            config_from_json(text)

    @pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}"])
    def test_json_that_is_no_configuration_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="config"):
            config_from_json(text)


class TestData:
    def test_the_language_is_filled_in(self) -> None:
        data = load_config("xnli-mbert").data
        assert data.sources("pool", "ur") == ["hub:facebook/xnli/ur:validation", "hub:facebook/xnli/ur:test"]
        assert data.sources("test", "ur") == ["hub:facebook/xnli/ur:test"]
        assert data.sources("source", "ur") == ["hub:nyu-mll/multi_nli:train"]
        assert data.sources("source_dev", "ur") == ["hub:nyu-mll/multi_nli:validation_matched"]

    def test_an_unknown_role_is_refused_with_those_that_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"'train'; the roles are source, source_dev, pool, test"):
            load_config("demo").data.sources("train", "sw")


class TestLoad:
    @pytest.mark.parametrize("name", ["nothing", "nothing.yaml", "configs", "../pyproject.toml", ""])
    def test_what_is_not_there_is_refused_with_what_there_is(self, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(name)
        assert repr(name) in str(caught.value)
        assert all(profile in str(caught.value) for profile in PROFILES)

    @pytest.mark.parametrize("suffix", ["yaml", "yml"])
    def test_a_file_by_path(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"mine.{suffix}", "name: mine\nselftrain: {lr: 3.0e-5}\n")
        assert load_config(path).selftrain.lr == load_config(str(path)).selftrain.lr == 3e-5

    @pytest.mark.parametrize("text", ["name: [", "name: 'x", "\tname: x", 'name: !!python/object/apply:os.getcwd ["x"]'])
    def test_what_is_no_yaml_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML"):
            load_config(write(tmp_path / "mine.yaml", text))

    @pytest.mark.parametrize("text", ["- name", "name", "3"])
    def test_what_is_no_mapping_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ConfigError, match=r"mine\.yaml must be a mapping"):
            load_config(write(tmp_path / "mine.yaml", text))

    @pytest.mark.parametrize("text", ["", "# nothing", "1: 2", "name: x\n2: y"])
    def test_a_mapping_that_is_no_configuration_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ConfigError, match=r"mine\.yaml: "):
            load_config(write(tmp_path / "mine.yaml", text))

    def test_a_profile_in_another_encoding_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_bytes("name: é".encode("latin-1"))
        with pytest.raises(ConfigError, match=r"mine\.yaml"):
            load_config(tmp_path / "mine.yaml")


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("calibrate.lr=2e-5", 2e-5),  # YAML 1.1 reads it as text
            ("calibrate.lr=2E-5", 2e-5),
            ("calibrate.lr=2.0e-5", 2e-5),
            ("calibrate.lr=.5", 0.5),
            ("calibrate.lr= 1", 1.0),
            ("calibrate.batch_tokens=2e3", 2000),
            ("calibrate.normalize=false", False),
            ("calibrate.distance=cosine", "cosine"),
            ("calibrate.head_lr=null", None),
            ("calibrate.head_lr=", None),
            ("seed=0", 0),
            ("name=a=b", "a=b"),
            ("languages=[fr, 'no']", ("fr", "no")),
            ("languages=[]", ()),
            ("data.pools=['hub:a/b:c', s3://x/y.tsv]", ("hub:a/b:c", "s3://x/y.tsv")),
            ("data.tests=sample:{language}", "sample:{language}"),
            ("selftrain.mixup=null", None),
            ("selftrain.mixup.alpha=1", 1.0),
            ("selftrain.back_translation.backend=apertium", "apertium"),
            ("selftrain.back_translation={backend: apertium, pivots: {ur: hi}}", None),
        ],
    )
    def test_set_one_value_and_nothing_else(self, override: str, value: object) -> None:
        key = override.partition("=")[0]
        base, config = load_config("demo"), load_config("demo", (override,))
        if key == "selftrain.back_translation":
            assert config.selftrain.back_translation is not None
            assert config.selftrain.back_translation.pivots == {"ur": "hi"}
        else:
            assert at(config, key) == value
            assert type(at(config, key)) is type(value)
        other = config.to_dict()
        for holder in (other, expected := base.to_dict()):
            *path, last = key.split(".")[:2]
            for name in path:
                holder = holder[name]
            holder.pop(last)
        assert other == expected

    def test_the_last_one_wins_and_the_profile_stays_as_it_is(self) -> None:
        config = load_config("demo", ("source.lr=1e-3", "source.lr=2e-3", "source.epochs=4"))
        assert (config.source.lr, config.source.epochs) == (2e-3, 4)
        assert load_config("demo").source.lr == 2e-5

    def test_they_are_validated_like_the_profile(self) -> None:
        for override, key in [
            ("calibrate.lr=0", "calibrate.lr"),
            ("calibrate.lr=fast", "calibrate.lr"),
            ("calibrate.rate=1", "calibrate.rate"),
            ("calibrated.lr=1", "calibrated"),
            ("source=3", "source"),
            ("seed=1.5", "seed"),
            ("source.lr.x=1", "source.lr"),
            ("a..b=1", "a"),
            (".lr=1", "Extra"),
            ("languages=[no]", "languages.0"),  # YAML 1.1 reads Norwegian as false
        ]:
            with pytest.raises(ConfigError) as caught:
                load_config("demo", (override,))
            assert key in str(caught.value)

    @pytest.mark.parametrize("override", ["", "lr", "calibrate.lr", "calibrate.lr:1", "=", "=1", "calibrate.=1", "."])
    def test_malformed_ones_are_refused_with_the_form(self, override: str) -> None:
        with pytest.raises(ConfigError, match=r"is not of the form section\.key=value") as caught:
            load_config("demo", (override,))
        assert repr(override) in str(caught.value)

    def test_a_value_has_no_sections(self) -> None:
        with pytest.raises(ConfigError, match="name is a value, not a section"):
            load_config("demo", ("name.first=x",))

    @pytest.mark.parametrize("override", ["languages=[sw", "source.lr=a: b: c", "source.lr=@", "name='x", "name=\t\0"])
    def test_values_that_are_no_yaml_are_refused_by_name(self, override: str) -> None:
        with pytest.raises(ConfigError, match="--set"):
            load_config("demo", (override,))


LIST_PROFILES = """
import json
from conlst.contract import config
print(json.dumps([config.__file__, config.profile_names(), [config.load_config(n).digest for n in config.profile_names()]]))
"""


def list_installed(site: Path) -> tuple[str, list[str], list[str]]:
    """What a Python that has conlst in ``site`` says of its profiles."""
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{LIST_PROFILES}"
    run = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=True)
    return typing.cast("tuple[str, list[str], list[str]]", tuple(json.loads(run.stdout)))


def copy_package(target: Path, symlinks: bool) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.tsv")
    shutil.copytree(ROOT / "conlst", target / "conlst", symlinks, ignored)


class TestInstalled:
    def test_profiles_inside_the_package_are_found_where_there_is_no_checkout(self, tmp_path: Path) -> None:
        copy_package(tmp_path, symlinks=False)
        file, names, digests = list_installed(tmp_path)
        assert Path(file).is_relative_to(tmp_path)
        assert names == PROFILES
        assert digests == [load_config(name).digest for name in PROFILES]

    def test_a_wheel_carries_the_profiles(self, tmp_path: Path) -> None:
        source, site = tmp_path / "source", tmp_path / "site"
        copy_package(source, symlinks=True)  # as a checkout has them
        shutil.copytree(ROOT / "configs", source / "configs")
        for name in ("pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in"):
            if (ROOT / name).exists():
                shutil.copyfile(ROOT / name, source / name)
        (source / "README.md").write_text("conlst\n")
        build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
        result = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
        if result.returncode:
            pytest.fail(result.stderr[-2000:])
        (wheel,) = tmp_path.glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
        assert list_installed(site)[1] == PROFILES
