"""What is asked and answered over HTTP. The OpenAPI document is made from these classes, so it cannot drift from them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from conlst.contract.labels import NAMES
from serving.errors import Kind
from serving.zero_shot import TEMPLATE

_PREMISE = "Watu wawili wanacheza mpira uwanjani."
_HYPOTHESIS = "Watu wanacheza nje."
_TEXT = "Timu yetu ilishinda mchezo wa jana."
_LABELS: list[JsonValue] = ["michezo", "siasa", "chakula"]

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
# as far as a schema can say it; what is left of it is checked by name
_SOME: dict[str, Any] = {"minItems": 1}
Source = Literal["given", "detected", "fallback"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Pair(_Strict):
    premise: str = Field(description="What is taken as true.")
    hypothesis: str = Field(description="What may follow from it, contradict it, or neither.")


class _Options(_Strict):
    language: Language | None = Field(
        None,
        description="A language of GET /models, in upper or lower case and with or without a region: sw, SW and sw-KE are the "
        "same. Detected for each text if it is absent.",
    )
    truncate: bool = Field(
        False, description="Cut texts that are too long, in characters or for the model, instead of refusing them."
    )
    partial: bool = Field(
        False,
        description="Answer the others when a text is empty, too long, no Unicode, or of a language without a model; the place "
        "of its pair or text then holds its error. A request of another shape is refused as a whole.",
    )


class _PairOptions(_Options):
    logits: bool = Field(False, description="Answer the raw logits too, before calibration.")
    feedback: bool = Field(False, description="Let the operator keep these pairs with their answers, to train better models.")


class OnePair(Pair, _PairOptions):
    """One pair."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"premise": _PREMISE, "hypothesis": _HYPOTHESIS, "language": "sw"}]}
    )


class ManyPairs(_PairOptions):
    """A list of pairs; the answers stand in its order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pairs": [
                        {"premise": _PREMISE, "hypothesis": _HYPOTHESIS},
                        {"premise": _PREMISE, "hypothesis": "Hakuna mtu uwanjani."},
                    ],
                    "logits": True,
                    "partial": True,
                }
            ]
        }
    )
    pairs: list[Pair] = Field(json_schema_extra=_SOME)


class _Candidates(_Options):
    labels: list[str] = Field(json_schema_extra={**_SOME, "uniqueItems": True}, description="Each once.")
    template: str = Field(
        TEMPLATE, json_schema_extra={"pattern": r"^[^{}]*\{\}[^{}]*$"}, description="Makes a label a hypothesis; {} is its place."
    )
    multi_label: bool = Field(False, description="Judge each label by itself, rather than share one whole among them.")


class OneText(_Candidates):
    """One text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": _TEXT, "labels": _LABELS, "template": "Mada ya sentensi hii ni {}.", "language": "sw"}]
        }
    )
    text: str


class ManyTexts(_Candidates):
    """A list of texts; the results stand in its order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": [_TEXT, _PREMISE], "labels": _LABELS, "multi_label": True, "partial": True}]}
    )
    texts: list[str] = Field(json_schema_extra=_SOME)


class RefusedDetail(BaseModel):
    type: Kind = Field(description="A stable name for programs.")
    message: str = Field(description="What is wrong and what to do, for people.")


class ErrorDetail(RefusedDetail):
    index: int | None = Field(None, description="The pair or text that is meant, counted from 0.")


class Error(BaseModel):
    error: ErrorDetail


class Refused(BaseModel):
    """Stands in the place of a pair or text that is not answered, if the request was partial."""

    error: RefusedDetail


class Prediction(BaseModel):
    label: str = Field(description=f"The most probable of {', '.join(NAMES)}.")
    probabilities: dict[str, float] = Field(description="Of each label, calibrated; they sum to one.")
    language: str = Field(description="Whose model answered.")
    truncated: bool = Field(description="Whether a text of the pair was cut.")
    logits: dict[str, float] | None = Field(None, description="Of each label, if they were asked for.")


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: int | None = Field(description="In the registry; null for a model given as a folder or address.")
    digest: str = Field(description="sha256 that names every byte of the model.")
    precision: str = Field(description="fp32 or int8.")


class _Answered(BaseModel):
    language: str | None = Field(description="Whose model answered; null if there were several.")
    language_source: Source = Field(
        description="fallback if the fallback's model answered any of them, because a language is not served or cannot be told."
    )
    model: ModelName | None = Field(description="Null if there were several.")
    models: dict[str, ModelName] = Field(description="By language, all models that answered.")


class Answer(_Answered):
    predictions: list[Prediction | Refused] = Field(description="In the order of the pairs.")


class Result(BaseModel):
    labels: list[str] = Field(description="By falling score.")
    scores: list[float] = Field(
        description="Of the labels in that order. From raw logits, without temperature, as Hugging Face's "
        "zero-shot-classification pipeline has them."
    )
    language: str = Field(description="Whose model answered.")
    truncated: bool = Field(description="Whether the text was cut.")


class ZeroShotAnswer(_Answered):
    results: list[Result | Refused] = Field(description="In the order of the texts.")


class Gate(BaseModel):
    """How the registry's gate decided."""

    promote: bool
    reasons: list[str]
    decided_at: str | None


class RefusedModel(BaseModel):
    """A promoted version that is not served, while the one before goes on."""

    version: int | None
    digest: str | None
    reason: str
    since: datetime


class ServedModel(ModelName):
    language: str
    max_tokens: int = Field(description="Tokens of the longest pair that the model reads.")
    temperature: float = Field(description="What the logits are divided by.")
    loaded_at: datetime
    gate: Gate | None = Field(description="Null if no decision is recorded.")
    card: dict[str, Any] = Field(description="What was measured when the model was exported; empty if nothing came with it.")
    refused: RefusedModel | None
    without_champion: bool = Field(
        description="Whether the registry has no champion for the language any more, while this model goes on."
    )


class Limits(BaseModel):
    pairs: int = Field(description="In a request; for candidate labels, texts times labels.")
    characters: int = Field(description="In a text.")
    body_bytes: int


class Catalogue(BaseModel):
    """What this server answers for."""

    ready: bool
    reason: str | None = Field(description="Why it is not ready yet.")
    fallback: str | None = Field(description="Whose model answers for other languages; null if they are refused.")
    models: list[ServedModel]
    refused: dict[str, RefusedModel] = Field(description="By language, also where no other version is served.")
    limits: Limits


class Shares(BaseModel):
    confidence: list[float] = Field(description="Of pairs, by the largest probability in ten bins of [0, 1].")
    labels: dict[str, float]


class Stability(BaseModel):
    """Population stability index; under 0.1 is no change, over 0.25 a large one."""

    confidence: float
    labels: float


class DriftOfLanguage(BaseModel):
    pairs: int = Field(description="That were counted. Not those in other languages that its model answered as the fallback.")
    since: datetime
    reference: Shares | None = Field(description="Of the evaluation; null if the model came without one.")
    served: Shares | None = Field(description="Of the pairs that were counted; null if there are none.")
    psi: Stability | None = Field(description="Between the two; null without a reference or with too few pairs.")


class Drift(BaseModel):
    """Is what is asked now like what the models were evaluated on?"""

    languages: dict[str, DriftOfLanguage]
