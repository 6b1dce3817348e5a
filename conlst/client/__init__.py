"""Ask a conlst endpoint from Python, blocking or asynchronous. Needs httpx and the standard library; reports nothing to anybody.

    with Client("http://localhost:3000") as client:
        client.predict([("Watoto wanacheza mpira.", "Kuna mchezo.")], language="sw")[0].label

A question may be repeated without harm: the endpoint only computes. So it is asked again after a lost connection, 429, 502, 503
and 504, until the client's total time is over. (With ``feedback=True`` the endpoint may then keep a pair twice.)
"""

from conlst.client.answers import (
    Catalogue,
    Gate,
    Limits,
    ModelInfo,
    ModelName,
    Pair,
    Prediction,
    Refused,
    Rejected,
    ZeroShotResult,
)
from conlst.client.asynchronous import AsyncClient
from conlst.client.blocking import Client
from conlst.client.errors import (
    ApiError,
    BadAnswer,
    Busy,
    ClientError,
    Deadline,
    NotReady,
    RateLimited,
    Unauthorized,
    UnknownLanguage,
    Unreachable,
)
from conlst.client.exchange import Backoff

__all__ = [
    "ApiError",
    "AsyncClient",
    "Backoff",
    "BadAnswer",
    "Busy",
    "Catalogue",
    "Client",
    "ClientError",
    "Deadline",
    "Gate",
    "Limits",
    "ModelInfo",
    "ModelName",
    "NotReady",
    "Pair",
    "Prediction",
    "RateLimited",
    "Refused",
    "Rejected",
    "Unauthorized",
    "UnknownLanguage",
    "Unreachable",
    "ZeroShotResult",
]
