"""The endpoint's answers as typed values, read from its JSON. Fields that this version does not know are passed over."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conlst.contract.labels import NAMES

Pair = tuple[str, str]


@dataclass(frozen=True)
class ModelName:
    """Which model answered.

    Attributes:
        version: in the registry; ``None`` for a model that is served from a folder or address.
        digest: sha256 that names every byte of the model.
    """

    name: str
    version: int | None
    digest: str
    precision: str


@dataclass(frozen=True)
class Prediction:
    """The answer to one pair.

    Attributes:
        probabilities: of each label, calibrated; they sum to one.
        language: whose model answered.
        language_source: ``given``, ``detected`` or ``fallback``.
        truncated: whether the pair was cut to the model's length.
        logits: before calibration, if they were asked for.
    """

    label: str
    probabilities: Mapping[str, float]
    language: str
    language_source: str
    model: ModelName
    truncated: bool
    logits: Mapping[str, float] | None


@dataclass(frozen=True)
class Refused:
    """A pair or text that is not answered while its neighbours are.

    Attributes:
        kind: the stable name that programs compare, for example ``too_long``.
        message: what is wrong and what to do.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class ZeroShotResult:
    """The candidate labels of one text, by falling score.

    Attributes:
        truncated: whether the text was cut to the model's length.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    language: str
    language_source: str
    model: ModelName
    truncated: bool


@dataclass(frozen=True)
class Gate:
    """How the registry decided on a version."""

    promote: bool
    reasons: tuple[str, ...]
    decided_at: str | None


@dataclass(frozen=True)
class Rejected:
    """A version that was promoted but that the endpoint refuses to serve; the one before serves on, if there is one."""

    version: int | None
    digest: str | None
    reason: str
    since: datetime


@dataclass(frozen=True)
class ModelInfo(ModelName):
    """A served model.

    Attributes:
        max_tokens: of the longest pair that it reads.
        card: what was measured when it was exported.
        refused: a newer version that could not be served.
        without_champion: whether the registry has no champion for the language any more, while this model goes on.
    """

    language: str
    max_tokens: int
    temperature: float
    loaded_at: datetime
    gate: Gate | None
    card: Mapping[str, Any]
    refused: Rejected | None
    without_champion: bool


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    pairs: int
    characters: int
    body_bytes: int


@dataclass(frozen=True)
class Catalogue:
    """What an endpoint answers for.

    Attributes:
        reason: why it is not ready.
        fallback: the language whose model answers for others; ``None`` if they are refused.
        refused: by language, promoted versions that could not be served, also where no other is.
    """

    ready: bool
    reason: str | None
    fallback: str | None
    models: tuple[ModelInfo, ...]
    refused: Mapping[str, Rejected]
    limits: Limits


def read_predictions(answer: Any) -> list[Prediction | Refused]:
    """Raises KeyError, TypeError, ValueError or AttributeError for JSON of another shape, as the other readers do."""
    models = _models_by_language(answer)
    return [_refused(item) or _prediction(item, models, answer["language_source"]) for item in answer["predictions"]]


def _models_by_language(answer: Any) -> dict[str, ModelName]:
    return {language: ModelName(**_model(model)) for language, model in answer["models"].items()}


def _refused(item: Any) -> Refused | None:
    error = item.get("error")
    return Refused(str(error["type"]), str(error["message"])) if error else None


def _prediction(item: Any, models: Mapping[str, ModelName], language_source: str) -> Prediction:
    label = item["label"]
    if label not in NAMES:
        raise ValueError(f"label {label!r}")
    return Prediction(
        label=label,
        probabilities=_by_label(item["probabilities"]),
        language=item["language"],
        language_source=language_source,
        model=models[item["language"]],
        truncated=bool(item["truncated"]),
        logits=_by_label(item["logits"]) if item.get("logits") is not None else None,
    )


def _by_label(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(values[name]) for name in NAMES}


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in ("name", "version", "digest", "precision")}


def read_zero_shot(answer: Any) -> list[ZeroShotResult | Refused]:
    models = _models_by_language(answer)
    return [_refused(item) or _zero_shot_result(item, models, answer["language_source"]) for item in answer["results"]]


def _zero_shot_result(item: Any, models: Mapping[str, ModelName], language_source: str) -> ZeroShotResult:
    return ZeroShotResult(
        labels=tuple(item["labels"]),
        scores=tuple(map(float, item["scores"])),
        language=item["language"],
        language_source=language_source,
        model=models[item["language"]],
        truncated=bool(item["truncated"]),
    )


def read_catalogue(answer: Any) -> Catalogue:
    return Catalogue(
        ready=bool(answer["ready"]),
        reason=answer["reason"],
        fallback=answer["fallback"] or None,
        models=tuple(map(_model_info, answer["models"])),
        refused={language: _rejected(refused) for language, refused in answer["refused"].items()},
        limits=Limits(**{key: int(answer["limits"][key]) for key in ("pairs", "characters", "body_bytes")}),
    )


def _model_info(model: Mapping[str, Any]) -> ModelInfo:
    gate, refused = model["gate"], model["refused"]
    return ModelInfo(
        **_model(model),
        language=model["language"],
        max_tokens=int(model["max_tokens"]),
        temperature=float(model["temperature"]),
        loaded_at=datetime.fromisoformat(model["loaded_at"]),
        gate=Gate(bool(gate["promote"]), tuple(gate["reasons"]), gate["decided_at"]) if gate else None,
        card=dict(model["card"]),
        refused=_rejected(refused) if refused else None,
        without_champion=bool(model.get("without_champion", False)),
    )


def _rejected(refused: Mapping[str, Any]) -> Rejected:
    return Rejected(refused["version"], refused["digest"], refused["reason"], datetime.fromisoformat(refused["since"]))
