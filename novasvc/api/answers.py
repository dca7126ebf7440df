"""How a request is read and answered: JSON in, JSON out, and errors that say what is wrong."""

import json
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

from novasvc.api.errors import APIError, as_api_error

_log = Logger()

_JSON = b"application/json"


def scheme_of(request: Any) -> str:
    """Return the scheme that whoever asks has used: "https", if it was TLS that they, or a proxy of ours, spoke."""
    # Anybody can say so, and is told no more by that than links that begin with it.
    proxied = (request.getHeader(b"x-forwarded-proto") or b"").partition(b",")[0].strip().lower() == b"https"
    return "https" if request.isSecure() or proxied else "http"


def answer_json(request: Any, document: Any, status: int = 200) -> bytes:
    """Return an answer's body, and set its status and type.

    :param document: JSON.
    """
    request.setResponseCode(status)
    request.setHeader(b"content-type", _JSON)
    body = json.dumps(document).encode()
    request.setHeader(b"content-length", b"%d" % len(body))
    return body


def answer_error(request: Any, failure: Failure) -> bytes:
    """Return the body that says what went wrong, and set the status. What we did not foresee goes to the log only."""
    error = api_error(request, failure)
    for name, value in error.headers.items():
        request.setHeader(name.encode(), value.encode("latin-1", "replace"))
    return answer_json(request, error.document, error.status)


def api_error(request: Any, failure: Failure) -> APIError:
    """Return what a failure means to who asked; one that we did not foresee is logged."""
    error = failure.value
    if isinstance(error, HTTPException):  # of the routes: no such path, or no such method for it
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        path = request.path.decode("latin-1")[:200]
        method = request.method.decode("latin-1")[:20]
        problem = f"there is no {method} {path}" if headers else f"there is nothing at {path}"
        # A redirect to where its slashes were fewer is no help to who calls an API.
        code = error.code if error.code is not None and error.code >= HTTPStatus.BAD_REQUEST else HTTPStatus.NOT_FOUND
        return APIError(code, f"{problem}; /openapi.json lists what there is", headers)
    known = None if error is None else as_api_error(error)
    if known is not None:
        return known
    if isinstance(error, CancelledError):  # who asked has gone
        return APIError(503, "the request was given up")
    _log.failure("{method} {path} failed", failure, method=request.method, path=request.path)
    return APIError(500, f"this is a bug; the log has the details, under {request.request_id}")


def read_json(request: Any) -> Any:
    """Return the JSON of a request's body.

    :raises APIError: 415 if it says to be something else, 400 if it is no JSON.
    """
    # A page of another site can send a form or a text without being asked for leave; JSON it cannot.
    kind = (request.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != _JSON:
        raise APIError(
            415, f"the body is to be application/json, not {kind.decode('latin-1')[:100] or 'without a type'}"
        )
    try:
        return json.loads(request.content.read())
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is no JSON: {error}"[:300]) from None
