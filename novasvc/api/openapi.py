"""``/openapi.json``: the OpenAPI 3.1 description of the API, generated from its routes.

A handler is described beside its code, with :func:`operation`. Paths and methods come from the handler's Klein routes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
from klein import Klein

from novasvc._version import __version__
from novasvc.api.responses import json_response, make_app

Schema = dict[str, Any]
"""A part of the document: JSON in which a :class:`Component` may stand for a schema."""

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

STRING: Schema = {"type": "string"}
NULLABLE_STRING: Schema = {"type": ["string", "null"]}
BOOLEAN: Schema = {"type": "boolean"}


@attrs.frozen
class Component:
    """A named schema. The document has it once, under "components", and refers to it elsewhere."""

    name: str
    schema: Schema


def object_schema(properties: Schema, *optional: str, closed: bool = False) -> Schema:
    """Return the schema of an object.

    :param optional: the properties that may be missing.
    :param closed: whether other properties are forbidden.
    """
    required = [name for name in properties if name not in optional]
    schema: Schema = {"type": "object", "properties": properties, "required": required}
    return {**schema, "additionalProperties": False} if closed else schema


def array_of(items: "Schema | Component") -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def content(description: str, **schemas: "Schema | Component") -> Schema:
    """Return a Response Object.

    :param schemas: schemas by media type: json, html, text, or another key of ``_MEDIA_TYPES``.
    """
    return {"description": description, "content": _content(schemas)}


def _content(schemas: Mapping[str, Any]) -> Schema:
    return {_MEDIA_TYPES[name]: {"schema": schema} for name, schema in schemas.items()}


_MEDIA_TYPES = {
    "json": "application/json",
    "html": "text/html",
    "text": "text/plain",
    "openmetrics": "application/openmetrics-text",
    "event_stream": "text/event-stream",
    "css": "text/css",
    "javascript": "text/javascript",
    "svg": "image/svg+xml",
}

_SERVICE: Schema = {
    "topic": STRING,
    "method": STRING,
    "host": STRING,
    "worker": {"type": "integer"},
    "request_id": STRING,
}
_ORIGIN: Schema = {
    **object_schema({**_SERVICE, "through": array_of(object_schema(_SERVICE, *_SERVICE))}, *_SERVICE),
    "description": "The service that raised the error, and those that called it and let the error through.",
}
_EXCEPTION: Schema = {"type": "string", "description": "The class of an error of a call."}
ERROR = Component(
    "Error",
    object_schema(
        {
            "error": object_schema(
                {
                    "code": {"type": "integer"},
                    "title": STRING,
                    "message": STRING,
                    "exception": _EXCEPTION,
                    "origin": _ORIGIN,
                },
                "exception",
                "origin",
            )
        }
    ),
)
_ERRORS = {
    400: "The request is invalid; the message says why.",
    401: "The token is missing or invalid.",
    403: "The token's scope does not allow this, or the request is cross-site.",
    404: "Not found.",
    405: "The path does not support this method.",
    406: "The microversion is not supported.",
    413: "The body is longer than max_request_body_size.",
    414: "The URL is longer than the limit of this server.",
    415: "The Content-Type is not application/json.",
    431: "A header is longer than max_header_line, or there are too many.",
    500: "The database reported an error; the message says which.",
    502: "The method raised an error, or its node cannot respond.",
    503: "The database or the broker is unavailable, or the server is overloaded; Retry-After says when to retry.",
    504: "The node did not respond in time.",
}
_LIMITS = (413, 414, 431)
"""Statuses of the server itself, which responds with them before a request is routed."""
PAGE_RESPONSES: Mapping[int | str, Schema] = {
    200: content("The page.", html=STRING),
    303: {"description": "Redirects to the login."},
    "default": content("An error page.", html=STRING),
}
"""Responses to a GET of a page."""
FORM_RESPONSES: Mapping[int | str, Schema] = {
    303: {"description": "Redirects to the page."},
    "default": content("An error page.", html=STRING),
}
"""Responses to the POST of a form."""


def parameter(name: str, place: str, description: str, schema: Schema = STRING) -> Schema:
    """Return a Parameter Object.

    :param place: "query" or "header".
    """
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}


@attrs.frozen(kw_only=True)
class Operation:
    """The description of a handler; see :func:`operation`."""

    path: str | None
    document: Schema
    path_parameters: Mapping[str, str]


def operation(
    summary: str,
    responses: Mapping[int | str, Schema],
    *errors: int,
    error: Component = ERROR,
    parameters: Sequence[Schema] = (),
    path_parameters: Mapping[str, str] | None = None,
    body: "Schema | Component | None" = None,
    public: bool = False,
    path: str | None = None,
) -> Callable[[_Handler], _Handler]:
    """Describe a handler. Stands below the ``route`` decorators.

    :param responses: status, or "default" -> Response Object.
    :param errors: statuses of further responses, whose body is ``error``.
    :param parameters: those in the query and in headers.
    :param path_parameters: name -> description, for those in the path.
    :param body: the schema of a JSON body, if it takes one.
    :param public: needs no token.
    :param path: the only path to document, for a handler with several routes.
    """
    documented = {str(status): content(_ERRORS[status], json=error) for status in errors}
    limits = {str(status): content(_ERRORS[status], json=ERROR) for status in _LIMITS}
    document: Schema = {
        "summary": summary,
        "responses": {**limits, **documented, **{str(status): response for status, response in responses.items()}},
    }
    if parameters:
        document["parameters"] = parameters
    if body is not None:
        document["requestBody"] = {"required": True, "content": _content({"json": body})}
    if public:
        document["security"] = []

    def decorate(handler: _Handler) -> _Handler:
        described: Any = handler
        described.operation = Operation(path=path, document=document, path_parameters=path_parameters or {})
        return handler

    return decorate


def operations_of(app: Klein) -> Iterator[tuple[str, str, Operation]]:
    """Yield (path, method, operation) for the routes of an app. HEAD, which every GET has, is not documented.

    :raises AttributeError: a route's handler has no :func:`operation`.
    """
    for rule in app.url_map.iter_rules():
        described: Any = app.endpoints[rule.endpoint]
        path = described.operation.path or re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted({*(rule.methods or ())} - {"HEAD", "OPTIONS"}):
            yield path, method.lower(), described.operation


def make_document(operations: Iterable[tuple[str, str, Operation]]) -> Schema:
    """Return the OpenAPI document.

    :param operations: (path, method, operation), see :func:`operations_of`.
    """
    components: Schema = {}
    paths: Schema = {}
    for path, method, described in operations:
        document = dict(described.document)
        names = re.findall(r"{(\w+)}", path)
        in_path = [parameter(name, "path", described.path_parameters[name]) for name in names]
        if in_path:
            document["parameters"] = [*document.get("parameters", ()), *in_path]
        paths.setdefault(path, {})[method] = _with_references(document, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "novasvc",
            "version": __version__,
            "description": "A fleet: OpenStack's compute services API, RPC over HTTP, health, metrics, and a web page.",
        },
        "security": [{"token": []}, {"bearer": []}, {"session": []}, {}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "novasvc_session"},
            },
        },
    }


def _with_references(part: Any, components: Schema) -> Any:
    """Replace each Component by a reference, and collect its schema."""
    match part:
        case Component(name=name, schema=schema):
            components[name] = _with_references(schema, components)
            return {"$ref": f"#/components/schemas/{name}"}
        case dict():
            return {name: _with_references(value, components) for name, value in part.items()}
        case list() | tuple():
            return [_with_references(value, components) for value in part]
    return part


class OpenAPI:
    """Serves ``/openapi.json``, without authentication.

    :param operations: of the other resources; see :func:`operations_of`.
    """

    app = make_app()

    def __init__(self, operations: Iterable[tuple[str, str, Operation]]) -> None:
        self.description = make_document([*operations, *operations_of(self.app)])

    @app.route("/openapi.json", methods=["GET", "HEAD"])
    @operation("This document", {200: content("OpenAPI 3.1.", json={"type": "object"})}, public=True)
    def document(self, request: Any) -> bytes:
        """Return the description."""
        return json_response(request, self.description)
