"""Errors of the API: a status, and a message for the client."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import attrs

from novasvc.errors import NovasvcError
from novasvc.registry.errors import DatabaseError, DatabaseUnavailableError, ServiceNotFoundError
from novasvc.rpc.errors import TransportClosedError
from novasvc.transport.errors import BrokerUnavailableError


@attrs.define
class APIError(NovasvcError):
    """A request that fails.

    :param status: HTTP status, 400 to 599.
    :param message: what is wrong and what would be right, for the client.
    :param headers: response headers besides the usual ones.
    :param details: further fields of the response's error, JSON.
    """

    status: int
    message: str
    headers: Mapping[str, str] = attrs.field(factory=dict)
    details: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def title(self) -> str:
        """The reason phrase of the status: "Not Found"."""
        return HTTPStatus(self.status).phrase

    @property
    def document(self) -> dict[str, Any]:
        """The response body, JSON: {"error": {"code": int, "title": str, "message": str, and the details}}."""
        return {"error": {"code": self.status, "title": self.title, "message": self.message, **self.details}}

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.message}"


def as_api_error(error: BaseException) -> APIError | None:
    """Return the APIError for an error that is expected in operation; None for a bug."""
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
