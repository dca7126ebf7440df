"""Faults: errors in the format of Nova's API."""

from typing import Any

from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

from novasvc.api.errors import as_api_error
from novasvc.api.openapi import Component
from novasvc.api.responses import api_error, json_response

_NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}
_OTHER = "computeFault"
FAULT = Component(
    "Fault",
    {
        "description": "An object with one key, the name of the fault. For 401 and unknown paths, see Error.",
        "type": "object",
    },
)
_NO_ROUTE = {"message": "The resource could not be found.", "code": "404 Not Found", "title": "Not Found"}
"""Nova's routing does not respond with a fault: unknown path, or a method that the path does not have."""


def fault_response(_resource: Any, request: Any, failure: Failure) -> bytes:
    """Return the body of an error response, and set status and headers.

    An unexpected error is logged, and only its type is shown to the client, as in Nova.
    """
    if failure.check(HTTPException):
        return _respond(request, _NO_ROUTE, 404)
    request.setHeader(b"x-compute-request-id", request.request_id.encode())
    error = api_error(request, failure)
    for name, value in error.headers.items():
        request.setHeader(name.encode(), value.encode("latin-1", "replace"))
    if error.status == 401:  # noqa: PLR2004 - in OpenStack, Keystone's middleware responds, and not with a fault
        return _respond(request, error.document, 401)
    message = error.message
    expected = failure.value is not None and as_api_error(failure.value) is not None
    if error.status == 500 and not expected:  # noqa: PLR2004 - of HTTP
        message = f"Unexpected API Error. {message[:1].upper()}{message[1:]}\n{failure.type}"
    document = {_NAMES.get(error.status, _OTHER): {"code": error.status, "message": message}}
    return _respond(request, document, error.status)


def _respond(request: Any, document: Any, status: int) -> bytes:
    body = json_response(request, document, status)
    request.setHeader(b"content-type", b"application/json; charset=UTF-8")
    return body
