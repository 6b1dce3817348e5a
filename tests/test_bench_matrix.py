"""The experiment matrix: what a wrong one is told, and which cells a right one plans."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from conlst.bench.matrix import Matrix, Planned, read_matrix
from conlst.contract.config import load_config, with_settings
from conlst.contract.errors import ConfigError

ROOT = Path(__file__).parents[1]


def raw(**changes: Any) -> dict[str, Any]:
    """A matrix with one system of each kind."""
    return {
        "config": "demo",
        "source": ["{data}/en.tsv"],
        "source_dev": "{data}/en-dev.tsv",
        "splits": {
            "dev": {"default": "{data}/dev.{language}.tsv"},
            "test": {"default": "{data}/test.{language}.tsv", "id": "{data}/lay.tsv"},
            "indonesian": {"id": "{data}/train.id.tsv"},
        },
        "stage0": {"plain": {"describes": "fine-tuning"}, "given": {"describes": "a model", "model": "starter"}},
        "systems": {
            "zero-shot": {"describes": "as it is"},
            "conl": {"describes": "stage 1", "stages": ["calibrate"]},
            "conlst": {"describes": "the paper", "stages": ["calibrate", "selftrain"]},
            "french": {"describes": "needs a translator", "stages": ["selftrain"], "only": ["fr"]},
            "joint": {"describes": "one for all", "stages": ["selftrain"], "joint": True},
        },
        "runs": [{"systems": ["zero-shot", "conlst"], "languages": ["sw"]}],
    } | changes


def matrix(**changes: Any) -> Matrix:
    return Matrix.model_validate(raw(**changes))


def run(*systems: str, languages: tuple[str, ...] = ("sw", "fr"), **more: Any) -> dict[str, Any]:
    return {"systems": list(systems), "languages": list(languages), **more}


def changed(key: str, value: Any) -> dict[str, Any]:
    """The matrix with one value at a dotted key replaced."""
    whole: Any = raw()
    holder = whole
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in path:
        holder = holder[part]
    holder[last] = value
    return whole


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return path


WRONG: list[tuple[str, Any, str]] = [
    ("sources", ["x"], "sources: Extra inputs"),
    ("source", [], "source: "),
    ("config", 3, "config: "),
    ("runs", [], "runs: "),
    ("stage0.plain", {}, r"stage0\.plain\.describes: Field required"),
    ("stage0.plain.setting", {}, r"stage0\.plain\.setting: Extra"),
    ("stage0.plain.pairs", 0, r"stage0\.plain\.pairs: "),
    ("systems.conl.stage", [], r"systems\.conl\.stage: Extra"),
    ("systems.conl.stages", ["calibration"], r"systems\.conl\.stages\.0: "),
    ("systems.conl.start", "robust", r"systems\.conl\.start names 'robust'; there are given, plain"),
    ("systems.conl.teachers", [14], r"systems\.conl: .*teachers need the stage selftrain"),
    ("systems.zero-shot.joint", True, r"systems\.zero-shot: .*joint needs stages"),
    ("systems.a b", {"describes": "x"}, r"systems\.a b\.\[key\]"),
    ("systems.a/b", {"describes": "x"}, r"systems\.a/b\.\[key\]"),
    ("splits.dev/2", {}, r"splits\.dev/2\.\[key\]"),
    ("runs.0.systems", ["conlst", "cnl"], r"runs\.0\.systems names 'cnl'; there are conl, conlst"),
    ("runs.0.systems", [], r"runs\.0\.systems: "),
    ("runs.0.languages", [], r"runs\.0\.languages: "),
    ("runs.0.languages", [False], r"runs\.0\.languages\.0: "),  # YAML 1.1 reads Norwegian so
    ("runs.0.languages", ["../sw"], r"runs\.0\.languages\.0: "),
    ("runs.0.seeds", [-1], r"runs\.0\.seeds\.0: "),
    ("runs.0.seeds", [], r"runs\.0\.seeds: "),
    ("runs.0.pool", ["train"], r"runs\.0 names 'train'; there are dev, indonesian, test"),
    ("runs.0.tested", "tests", r"runs\.0 names 'tests'"),
    ("groups", {"method": ["cnlst"]}, r"groups\.method names 'cnlst'"),
]


@pytest.mark.parametrize(("key", "value", "named"), WRONG, ids=[f"{key}-{value}" for key, value, _ in WRONG])
def test_what_is_wrong_is_named(key: str, value: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        read_matrix(write(tmp_path / "matrix.yaml", changed(key, value)))
    assert "matrix.yaml: " in str(caught.value)


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    wrong = raw(source=[], sources=[])
    del wrong["config"]
    with pytest.raises(ConfigError, match=r"config: .*; source: .*; sources: "):
        read_matrix(write(tmp_path / "matrix.yaml", wrong))


@pytest.mark.parametrize(
    ("translate", "named"),
    [
        ({"backend": "apertium", "path": ["en"]}, "path"),
        ({"path": ["en", "es"]}, "backend"),
        ({"backend": "apertium", "path": ["es", "fr"]}, "es to fr; it begins with en"),
        ({"backend": "apertium", "path": ["en", "es", "es"]}, "changes in every step"),
        ({"backend": "apertium", "path": ["en", "es"], "pairs": 0}, "pairs"),
    ],
)
def test_translations_lead_from_english_somewhere(translate: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"stage0\.plain\.translate.*{named}"):
        read_matrix(write(tmp_path / "m.yaml", changed("stage0.plain.translate", translate)))


def test_a_model_that_exists_is_neither_trained_nor_of_another_seed(tmp_path: Path) -> None:
    translate = {"backend": "apertium", "path": ["en", "es"]}
    with pytest.raises(ConfigError, match=r"stage0\.given: .*translate has no use"):
        read_matrix(write(tmp_path / "m.yaml", changed("stage0.given.translate", translate)))
    taught = {"describes": "taught", "start": "given", "stages": ["selftrain"], "teachers": [14]}
    with pytest.raises(ConfigError, match=r"systems\.taught\.teachers: given is one model whatever the seed"):
        read_matrix(write(tmp_path / "m.yaml", changed("systems.taught", taught)))


@pytest.mark.parametrize("text", ["config: [", "\tconfig: x", "a: b: c"])
def test_what_is_no_yaml_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.yaml is not YAML"):
        read_matrix(write(tmp_path / "m.yaml", text))


@pytest.mark.parametrize("text", ["", "- config", "3"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.yaml: matrix: "):
        read_matrix(write(tmp_path / "m.yaml", text))


def test_a_matrix_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        read_matrix(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes("config: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not YAML in UTF-8"):
        read_matrix(tmp_path / "latin.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.yaml")), ids=lambda path: path.name)
def test_the_matrices_here_can_be_read(path: Path) -> None:
    assert read_matrix(path).plan()


def test_the_results_are_of_the_recipe_that_the_profile_has() -> None:
    matrix = read_matrix(ROOT / "benchmarks" / "xnli.yaml")
    (method,) = matrix.groups["method"]
    # the results are in bf16, the profile leaves it to the machine
    profile = with_settings(load_config(matrix.config), {"compute.precision": "bf16"})
    system = matrix.systems[method]
    assert with_settings(profile, {**matrix.settings, **system.settings}) == profile
    assert system.stages == ("calibrate", "selftrain")
    # the recipe without a part is no rival of it, but FlexMatch as published is both
    assert set(matrix.groups["ablations"]) & set(matrix.groups["rivals"]) == {"flexmatch"}


def test_a_language_and_seed_has_its_systems_together_and_a_joint_one_its_languages() -> None:
    runs = [run("joint", "conl", "conlst", seeds=[13, 14])]
    expected = [
        (system, language, seed)
        for seed in (13, 14)
        for system, language in [
            *(("conl", "sw"), ("conlst", "sw"), ("conl", "fr"), ("conlst", "fr")),
            *(("joint", "sw"), ("joint", "fr")),
        ]
    ]
    assert [(cell.system, cell.language, cell.seed) for cell in matrix(runs=runs).plan()] == expected


def test_each_cell_is_planned_once_in_the_order_of_the_runs() -> None:
    runs = [run("conlst", languages=("sw",)), run("conlst", "conl", languages=("fr", "sw")), run("conlst", languages=("sw",))]
    cells = [(cell.system, cell.language) for cell in matrix(runs=runs).plan()]
    assert cells == [("conlst", "sw"), ("conlst", "fr"), ("conl", "fr"), ("conl", "sw")]


def test_only_leaves_out_the_other_languages_and_a_joint_model_s_pools_of_them() -> None:
    systems = raw()["systems"] | {
        "joint": {"describes": "of two", "stages": ["selftrain"], "joint": True, "only": ["fr", "ur", "vi"]}
    }
    plan = matrix(systems=systems, runs=[run("french", "joint", languages=("sw", "fr", "ur"))]).plan()
    assert [(cell.system, cell.language, cell.languages) for cell in plan] == [
        ("french", "fr", ("fr",)),
        ("joint", "fr", ("fr", "ur")),
        ("joint", "ur", ("fr", "ur")),
    ]


def test_a_joint_model_has_the_pools_of_all_and_the_others_their_own() -> None:
    plan = matrix(runs=[run("joint", "conl")]).plan()
    assert {(cell.system, cell.language): cell.languages for cell in plan} == {
        ("conl", "sw"): ("sw",),
        ("conl", "fr"): ("fr",),
        ("joint", "sw"): ("sw", "fr"),
        ("joint", "fr"): ("sw", "fr"),
    }


def test_what_does_not_adapt_has_no_pool_and_is_one_cell_for_all_pools() -> None:
    plan = matrix(runs=[run("zero-shot", languages=("sw",), pool=pool) for pool in (["dev"], ["dev", "test"])]).plan()
    assert plan == [Planned("zero-shot", "sw", ("sw",), 13, (), "test")]


@pytest.mark.parametrize(
    ("system", "language", "pool", "protocol"),
    [
        ("conlst", "sw", ["dev"], "inductive"),
        ("conlst", "sw", ["dev", "test"], "transductive"),
        ("joint", "sw", ["test"], "transductive"),
        ("zero-shot", "sw", ["dev", "test"], "zero-shot"),
        ("zero-shot", "en", ["dev"], "supervised"),
    ],
)
def test_the_protocol_is_that_of_pool_and_language(system: str, language: str, pool: list[str], protocol: str) -> None:
    (cell,) = matrix(runs=[run(system, languages=(language,), pool=pool)]).plan()
    assert cell.protocol == protocol
    assert cell.path == Path(system) / f"{language}-{protocol}-test-13.json"


def test_nothing_adapts_to_the_language_that_has_labels() -> None:
    with pytest.raises(ValueError, match="conlst adapts to en"):
        matrix(runs=[run("conlst", languages=("en",))])


@pytest.mark.parametrize(
    "runs",
    [
        [run("conlst"), run("conlst", pool=["indonesian"])],
        [run("conlst", pool=["test"]), run("conlst", pool=["dev", "test"])],
        [run("joint"), run("joint", languages=("sw", "fr", "ur"))],
    ],
    ids=["inductive", "transductive", "joint"],
)
def test_two_cells_that_differ_do_not_share_a_file(runs: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"make the same (conlst|joint)/sw-\w+-test-13\.json; name their systems apart"):
        matrix(runs=runs)


def test_a_split_s_file_is_the_language_s_own_or_the_default() -> None:
    files = matrix()
    assert files.file("test", "sw") == "{data}/test.sw.tsv"
    assert files.file("test", "id") == "{data}/lay.tsv"
    with pytest.raises(ConfigError, match=r"splits\.indonesian has no file for sw"):
        files.file("indonesian", "sw")


@pytest.mark.parametrize("where", ["settings", "stage0.plain.settings", "systems.conl.settings"])
def test_what_an_adaptation_consists_of_is_no_setting_of_a_matrix(where: str) -> None:
    with pytest.raises(ValidationError, match=r"adapt\.joint is for the pipeline; in a matrix the stages and joint of a system"):
        Matrix.model_validate(changed(where, {"adapt.joint": True}))
