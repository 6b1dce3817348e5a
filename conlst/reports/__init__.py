"""What is said of a model: numbers, pictures and a page. A number never stands without its protocol and its count."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from conlst.contract.errors import ConfigError

Protocol = Literal["supervised", "zero-shot", "inductive", "transductive"]

_MEANINGS: dict[Protocol, str] = {
    "supervised": "the model was trained on other pairs of this language with their labels",
    "zero-shot": "the model saw no pair that people wrote in this language, labelled or not",
    "inductive": "the model was adapted on other unlabelled pairs of this language and never saw these",
    "transductive": "the model was adapted on a pool that holds these pairs, without their labels",
}


def describe(protocol: Protocol) -> str:
    """What a protocol means, in one clause.

    Raises:
        ConfigError: if there is no protocol of that name.
    """
    try:
        return _MEANINGS[protocol]
    except KeyError:
        raise ConfigError(f"protocol {protocol!r} is not one of {', '.join(get_args(Protocol))}") from None


def band_edges(row: Mapping[str, Any]) -> str:
    """Which confidences a band of :mod:`conlst.reports.metrics` holds, in words."""
    lower, upper = f"{row['lower']:g}", f"{row['upper']:g}"
    return {"high": f"above {lower}", "middle": f"{lower} to {upper}", "low": f"below {upper}"}[row["band"]]
