"""What a request is refused with: a status, and a sentence for who sent it."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import attrs

from novasvc.errors import (
    BrokerUnavailableError,
    DatabaseError,
    DatabaseUnavailableError,
    NovasvcError,
    ServiceNotFoundError,
    TransportClosedError,
)


@attrs.define
class APIError(NovasvcError):
    """A request that is not done.

    :param status: of HTTP, 400 to 599.
    :param message: what is wrong, and what would be right; who asked reads it.
    :param headers: for the answer, besides the usual ones.
    """

    status: int
    message: str
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def title(self) -> str:
        """The status in words: "Not Found"."""
        return HTTPStatus(self.status).phrase

    @property
    def document(self) -> dict[str, Any]:
        """The answer's body, JSON: {"error": {"code": int, "title": str, "message": str}}."""
        return {"error": {"code": self.status, "title": self.title, "message": self.message}}

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.message}"


def as_api_error(error: BaseException) -> APIError | None:
    """Return what an error of ours means to who asked; None if it is no fault of theirs, and none that we foresaw."""
    match error:
        case APIError():
            return error
        case ServiceNotFoundError():
            return APIError(404, str(error))
        case DatabaseUnavailableError() | BrokerUnavailableError() | TransportClosedError():
            return APIError(503, str(error), {"Retry-After": "5"})
        case DatabaseError():
            return APIError(500, str(error))
    return None
