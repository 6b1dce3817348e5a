"""What can go wrong between a client and the endpoint."""

from conlst.contract.errors import ConlstError


class ClientError(ConlstError):
    """A question without a usable answer."""


class Unreachable(ClientError):
    """No answer came, or not in time."""


class BadAnswer(ClientError):
    """An answer that is not a conlst endpoint's."""


class ApiError(ClientError):
    """The endpoint's own refusal, or that of something before it.

    Attributes:
        kind: the stable name that programs compare; ``http_error`` if the answer holds none, as a proxy's does not.
        status: the HTTP status.
        message: what is wrong and what to do.
        index: which of the pairs or texts that were given is meant, counted from 0, if one is.
        request_id: under which the endpoint's log has it.
    """

    def __init__(self, kind: str, status: int, message: str, *, index: int | None, request_id: str) -> None:
        super().__init__(f"{message} ({kind}, HTTP {status}, request {request_id})")
        self.kind = kind
        self.status = status
        self.message = message
        self.index = index
        self.request_id = request_id


class Unauthorized(ApiError):
    """The API key is missing or unknown."""


class UnknownLanguage(ApiError):
    """No model answers for the language."""


class Busy(ApiError):
    """The endpoint had more waiting than it takes, for as long as was asked."""


class RateLimited(ApiError):
    """The API key's requests of this minute are used up."""


class NotReady(ApiError):
    """The endpoint has not loaded its models."""


class Deadline(ApiError):
    """The endpoint could not answer within its own time limit or the client's."""


KINDS: dict[str, type[ApiError]] = {
    "unauthorized": Unauthorized,
    "unknown_language": UnknownLanguage,
    "busy": Busy,
    "rate_limited": RateLimited,
    "not_ready": NotReady,
    "deadline": Deadline,
}
