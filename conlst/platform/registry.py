"""Model versions in the MLflow registry: one model a language, ``nli-<language>``, with aliases ``champion`` and ``challenger``.

MLflow holds an artifact folder's address and digest, never its bytes. Its metrics are a tag of the version, so that a later
candidate can be compared with it. Which of two promotions at once wins is settled by :mod:`conlst.platform.ledger`. Stages,
``latest_versions`` and the aliases in search results are not used: the first are deprecated, the others come back empty.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from conlst.contract.artifacts import canonical_json
from conlst.contract.config import Gate
from conlst.contract.errors import ArtifactError, BackendError, RegistryError
from conlst.platform import ledger, objects
from conlst.platform.gate import Decision, Paired, decide
from conlst.platform.mlflow_client import open_client
from conlst.platform.paired import compare_evaluations

log = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"
_PREFIX = "nli-"
# tag of a registered model: the one prefix that its versions and its ledger lie under
_STORE = "store"
# an entry of the ledger whose alias has not followed by then never will: its writer was killed, or the alias moved by hand
_UNDER_WAY = timedelta(minutes=1)
# tags that say on what a version was made and measured
_PROVENANCE = ("job", "protocol", "test", "pool", "config_digest", "code", "model_digest", "evaluation")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        uri: ``s3://`` address of its folder's manifest.
        digest: the digest that the address names.
        metrics: what the gate reads, as measured before registration.
        tags: everything else that was noted, for example ``protocol`` and ``decision``.
    """

    name: str
    version: int
    uri: str
    digest: str
    metrics: dict[str, float]
    tags: dict[str, str]


def register(language: str, folder_uri: str, digest: str, *, metrics: dict[str, float], tags: dict[str, str]) -> int:
    """Make a version of a published folder and alias it ``challenger``; the same again returns the version there is.

    Raises:
        RegistryError: if the folder is not complete in S3, is not the one that ``digest`` names, does not lie under the prefix of
            the language's other versions, or MLflow fails.
    """
    name = _name(language)
    _check(folder_uri, digest)
    with _client() as client:
        current = _aliased(client, name, CHALLENGER)
        if current is not None and (current.uri, current.metrics) == (folder_uri, metrics):
            return current.version
        _ensure_model(client, name, language)
        _store_of(client, name, folder_uri)
        own_tags = {"digest": digest, "metrics": canonical_json(metrics), "language": language}
        created = client.create_model_version(
            name, source=folder_uri, tags=tags | own_tags, await_creation_for=30, description=f"conlst {digest[:12]}"
        )
        client.set_registered_model_alias(name, CHALLENGER, created.version)
    log.info("registered %s version %s, %s", name, created.version, folder_uri)
    return int(created.version)


def challenger(language: str) -> Version | None:
    """The version registered last and not promoted, or ``None``."""
    with _client() as client:
        return _aliased(client, _name(language), CHALLENGER)


def version(language: str, number: int) -> Version:
    """A version with its metrics and tags.

    Raises:
        RegistryError: if there is no such version.
    """
    with _client() as client:
        return _version(client, _name(language), number)


def promote(language: str, version: int, gate: Gate, *, uncompared: str = "") -> Decision:
    """Let the gate decide on a version and, if it passes, alias it ``champion``. The decision is noted either way.

    Args:
        uncompared: why a version that was measured on other pairs than the champion, or otherwise, is to be judged as the first
            of its language is; the reason goes into the history. Without one such a version is refused.

    Raises:
        RegistryError: if there is no such version, its folder is no longer complete, another promotion came first, or MLflow or
            S3 fails; or if the champion was measured alike and ``uncompared`` is given. The alias has then not been moved by this
            call, unless the message says that only the alias is missing.
    """
    name = _name(language)
    with _client() as client:
        candidate = _version(client, name, version)
        before, number = _in_force(client, candidate)
        if before is not None and before.version == version:
            return Decision(True, (f"version {version} already is the champion",))
        _check(candidate.uri, candidate.digest)
        decision = _decision(candidate, before, gate.of(language), uncompared)
        _tag(client, candidate, decision=canonical_json(asdict(decision)), decided_at=_now())
        if decision.promote:
            _make_champion(client, candidate, before, number, "promote", decision.reasons)
            _unchallenge(client, candidate)
    log.info("%s version %d %s: %s", name, version, "promoted" if decision.promote else "refused", "; ".join(decision.reasons))
    return decision


