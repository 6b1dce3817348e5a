"""What is asked and answered over HTTP. The OpenAPI document is made from these classes, so it cannot drift from them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from conlst.contract.labels import NAMES

_PREMISE = "Watu wawili wanacheza mpira uwanjani."
_HYPOTHESIS = "Watu wanacheza nje."

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$", description="A language of GET /models.")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Pair(_Strict):
    premise: str = Field(description="What is taken as true.")
    hypothesis: str = Field(description="What may follow from it, contradict it, or neither.")


class _Options(_Strict):
    language: Language
    truncate: bool = Field(False, description="Cut pairs that are too long for the model instead of refusing them.")


class OnePair(Pair, _Options):
    """One pair."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"premise": _PREMISE, "hypothesis": _HYPOTHESIS, "language": "sw"}]}
    )


class ManyPairs(_Options):
    """A list of pairs; the answers stand in its order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"pairs": [{"premise": _PREMISE, "hypothesis": _HYPOTHESIS}], "language": "sw", "truncate": False}]
        }
    )
    pairs: list[Pair]


class Prediction(BaseModel):
    label: str = Field(description=f"The most probable of {', '.join(NAMES)}.")
    probabilities: dict[str, float] = Field(description="Of each label; they sum to one.")
    truncated: bool = Field(description="Whether the pair was cut to the model's length.")


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: int | None = Field(description="In the registry; null for a model given as a folder or address.")
    digest: str = Field(description="sha256 that names every byte of the model.")


class Answer(BaseModel):
    predictions: list[Prediction]
    language: str
    model: ModelName


class ServedModel(ModelName):
    language: str
    max_tokens: int = Field(description="Tokens of the longest pair that the model reads.")


class Limits(BaseModel):
    pairs: int
    characters: int
    body_bytes: int


class Catalogue(BaseModel):
    """What this server answers for."""

    ready: bool
    reason: str | None = Field(description="Why it is not ready yet.")
    models: list[ServedModel]
    limits: Limits


class ErrorDetail(BaseModel):
    type: str = Field(description="A stable name for programs.")
    message: str = Field(description="What is wrong and what to do, for people.")
    index: int | None = Field(None, description="The pair that is meant, counted from 0.")


class Error(BaseModel):
    error: ErrorDetail
