import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import boto3
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.numpy import save_file

from conlst.cli import main
from conlst.contract.artifacts import publish, verify
from conlst.contract.config import Gate
from conlst.contract.errors import RegistryError
from conlst.contract.predictions import write_predictions
from conlst.platform import objects, registry
from pipelines.local_services import free_port
from services import champion_of

GATE = Gate(min_accuracy=0.6, min_gain=0.01, max_ece=0.1, min_pairs=100, max_parity=1e-4)
# whatever was champion
LENIENT = GATE.model_copy(update={"min_gain": -1.0})
GOOD = {"accuracy": 0.7, "ece": 0.05, "n": 150, "zero_shot_accuracy": 0.65, "parity": 1e-5}


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """One for all tests, because MLflow takes seconds to open a new one."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture
def client(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client = MlflowClient(database, database)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return client


@pytest.fixture
def push(bucket, tmp_path):
    return pusher(f"{bucket}/models", tmp_path)


def pusher(prefix: str, tmp_path: Path):
    def push(content: str) -> tuple[str, str]:
        with publish(tmp_path / content, kind="onnx") as staging:
            (staging / "model.onnx").write_text(content)
        return objects.push_folder(tmp_path / content, prefix), verify(tmp_path / content).digest

    return push


@pytest.fixture
def register(client, push):  # noqa: ARG001
    def register(content: str, language: str = "sw", **metrics: float) -> int:
        return registry.register(language, *push(content), metrics=GOOD | metrics, tags={"code": "abc", "data": "d1"})

    return register


def aliases(client, name="nli-sw") -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def away(*_):
    raise MlflowException("the server is away")


def refused(*_):
    raise RegistryError("another promotion came first")


def lose_blob(uri: str) -> None:
    entry = objects.check_folder(uri).files["model.onnx"]
    bucket = objects.Address.parse(uri).bucket
    boto3.client("s3").delete_object(Bucket=bucket, Key=f"models/blobs/{entry.sha256}")


def test_a_registered_version_is_the_challenger(client, register, push):
    assert registry.challenger("sw") is None
    assert champion_of("sw") is None
    assert register("one") == 1
    found = registry.challenger("sw")
    uri, digest = push("one")
    assert (found.name, found.version, found.uri, found.digest, found.metrics) == ("nli-sw", 1, uri, digest, GOOD)
    assert found.tags == {"code": "abc", "data": "d1", "digest": digest, "language": "sw"}
    assert champion_of("sw") is None
    assert register("two") == 2
    assert aliases(client) == {"challenger": 2}


def test_registering_again_makes_no_second_version(register):
    assert [register("one"), register("one"), register("one", accuracy=0.71)] == [1, 1, 2]


def test_languages_have_models_of_their_own(register):
    assert [register("one", "sw"), register("one", "zh-Hant")] == [1, 1]
    assert registry.challenger("zh-Hant").name == "nli-zh-Hant"
    for code in ("", "Swahili", "sw'", "../sw", "s"):
        with pytest.raises(RegistryError, match="not a language code"):
            registry.challenger(code)


def test_an_incomplete_folder_is_not_registered(client, push):
    uri, digest = push("one")
    lose_blob(uri)
    with pytest.raises(RegistryError, match=r"model\.onnx"):
        registry.register("sw", uri, digest, metrics=GOOD, tags={})
    absent = uri.replace(digest, "0" * 64)
    with pytest.raises(RegistryError, match="no such object"):
        registry.register("sw", absent, "0" * 64, metrics=GOOD, tags={})
    with pytest.raises(RegistryError, match="not the folder of digest"):
        registry.register("sw", uri, "0" * 64, metrics=GOOD, tags={})
    for address in ("s3://conlst/model.onnx", "/tmp/model", "runs:/1/model"):
        with pytest.raises(RegistryError, match=r"cannot be (trusted|checked)"):
            registry.register("sw", address, digest, metrics=GOOD, tags={})
    assert not client.search_registered_models()


def test_the_first_promotion(client, register):
    decision = registry.promote("sw", register("one"), GATE)
    assert decision.promote
    assert aliases(client) == {"champion": 1}
    tags = champion_of("sw").tags
    assert json.loads(tags["decision"]) == {"promote": True, "reasons": list(decision.reasons)}
    assert tags["decided_at"].endswith("+00:00")


def test_a_refusal_moves_nothing_and_is_noted(client, register):
    registry.promote("sw", register("one"), GATE)
    decision = registry.promote("sw", register("two", accuracy=0.705), GATE)
    assert not decision.promote
    assert "champion" in decision.reasons[0]
    assert aliases(client) == {"champion": 1, "challenger": 2}
    assert json.loads(registry.challenger("sw").tags["decision"])["reasons"] == list(decision.reasons)


def test_nan_survives_the_registry_and_is_refused(register):
    assert registry.promote("sw", register("one", ece=math.nan), GATE).reasons == ("ece of the candidate is nan",)


def test_promotion_and_rollback_form_a_chain(client, register):
    for number, accuracy in enumerate((0.7, 0.72, 0.74), start=1):
        assert registry.promote("sw", register(f"v{number}", accuracy=accuracy), GATE).promote
    assert registry.rollback("sw").version == 2
    assert aliases(client) == {"champion": 2}
    assert "rolled_back_at" in client.get_model_version("nli-sw", "3").tags
    assert registry.promote("sw", register("v4", accuracy=0.75), GATE).promote
    assert [entry.replaces for entry in registry.history("sw")] == [None, 1, 2, 3, 2]
    assert [registry.rollback("sw").version, registry.rollback("sw").version] == [2, 1]
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback("sw")
    assert aliases(client)["champion"] == 1


def promoted(register, *accuracies: float) -> None:
    for number, accuracy in enumerate(accuracies, start=1):
        assert registry.promote("sw", register(f"v{number}", accuracy=accuracy), GATE).promote


def test_a_rollback_never_goes_forward_to_what_a_failed_promotion_would_have_replaced(client, register, monkeypatch):
    promoted(register, 0.7, 0.72, 0.74)
    with monkeypatch.context() as patch:
        patch.setattr(registry.ledger, "append", refused)
        with pytest.raises(RegistryError, match="came first"):
            registry.promote("sw", 2, LENIENT)
    assert registry.rollback("sw").version == 2
    assert registry.rollback("sw").version == 1
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback("sw")
    assert aliases(client)["champion"] == 1


def test_a_version_that_was_promoted_twice_is_not_rolled_back_in_a_circle(client, register):
    promoted(register, 0.7, 0.72)
    assert registry.promote("sw", 1, LENIENT).promote
    assert [registry.rollback("sw").version, registry.rollback("sw").version] == [2, 1]
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback("sw")
    assert aliases(client)["champion"] == 1


@pytest.mark.parametrize("again", [True, False])
def test_a_rollback_whose_alias_did_not_follow_can_be_done_again_or_left(client, register, monkeypatch, again):
    promoted(register, 0.7, 0.72, 0.74)
    monkeypatch.setattr(registry, "_UNDER_WAY", timedelta(0))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", away)
        with pytest.raises(RegistryError, match="do the same again"):
            registry.rollback("sw")
    assert aliases(client)["champion"] == 3
    if not again:
        assert registry.promote("sw", register("v4", accuracy=0.76), GATE).promote
        assert registry.rollback("sw").version == 3
    assert [registry.rollback("sw").version, registry.rollback("sw").version] == [2, 1]


def test_an_alias_that_a_person_moved_is_rolled_back_by_the_promotion_of_its_version(client, register):
    promoted(register, 0.7, 0.72, 0.74)
    client.set_registered_model_alias("nli-sw", "champion", "2")
    with pytest.raises(RegistryError, match="version 3 of nli-sw is being made champion"):
        registry.rollback("sw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_UNDER_WAY", timedelta(0))
        assert registry.rollback("sw").version == 1
        client.set_registered_model_alias("nli-sw", "champion", str(register("never promoted")))
        with pytest.raises(RegistryError, match="version 4 of nli-sw replaced no version when it was promoted"):
            registry.rollback("sw")


def test_a_challenger_whose_alias_stays_is_promoted_all_the_same(client, register, monkeypatch, caplog):
    version = register("one")
    monkeypatch.setattr(MlflowClient, "delete_registered_model_alias", away)
    assert registry.promote("sw", version, GATE).promote
    assert aliases(client) == {"champion": 1, "challenger": 1}
    assert "version 1 of nli-sw is champion and still has the alias challenger, too: the server is away" in caplog.text


def test_rollback_needs_a_champion_and_its_whole_predecessor(client, register, push):
    with pytest.raises(RegistryError, match="no champion"):
        registry.rollback("sw")
    registry.promote("sw", register("one"), GATE)
    registry.promote("sw", register("two", accuracy=0.8), GATE)
    lose_blob(push("one")[0])
    with pytest.raises(RegistryError, match=r"model\.onnx"):
        registry.rollback("sw")
    client.delete_model_version("nli-sw", "1")
    with pytest.raises(RegistryError, match="no version 1"):
        registry.rollback("sw")
    assert aliases(client) == {"champion": 2}


def test_promoting_the_champion_again_changes_nothing(register):
    version = register("one")
    registry.promote("sw", version, GATE)
    before = champion_of("sw")
    assert registry.promote("sw", version, GATE).reasons == ("version 1 already is the champion",)
    assert champion_of("sw") == before


def test_files_lost_since_registration_stop_promotion(client, register, push):
    version = register("one")
    lose_blob(push("one")[0])
    with pytest.raises(RegistryError, match=r"model\.onnx"):
        registry.promote("sw", version, GATE)
    assert aliases(client) == {"challenger": 1}


def test_an_unknown_version_is_named(register):
    register("one")
    with pytest.raises(RegistryError, match="nli-sw has no version 7"):
        registry.promote("sw", 7, GATE)
    with pytest.raises(RegistryError, match="nli-fr has no version 1"):
        registry.promote("fr", 1, GATE)


def test_of_two_promotions_from_the_same_champion_one_wins_and_one_is_told(client, register, monkeypatch):
    registry.promote("sw", register("one"), GATE)
    slow, quick = register("two", accuracy=0.8), register("three", accuracy=0.9)
    decide = registry.decide

    def overtaken(*args):
        monkeypatch.setattr(registry, "decide", decide)
        assert registry.promote("sw", quick, GATE).promote
        return decide(*args)

    monkeypatch.setattr(registry, "decide", overtaken)
    with pytest.raises(RegistryError, match=f"came first: version {quick} is champion"):
        registry.promote("sw", slow, GATE)
    assert aliases(client)["champion"] == quick
    assert [entry.version for entry in registry.history("sw")] == [1, quick]


def test_a_rollback_loses_against_a_promotion_that_came_first(client, register, monkeypatch):
    for content, accuracy in (("one", 0.7), ("two", 0.8)):
        registry.promote("sw", register(content, accuracy=accuracy), GATE)
    third = register("three", accuracy=0.9)
    make = registry._make_champion

    def overtaken(*args):
        monkeypatch.setattr(registry, "_make_champion", make)
        assert registry.promote("sw", third, GATE).promote
        make(*args)

    monkeypatch.setattr(registry, "_make_champion", overtaken)
    with pytest.raises(RegistryError, match="came first"):
        registry.rollback("sw")
    assert aliases(client)["champion"] == third


def test_a_rollback_does_not_skip_a_champion_that_came_meanwhile(client, register, monkeypatch):
    for content, accuracy in (("one", 0.7), ("two", 0.8)):
        registry.promote("sw", register(content, accuracy=accuracy), GATE)
    third = register("three", accuracy=0.9)
    look = registry._in_force

    def overtaken(*args):
        monkeypatch.setattr(registry, "_in_force", look)
        assert registry.promote("sw", third, GATE).promote
        return look(*args)

    monkeypatch.setattr(registry, "_in_force", overtaken)
    with pytest.raises(RegistryError, match="version 2 of nli-sw is no longer the champion"):
        registry.rollback("sw")
    assert aliases(client)["champion"] == third
    assert [entry.version for entry in registry.history("sw")] == [1, 2, third]


def test_history_tells_of_no_rollback_that_mlflow_refused(register, monkeypatch):
    for content, accuracy in (("one", 0.7), ("two", 0.8)):
        registry.promote("sw", register(content, accuracy=accuracy), GATE)

    def refused(*_):
        raise MlflowException("PERMISSION_DENIED")

    monkeypatch.setattr(MlflowClient, "set_model_version_tag", refused)
    with pytest.raises(RegistryError, match="PERMISSION_DENIED"):
        registry.rollback("sw")
    assert [entry.action for entry in registry.history("sw")] == ["promote", "promote"]


def test_a_promotion_cut_short_before_its_alias_holds_others_up_and_can_be_done_again(client, register, monkeypatch):
    registry.promote("sw", register("one"), GATE)
    second, third = register("two", accuracy=0.8), register("three", accuracy=0.9)
    move = MlflowClient.set_registered_model_alias
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", away)
    with pytest.raises(RegistryError, match="do the same again"):
        registry.promote("sw", second, GATE)
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move)
    assert aliases(client)["champion"] == 1

    with pytest.raises(RegistryError, match="version 2 of nli-sw is being made champion"):
        registry.promote("sw", third, GATE)
    assert registry.promote("sw", second, GATE).promote
    assert aliases(client)["champion"] == second


def test_an_alias_that_a_person_moved_is_the_champion_to_beat(client, register, monkeypatch):
    registry.promote("sw", register("one"), GATE)
    by_hand, better = register("two", accuracy=0.8), register("three", accuracy=0.805)
    client.set_registered_model_alias("nli-sw", "champion", str(by_hand))
    monkeypatch.setattr(registry, "_UNDER_WAY", timedelta(0))
    decision = registry.promote("sw", better, GATE)
    assert not decision.promote
    assert "over champion 0.8000" in decision.reasons[0]


def test_history_tells_every_champion_with_its_reasons_and_data(register):
    with pytest.raises(RegistryError, match="there is no nli-sw"):
        registry.history("sw")
    first = registry.promote("sw", register("one"), GATE)
    assert registry.promote("sw", register("worse", accuracy=0.65), GATE).promote is False
    registry.promote("sw", register("two", accuracy=0.8), GATE)
    registry.rollback("sw")
    told = registry.history("sw")
    assert [(entry.action, entry.version, entry.replaces) for entry in told] == [
        ("promote", 1, None),
        ("promote", 3, 1),
        ("rollback", 1, 3),
    ]
    assert told[0].reasons == first.reasons
    assert told[0].metrics == GOOD
    assert told[0].data == {"code": "abc"}
    assert told[2].reasons == ("version 3 was rolled back",)


def test_the_command_prints_the_history(register, capsys):
    registry.promote("sw", register("one"), GATE)
    assert main(["history", "--language", "sw"]) == 0
    line, result = capsys.readouterr().out.splitlines()
    assert "promote  version 1, the first" in line
    assert json.loads(result)["champions"][0]["version"] == 1


def test_versions_of_a_language_lie_in_one_place(client, push, bucket, tmp_path) -> None:  # noqa: ARG001
    registry.register("sw", *push("one"), metrics=GOOD, tags={})
    elsewhere = pusher(f"{bucket}/others", tmp_path)
    with pytest.raises(RegistryError, match=r"lie under s3://conlst/models, not under s3://conlst/others"):
        registry.register("sw", *elsewhere("two"), metrics=GOOD, tags={})


@pytest.fixture
def measured(client, push, bucket, tmp_path):  # noqa: ARG001
    """Registers a version whose predictions are right on the given pairs of 1,000."""

    def measured(content: str, right: range, fingerprint: str = "f1", order: np.ndarray | None = None) -> int:
        labels = np.zeros(1000, np.int64)
        logits = np.zeros((1000, 3), np.float32)
        logits[:, 1] = 1
        logits[right] = [2, 0, 0]
        records = np.arange(1000) * -7919 % 1009
        rows = slice(None) if order is None else order
        folder = tmp_path / f"evaluation-{content}"
        with publish(folder, kind="evaluation", meta={"fingerprint": fingerprint}) as staging:
            write_predictions(staging, logits[rows], labels[rows], records[rows])
        tags = {"evaluation": objects.push_folder(folder, f"{bucket}/evaluations"), "test": fingerprint}
        return registry.register("sw", *push(content), metrics=GOOD | {"accuracy": len(right) / 1000}, tags=tags)

    return measured


def test_a_candidate_that_is_clearly_worse_on_the_same_pairs_is_refused_within_its_margin(measured):
    lenient = GATE.model_copy(update={"margins": {"sw": -0.05}})
    assert registry.promote("sw", measured("one", range(0, 700)), lenient).promote
    decision = registry.promote("sw", measured("two", range(0, 680)), lenient)
    assert not decision.promote
    assert "0 pairs won and 20 lost" in decision.reasons[0]
    # as many points lower, but the pairs that changed sides could have been tossed by a coin
    chance = registry.promote("sw", measured("three", range(320, 1000)), lenient)
    assert chance.promote
    assert any("300 pairs won and 320 lost" in reason for reason in chance.reasons)


def test_the_same_pairs_in_another_order_are_compared_pair_by_pair(measured):
    lenient = GATE.model_copy(update={"margins": {"sw": -0.05}})
    assert registry.promote("sw", measured("one", range(0, 700)), lenient).promote
    turned = np.random.default_rng(0).permutation(1000)
    decision = registry.promote("sw", measured("two", range(0, 680), order=turned), lenient)
    assert not decision.promote
    assert "0 pairs won and 20 lost" in decision.reasons[0]


def test_predictions_that_do_not_tell_their_pairs_are_not_compared(measured, monkeypatch):
    def as_before(staging, logits, labels, _records):
        save_file({"logits": logits, "labels": labels}, staging / "predictions.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "write_predictions", as_before)
        registry.promote("sw", measured("one", range(700)), GATE)
    with pytest.raises(RegistryError, match=r"s3://.* cannot be compared: .*evaluate the model again, push that"):
        registry.promote("sw", measured("two", range(750)), GATE)


def test_evaluations_of_other_pairs_are_not_compared(measured, monkeypatch):
    registry.promote("sw", measured("one", range(700)), GATE)
    other = measured("two", range(750), "f2")
    monkeypatch.setattr(registry, "_incomparable", lambda *_: ())
    with pytest.raises(RegistryError, match="measure other pairs"):
        registry.promote("sw", other, GATE)


def test_versions_that_others_made_are_refused(client, push):
    client.create_registered_model("nli-sw")
    client.create_model_version("nli-sw", source="s3://elsewhere/model.pkl")
    client.set_registered_model_alias("nli-sw", "champion", "1")
    with pytest.raises(RegistryError, match="not registered by conlst"):
        champion_of("sw")
    client.create_model_version("nli-sw", source=push("one")[0], tags={"metrics": "[0.9]"})
    client.set_registered_model_alias("nli-sw", "champion", "2")
    with pytest.raises(RegistryError, match="metrics tag of version 2"):
        champion_of("sw")


def test_champions_are_resolved_for_serving(client, register):
    client.create_registered_model("other")
    assert registry.resolve_champions() == {}
    for language in ("sw", "fr"):
        registry.promote(language, register("one", language), GATE)
    register("one", "ur")
    assert {language: version.version for language, version in registry.resolve_champions().items()} == {"fr": 1, "sw": 1}
    client.set_model_version_tag("nli-fr", "1", "metrics", "[0.9]")
    champions = registry.resolve_champions()
    assert champions["sw"].version == 1
    assert "metrics tag of version 1 of nli-fr" in str(champions["fr"])


def test_without_an_address_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RegistryError, match="set MLFLOW_TRACKING_URI"):
        champion_of("sw")


def test_an_absent_server_is_an_error_of_the_registry(monkeypatch):
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=uri):
        registry.promote("sw", 1, GATE)


@pytest.mark.slow
def test_over_real_servers(prefix, mlflow_uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    push = pusher(f"{prefix}/models", tmp_path)
    versions = [
        registry.register("tr", *push(content), metrics=GOOD | {"accuracy": accuracy}, tags={"commit": "abc"})
        for content, accuracy in (("one", 0.7), ("two", 0.8), ("three", 0.75))
    ]
    assert versions == [1, 2, 3]
    assert [registry.promote("tr", version, GATE).promote for version in versions] == [True, True, False]
    assert registry.resolve_champions()["tr"].version == 2
    assert registry.challenger("tr").version == 3
    assert registry.rollback("tr").uri == push("one")[0]
    assert champion_of("tr").version == 1
    with pytest.raises(RegistryError, match="nli-tr has no version 9"):
        registry.promote("tr", 9, GATE)


@pytest.mark.slow
def test_of_many_promotions_at_once_one_wins_over_real_servers(prefix, mlflow_uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    push = pusher(f"{prefix}/models", tmp_path)
    versions = [registry.register("ur", *push(f"v{n}"), metrics=GOOD, tags={}) for n in range(6)]

    def promote(version: int) -> int | str:
        try:
            return version if registry.promote("ur", version, GATE).promote else "refused"
        except RegistryError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(promote, versions))
    winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert len(winners) == 1
    assert all(
        "came first" in told or "being made champion" in told or told == "refused" for told in set(outcomes) - set(winners)
    )
    assert champion_of("ur").version == winners[0]
    assert [entry.version for entry in registry.history("ur")] == winners


@pytest.mark.parametrize("other", [{"protocol": "inductive"}, {"test": "f2"}])
def test_accuracies_of_another_protocol_or_test_are_not_compared(client, push, other) -> None:  # noqa: ARG001
    alike = {"protocol": "transductive", "test": "f1"}
    first = registry.register("sw", *push("first"), metrics=GOOD, tags=alike)
    assert registry.promote("sw", first, GATE).promote
    better = registry.register("sw", *push("better"), metrics=GOOD | {"accuracy": 0.9}, tags=alike | other)

    decision = registry.promote("sw", better, GATE)

    assert not decision.promote
    assert "is not the champion's" in decision.reasons[0]
    assert champion_of("sw").version == first

    # by somebody's word it is judged as a first version is, which may refuse it, too
    poor = registry.register("sw", *push("poor"), metrics=GOOD | {"accuracy": 0.1}, tags=alike | other)
    assert not registry.promote("sw", poor, GATE, uncompared="400 pairs were labelled").promote
    assert registry.promote("sw", better, GATE, uncompared="400 pairs were labelled").promote
    assert registry.history("sw")[-1].reasons[-1] == "not compared with the champion, version 1: 400 pairs were labelled"
    best = registry.register("sw", *push("best"), metrics=GOOD | {"accuracy": 0.95}, tags=alike | other)
    with pytest.raises(RegistryError, match=f"version {best} of nli-sw was measured as the champion, version {better}, was"):
        registry.promote("sw", best, GATE, uncompared="a habit")
    assert registry.promote("sw", best, GATE).promote
