"""JSON requests and responses, and the request id and security headers of every response."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

from novasvc.api.errors import APIError, as_api_error
from novasvc.context import RequestContext, current_context, new_request_id

_log = Logger()

_JSON = b"application/json"
_CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_COMMON_HEADERS: Mapping[bytes, Sequence[bytes]] = {
    b"content-security-policy": (_CONTENT_SECURITY_POLICY,),
    b"x-content-type-options": (b"nosniff",),
    b"referrer-policy": (b"no-referrer",),
    b"cross-origin-opener-policy": (b"same-origin",),
    b"cross-origin-resource-policy": (b"same-origin",),
    b"cache-control": (b"no-store",),
}
"""Headers of every response; a resource may override them."""


def begin_request(request: Any) -> None:
    """Give a request its id and its context, and its response the common headers.

    Called in a copied context, as it sets the current RequestContext.
    """
    context = RequestContext(request_id=new_request_id())
    current_context.set(context)
    request.request_id = context.request_id
    request.set_headers({**_COMMON_HEADERS, b"x-openstack-request-id": (context.request_id.encode(),)})


def make_app(error_response: Callable[[Any, Any, Failure], bytes] | None = None) -> Klein:
    """Make the Klein app of a resource's class. All errors of its routes become responses.

    :param error_response: takes the resource, the request and the failure, and returns the body. None responds with
        JSON.
    """
    app = Klein()
    app.handle_errors(cast(Any, error_response or json_error_response))
    return app


def scheme_of(request: Any) -> str:
    """Return the scheme that the client used: "https" if the client or a reverse proxy used TLS."""
    # A client can forge X-Forwarded-Proto, but that only changes links and the cookie of its own response.
    proxied = (request.getHeader(b"x-forwarded-proto") or b"").partition(b",")[0].strip().lower() == b"https"
    return "https" if request.isSecure() or proxied else "http"


def json_response(request: Any, document: Any, status: int = 200) -> bytes:
    """Return the response body, and set status, type and length.

    :param document: JSON.
    """
    request.setResponseCode(status)
    request.setHeader(b"content-type", _JSON)
    body = json.dumps(document).encode()
    request.setHeader(b"content-length", b"%d" % len(body))
    return body


def json_error_response(_resource: Any, request: Any, failure: Failure) -> bytes:
    """Return the body of an error response, and set status and headers. An unexpected error is logged, not shown."""
    error = api_error(request, failure)
    for name, value in error.headers.items():
        request.setHeader(name.encode(), value.encode("latin-1", "replace"))
    return json_response(request, error.document, error.status)


def api_error(request: Any, failure: Failure) -> APIError:
    """Return the APIError that stands for a failure. An unexpected one is logged, and becomes a 500."""
    error = failure.value
    if isinstance(error, HTTPException):  # raised by the routing: unknown path, or a method that it does not have
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        path = request.path.decode("latin-1")[:200]
        method = request.method.decode("latin-1")[:20]
        problem = f"{method} is not supported for {path}" if headers else f"there is nothing at {path}"
        # Werkzeug redirects paths with doubled slashes; to the client of an API that is an unknown path.
        code = error.code if error.code is not None and error.code >= HTTPStatus.BAD_REQUEST else HTTPStatus.NOT_FOUND
        return APIError(code, f"{problem}; /openapi.json lists all paths", headers)
    known = None if error is None else as_api_error(error)
    if known is not None:
        return known
    if isinstance(error, CancelledError):  # the client has disconnected
        return APIError(503, "the request was cancelled")
    _log.failure("{method} {path} failed", failure, method=request.method, path=request.path)
    return APIError(500, f"this is a bug; the log has the details, under {request.request_id}")


def media_type(request: Any) -> bytes:
    """Return the Content-Type of a request without its parameters, in lower case; b"" if it has none."""
    content_type: bytes = request.getHeader(b"content-type") or b""
    return content_type.partition(b";")[0].strip().lower()


def read_json(request: Any) -> Any:
    """Return the JSON of a request's body.

    :raises APIError: 415 if its media type is another one, 400 if it is malformed.
    """
    # Requiring the type is a defence against CSRF: a cross-site page can send a form or plain text without a CORS
    # preflight, but not JSON.
    given = media_type(request)
    if given != _JSON:
        shown = given.decode("latin-1")[:100] or "missing"
        raise APIError(415, f"the Content-Type must be application/json; it is {shown}")
    try:
        return json.loads(request.content.read())
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is not valid JSON: {error}"[:300]) from None