def rollback(language: str) -> Version:
    """Alias as ``champion`` again what the present champion replaced when it was promoted, by the ledger.

    A rollback takes that promotion back: the next one goes on to the champion before, down to the first one and never forward.

    Raises:
        RegistryError: if there is no champion, it replaced nothing or was made champion by hand, what it replaced is gone, or a
            promotion came first.
    """
    name = _name(language)
    with _client() as client:
        present = _aliased(client, name, CHAMPION)
        if present is None:
            raise RegistryError(f"{name} has no champion, so there is nothing to roll back")
        replaced = _replaced(ledger.history(_store_of(client, name, present.uri), language), present.version)
        if replaced is None:
            raise RegistryError(
                f"version {present.version} of {name} replaced no version when it was promoted; there is nothing to roll back to"
            )
        previous = _version(client, name, replaced)
        _check(previous.uri, previous.digest)
        before, number = _in_force(client, previous)
        if before is None or before.version != present.version:
            raise RegistryError(
                f"version {present.version} of {name} is no longer the champion; look at its history, decide anew"
            )
        # the first call that MLflow can refuse: the ledger must not tell of a rollback that it did not allow
        _tag(client, present, rolled_back_at=_now())
        reason = f"version {present.version} was rolled back"
        _make_champion(client, previous, before, number, "rollback", (reason,))
    log.info("%s rolled back from version %d to %d", name, present.version, previous.version)
    return previous


def history(language: str) -> list[ledger.Entry]:
    """Every champion that the language had, oldest first.

    Raises:
        RegistryError: if no version was registered, or the ledger or MLflow cannot be read.
    """
    name = _name(language)
    with _client() as client:
        store = _registered(client, name).tags.get(_STORE)
        if store is None:
            raise RegistryError(f"no version of {name} was registered by this conlst, so it has no history")
        return ledger.history(store, language)


def resolve_champions() -> dict[str, Version | RegistryError]:
    """The champions to serve, by language, of all languages that have one.

    One whose version cannot be used (never registered by conlst, not ready, gone) is its error, so that it does not keep the
    other languages from theirs.

    Raises:
        RegistryError: if the registry cannot be asked.
    """
    with _client() as client:
        found = {language: _usable(client, language) for language in _registered_languages(client)}
    return {language: version for language, version in found.items() if version is not None}


def _usable(client: MlflowClient, language: str) -> Version | RegistryError | None:
    try:
        return _aliased(client, _name(language), CHAMPION)
    except RegistryError as error:
        return error


def _decision(candidate: Version, champion: Version | None, gate: Gate, uncompared: str) -> Decision:
    if champion is None:
        return decide(candidate.metrics, None, gate)
    differs = _incomparable(candidate, champion, gate)
    if differs and not uncompared:
        return Decision(False, differs)
    if differs:
        decision = decide(candidate.metrics, None, gate)
        told = f"not compared with the champion, version {champion.version}: {uncompared}"
        return Decision(decision.promote, (*decision.reasons, told))
    if uncompared:
        raise RegistryError(
            f"version {candidate.version} of {candidate.name} was measured as the champion, version {champion.version}, was: "
            "promote it without --uncompared"
        )
    return decide(candidate.metrics, champion.metrics, gate, _paired(candidate, champion))


def _incomparable(candidate: Version, champion: Version, gate: Gate) -> tuple[str, ...]:
    """Why accuracies cannot be compared: they were measured on other pairs, or under another protocol."""
    # estimates are of the text of their day, which changes from one adaptation to the next
    alike = ("protocol", "test") if gate.evidence == "labels" else ("protocol",)
    return tuple(
        f"{name} {candidate.tags.get(name)} is not the champion's {champion.tags.get(name)}, so they cannot be compared; "
        "if that is meant, promote it with --uncompared REASON"
        for name in alike
        if candidate.tags.get(name) != champion.tags.get(name)
    )


def _in_force(client: MlflowClient, candidate: Version) -> tuple[Version | None, int]:
    """The champion, and the number that the next entry of the ledger has.

    Raises:
        RegistryError: if another promotion has written its entry and is about to move the alias.
    """
    entry = ledger.last(_store_of(client, candidate.name, candidate.uri), _language_of(candidate.name))
    now = _aliased(client, candidate.name, CHAMPION)
    if entry is None:
        return now, 1
    followed = now is not None and now.version == entry.version
    recent = datetime.now(UTC) - datetime.fromisoformat(entry.at) < _UNDER_WAY
    if not followed and recent and entry.version != candidate.version:
        raise RegistryError(
            f"version {entry.version} of {candidate.name} is being made champion since {entry.at}; try again in a minute"
        )
    return now, entry.number + 1


def _make_champion(
    client: MlflowClient,
    version: Version,
    before: Version | None,
    number: int,
    action: Literal["promote", "rollback"],
    reasons: tuple[str, ...],
) -> None:
    # the entry is what only one of several writers gets; the alias, which has no such condition, follows it
    entry = ledger.Entry(
        number=number,
        language=_language_of(version.name),
        version=version.version,
        uri=version.uri,
        digest=version.digest,
        replaces=before.version if before else None,
        action=action,
        reasons=reasons,
        metrics=version.metrics,
        data={name: version.tags[name] for name in _PROVENANCE if name in version.tags},
        at=_now(),
    )
    ledger.append(_store_of(client, version.name, version.uri), entry)
    try:
        client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    except MlflowException as error:
        raise RegistryError(
            f"version {version.version} of {version.name} is decided on, but its alias could not be moved ({error}); "
            "do the same again when MLflow answers"
        ) from error


