"""Faults: errors in the form that clients of Nova's API read."""

from typing import Any

from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

from novasvc.api.answers import answer_json, api_error
from novasvc.api.errors import as_api_error
from novasvc.api.microversion import UnservedVersionError, say_version

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
_NO_ROUTE = {"message": "The resource could not be found.", "code": "404 Not Found", "title": "Not Found"}
"""Of the routes, and not a fault: no such path, or no such method for it."""


def answer_fault(request: Any, failure: Failure) -> bytes:
    """Return the body that says what went wrong, and set status and headers.

    What we did not foresee goes to the log, and only its type to who asked.
    """
    if failure.check(HTTPException):
        return _answer(request, _NO_ROUTE, 404)
    request.setHeader(b"x-compute-request-id", request.request_id.encode())
    error = api_error(request, failure)
    if isinstance(error, UnservedVersionError):
        say_version(request, error.version)
    for name, value in error.headers.items():
        request.setHeader(name.encode(), value.encode("latin-1", "replace"))
    if error.status == 401:  # noqa: PLR2004 - of HTTP
        return _answer(request, error.document, 401)
    message = error.message
    foreseen = failure.value is not None and as_api_error(failure.value) is not None
    if error.status == 500 and not foreseen:  # noqa: PLR2004 - of HTTP
        message = f"Unexpected API Error. {message[:1].upper()}{message[1:]}\n{failure.type}"
    document = {_NAMES.get(error.status, _OTHER): {"code": error.status, "message": message}}
    return _answer(request, document, error.status)


def _answer(request: Any, document: Any, status: int) -> bytes:
    body = answer_json(request, document, status)
    request.setHeader(b"content-type", b"application/json; charset=UTF-8")
    return body