def _unchallenge(client: MlflowClient, version: Version) -> None:
    try:
        if _aliases(client, version.name).get(CHALLENGER) == version.version:
            client.delete_registered_model_alias(version.name, CHALLENGER)
    except MlflowException as error:
        # a word too much in MLflow; the promotion is done, and telling of a failure would have it done again
        log.warning(
            "version %d of %s is champion and still has the alias %s, too: %s", version.version, version.name, CHALLENGER, error
        )


def _replaced(entries: Sequence[ledger.Entry], present: int) -> int | None:
    """What the champion ``present`` replaced when it was promoted, if it was, and replaced any."""
    # what the alias was at after each entry: what the next one replaced
    champions = [*(entry.replaces for entry in entries[1:]), present]
    standing: list[ledger.Entry] = []
    for entry, champion in zip(entries, champions[: len(entries)], strict=True):
        if entry.version != champion:
            # cut short before its alias, or the alias was moved by hand
            continue
        if entry.action == "promote":
            standing.append(entry)
        elif standing:
            standing.pop()
    return standing[-1].replaces if standing and standing[-1].version == present else None


def _paired(candidate: Version, champion: Version | None) -> Paired | None:
    """How the two differ on the same labelled pairs; ``None`` if one of them was registered without its predictions."""
    if champion is None or not (candidate.tags.get("evaluation") and champion.tags.get("evaluation")):
        return None
    if "accuracy" not in candidate.metrics or "accuracy" not in champion.metrics:
        return None
    return compare_evaluations(champion.tags["evaluation"], candidate.tags["evaluation"])


def _store_of(client: MlflowClient, name: str, uri: str) -> str:
    """The prefix that all versions of a model lie under: the first one's."""
    root = objects.root_of(uri)
    store = _registered(client, name).tags.get(_STORE)
    if store is None:
        client.set_registered_model_tag(name, _STORE, root)
        store = root
    if store != root:
        raise RegistryError(f"the versions of {name} lie under {store}, not under {root}; publish there")
    return store


def _check(uri: str, digest: str) -> None:
    try:
        named = objects.digest_of(uri)
        if named != digest:
            raise RegistryError(f"{uri} is not the folder of digest {digest}; register the address that its push returned")
        objects.check_folder(uri)
    except ArtifactError as error:
        raise RegistryError(f"the folder of this version cannot be trusted: {error}") from error
    except BackendError as error:
        raise RegistryError(f"the folder of this version cannot be checked: {error}") from error


def _aliased(client: MlflowClient, name: str, alias: str) -> Version | None:
    number = _aliases(client, name).get(alias)
    return None if number is None else _version(client, name, number)


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: int(version) for alias, version in model.aliases.items()}


def _registered(client: MlflowClient, name: str) -> RegisteredModel:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(f"there is no {name} in the registry; register a version first") from None
        raise


def _version(client: MlflowClient, name: str, number: int) -> Version:
    try:
        found = client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(f"{name} has no version {number}; the registry lists what there is") from None
        raise
    where = f"version {number} of {name}"
    if found.status != "READY":
        raise RegistryError(f"{where} is {found.status}, not READY; register it again")
    uri, tags = str(found.source), dict(found.tags)
    try:
        metrics = {key: float(value) for key, value in json.loads(tags.pop("metrics", "{}")).items()}
        digest = objects.digest_of(uri)
    except (ValueError, TypeError, AttributeError) as error:
        raise RegistryError(f"the metrics tag of {where} is not a table of numbers ({error}); register it again") from error
    except BackendError as error:
        raise RegistryError(f"{where} was not registered by conlst: {error}") from error
    return Version(name, number, uri, digest, metrics, tags)


def _tag(client: MlflowClient, version: Version, **tags: str) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)


def _ensure_model(client: MlflowClient, name: str, language: str) -> None:
    try:
        client.create_registered_model(name, tags={"language": language})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered_languages(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(f"name LIKE '{_PREFIX}%'", page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(name.removeprefix(_PREFIX) for name in names)


def _name(language: str) -> str:
    if not _LANGUAGE.fullmatch(language):
        raise RegistryError(f"{language!r} is not a language code such as sw or zh-Hant")
    return f"{_PREFIX}{language}"


def _language_of(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _client() -> Iterator[MlflowClient]:
    """A client of ``$MLFLOW_TRACKING_URI``, whose failures are told as errors of the registry."""
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise RegistryError("no model registry is configured; set MLFLOW_TRACKING_URI, for example to http://mlflow:5000")
    try:
        yield open_client(uri)
    except MlflowException as error:
        raise RegistryError(f"the MLflow registry at {uri} failed: {error}") from error
    except BackendError as error:
        raise RegistryError(f"what the registry points to cannot be read: {error}") from error
