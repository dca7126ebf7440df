"""``/openapi.json``: the OpenAPI description of the API."""

from typing import Any

from novasvc._version import __version__
from novasvc.api.gateway import MAX_TIMEOUT, MIN_TIMEOUT
from novasvc.api.responses import json_response, make_app

_Schema = dict[str, Any]

_NULL_TEXT: _Schema = {"type": ["string", "null"]}
_UUID: _Schema = {"type": "string", "format": "uuid"}


def _object(properties: _Schema, *optional: str, closed: bool = False) -> _Schema:
    schema: _Schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }
    return {**schema, "additionalProperties": False} if closed else schema


def _json(schema: _Schema, description: str) -> _Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _page(description: str) -> _Schema:
    return {"description": description, "content": {"text/html": {"schema": {"type": "string"}}}}


def _parameter(name: str, place: str, schema: _Schema, description: str) -> _Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _responses(expected: dict[str, _Schema], *errors: int, form: str = "Error") -> _Schema:
    documented = {str(status): _json(_ref(form), _ERRORS[status]) for status in errors}
    # The server itself responds with these, before the request is routed.
    limits = {str(status): _json(_ref("Error"), _ERRORS[status]) for status in (413, 414, 431)}
    return {**limits, **documented, **expected}


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

_SCHEMAS: _Schema = {
    "Error": _object(
        {"error": _object({"code": {"type": "integer"}, "title": {"type": "string"}, "message": {"type": "string"}})}
    ),
    "Fault": {
        "description": "An object with one key, the name of the fault. For 401 and unknown paths, see Error.",
        "type": "object",
    },
    "Version": _object(
        {
            "id": {"type": "string"},
            "status": {"type": "string"},
            "version": {"type": "string"},
            "min_version": {"type": "string"},
            "updated": {"type": "string"},
            "links": {"type": "array", "items": {"type": "object"}},
        }
    ),
    "Service": _object(
        {
            "id": {"type": ["integer", "string"], "description": "The uuid since 2.53; before, a number."},
            "binary": {"type": "string"},
            "host": {"type": "string"},
            "zone": {"type": "string"},
            "status": {"enum": ["enabled", "disabled"]},
            "state": {"enum": ["up", "down"]},
            "updated_at": {**_NULL_TEXT, "description": "UTC, with six decimals and no offset."},
            "disabled_reason": _NULL_TEXT,
            "forced_down": {"type": "boolean", "description": "Since 2.11."},
        },
        "forced_down",
    ),
    "Leg": _object(
        {
            "name": {"type": "string"},
            "service": {"type": "string"},
            "ready": {"type": "boolean"},
            "detail": {"type": "string", "description": "Only with the scope read."},
            "since": {"type": "string", "description": "Only with the scope read; ISO 8601."},
        },
        "detail",
        "since",
    ),
    "Readiness": _object(
        {
            "ready": {"type": "boolean"},
            "legs": {"type": "array", "items": _ref("Leg")},
            "workers": {"type": "array", "items": {"type": "object"}},
        }
    ),
    "Call": _object(
        {
            "args": {"type": ["object", "null"], "description": "The method's arguments."},
            "host": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "The host of the node; if omitted, any node of the topic.",
            },
            "namespace": _NULL_TEXT,
            "version": {"type": ["string", "null"], "pattern": r"^[0-9]{1,9}\.[0-9]{1,9}(\.[0-9]{1,9})?$"},
            "timeout": {
                "type": ["number", "null"],
                "minimum": MIN_TIMEOUT,
                "maximum": MAX_TIMEOUT,
                "description": "Seconds; rpc_response_timeout if omitted.",
            },
            "cast": {"type": ["boolean", "null"], "description": "Do not wait for the result."},
            "fanout": {"type": ["boolean", "null"], "description": "To every node of the topic; no result."},
            "idempotent": {
                "type": ["boolean", "null"],
                "description": "The method may run twice: a message that the broker did not confirm is sent again.",
            },
        },
        "args",
        "host",
        "namespace",
        "version",
        "timeout",
        "cast",
        "fanout",
        "idempotent",
        closed=True,
    ),
    "OldChange": _object(
        {
            "host": {"type": "string", "minLength": 1, "maxLength": 255},
            "binary": {"type": "string", "minLength": 1, "maxLength": 255},
            "disabled_reason": {"type": "string", "minLength": 1, "maxLength": 255},
            "forced_down": {"type": ["boolean", "string"]},
        },
        "disabled_reason",
        "forced_down",
        closed=True,
    ),
    "NewChange": _object(
        {
            "status": {"enum": ["enabled", "disabled"]},
            "disabled_reason": {"type": "string", "minLength": 1, "maxLength": 255},
            "forced_down": {"type": ["boolean", "string"]},
        },
        "status",
        "disabled_reason",
        "forced_down",
        closed=True,
    ),
}

_MICROVERSION = _parameter(
    "OpenStack-API-Version",
    "header",
    {"type": "string"},
    '"compute 2.N" or "compute latest"; 2.1 if omitted. /v2 is always 2.1.',
)
_NAME = _parameter("name", "path", {"type": "string"}, "A uuid since 2.53; before, a number, or the action of a PUT.")
_UUID_OF_SERVICE = _parameter("uuid", "path", {"type": "string"}, "Of the service.")
_VERB = _parameter("verb", "path", {"type": "string"}, "enable, disable, force-down, let-up, ping, drain or run-task.")

_SERVICES = "/v2.1/os-services"
_SERVICE = f"{_SERVICES}/{{name}}"

_PATHS: _Schema = {
    "/": {
        "get": {
            "summary": "The versions of the compute API; for a browser, the page of the fleet",
            "responses": _responses(
                {
                    "200": {
                        "description": "Depends on the Accept header.",
                        "content": {
                            "application/json": {
                                "schema": _object({"versions": {"type": "array", "items": _ref("Version")}})
                            },
                            "text/html": {"schema": {"type": "string"}},
                        },
                    },
                    "303": {"description": "Redirects to the login."},
                },
                400,
                403,
                503,
            ),
            "security": [],
        }
    },
    "/v2.1/": {
        "get": {
            "summary": "One version of the compute API; /v2/ is the other one",
            "responses": _responses({"200": _json(_object({"version": _ref("Version")}), "The version.")}),
            "security": [],
        }
    },
    _SERVICES: {
        "get": {
            "summary": "List services. The same is at /v2.1/{project_id}/os-services, and under /v2",
            "parameters": [
                _MICROVERSION,
                _parameter("host", "query", {"type": "string"}, "Only services of this host."),
                _parameter("binary", "query", {"type": "string"}, "Only services with this binary."),
                _parameter(
                    "limit",
                    "query",
                    {"type": "string", "pattern": "^[0-9]*$"},
                    "Maximum number of services, at most 1000.",
                ),
                _parameter("marker", "query", {"type": "string"}, "The id of the last service of the page before."),
            ],
            "responses": _responses(
                {
                    "200": _json(
                        _object(
                            {
                                "services": {"type": "array", "items": _ref("Service")},
                                "services_links": {"type": "array", "items": {"type": "object"}},
                            },
                            "services_links",
                        ),
                        "The services, and a link to the next page if there is one.",
                    )
                },
                *(400, 401, 403, 404, 406, 500, 503),
                form="Fault",
            ),
        }
    },
    _SERVICE: {
        "put": {
            "summary": "Enable, disable, or force a service down or up",
            "parameters": [_MICROVERSION, _NAME],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"anyOf": [_ref("NewChange"), _ref("OldChange")]}}},
            },
            "responses": _responses(
                {"200": _json(_object({"service": {"type": "object"}}), "The updated service.")},
                *(400, 401, 403, 404, 406, 415, 500, 503),
                form="Fault",
            ),
        },
        "delete": {
            "summary": "Delete a service's row",
            "parameters": [_MICROVERSION, _NAME],
            "responses": _responses(
                {"204": {"description": "Deleted."}}, *(400, 401, 403, 404, 406, 500, 503), form="Fault"
            ),
        },
    },
    "/v1/rpc/{topic}/{method}": {
        "post": {
            "summary": "Call a method of a node",
            "parameters": [
                _parameter("topic", "path", {"type": "string"}, "The topic of the node."),
                _parameter("method", "path", {"type": "string"}, "An exposed method."),
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Call")}}},
            "responses": _responses(
                {
                    "200": _json(_object({"result": {}}), "The result."),
                    "202": _json(_object({"result": {"type": "null"}}), "The cast was sent."),
                },
                *(400, 401, 403, 404, 415, 502, 503, 504),
            ),
        }
    },
    "/healthz": {
        "get": {
            "summary": "Liveness: whether this process responds",
            "responses": _responses({"200": _json(_object({"status": {"const": "ok"}}), "It responds.")}),
            "security": [],
        }
    },
    "/readyz": {
        "get": {
            "summary": "Readiness, with each check",
            "responses": _responses(
                {"200": _json(_ref("Readiness"), "Ready."), "503": _json(_ref("Readiness"), "Not ready.")}
            ),
            "security": [],
        }
    },
    "/metrics": {
        "get": {
            "summary": "Metrics of all workers, for Prometheus",
            "responses": _responses(
                {
                    "200": {
                        "description": "The metrics.",
                        "content": {
                            "text/plain": {"schema": {"type": "string"}},
                            "application/openmetrics-text": {"schema": {"type": "string"}},
                        },
                    }
                },
                *(401, 403, 503),
            ),
        }
    },
    "/openapi.json": {
        "get": {
            "summary": "This document",
            "responses": _responses({"200": _json({"type": "object"}, "OpenAPI 3.1.")}),
            "security": [],
        }
    },
    "/events": {
        "get": {
            "summary": "Updates for the page, as server-sent events",
            "parameters": [_parameter("poll", "query", {"type": "string"}, '"1" returns one update as JSON.')],
            "responses": _responses(
                {
                    "200": {
                        "description": "The format is internal to the page, and may change.",
                        "content": {
                            "text/event-stream": {"schema": {"type": "string"}},
                            "application/json": {"schema": {"type": "object"}},
                        },
                    }
                },
                *(400, 401, 403, 503),
            ),
        }
    },
    "/node/{uuid}": {
        "get": {
            "summary": "The page of a service",
            "parameters": [_UUID_OF_SERVICE],
            "responses": _responses(
                {
                    "200": _page("The page."),
                    "303": {"description": "Redirects to the login."},
                    "default": _page("An error page."),
                }
            ),
        }
    },
    "/action/{verb}/{uuid}": {
        "get": {
            "summary": "Ask for confirmation of an action",
            "parameters": [_VERB, _UUID_OF_SERVICE],
            "responses": _responses(
                {
                    "200": _page("The confirmation."),
                    "303": {"description": "Redirects to the login."},
                    "default": _page("An error page."),
                }
            ),
        },
        "post": {
            "summary": "Perform an action: a form of the page",
            "parameters": [_VERB, _UUID_OF_SERVICE],
            "responses": _responses(
                {"303": {"description": "Redirects to the page."}, "default": _page("An error page.")}
            ),
        },
    },
    "/login": {
        "get": {
            "summary": "The login form",
            "parameters": [_parameter("code", "query", {"type": "string"}, "Of a login link.")],
            "responses": _responses({"200": _page("The form."), "303": {"description": "Authentication is disabled."}}),
            "security": [],
        },
        "post": {
            "summary": "Log in with a code or a token",
            "responses": _responses(
                {"303": {"description": "Redirects to the page."}, "default": _page("An error page.")}
            ),
            "security": [],
        },
    },
    "/logout": {
        "post": {
            "summary": "Log out",
            "responses": _responses(
                {"303": {"description": "Redirects to the login."}, "default": _page("An error page.")}
            ),
        }
    },
    "/static/{digest}/{name}": {
        "get": {
            "summary": "Static files of the page",
            "parameters": [
                _parameter("digest", "path", {"type": "string"}, "Of the contents of all files."),
                _parameter("name", "path", {"type": "string"}, "Of the file."),
            ],
            "responses": _responses(
                {
                    "200": {
                        "description": "The file.",
                        "content": {
                            kind: {"schema": {"type": "string"}}
                            for kind in ("text/css", "text/javascript", "image/svg+xml")
                        },
                    }
                },
                404,
            ),
            "security": [],
        }
    },
}

DOCUMENT: _Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "novasvc",
        "version": __version__,
        "description": "A fleet: OpenStack's compute services API, RPC over HTTP, health, metrics, and a web page.",
    },
    "security": [{"token": []}, {"bearer": []}, {"session": []}, {}],
    "paths": _PATHS,
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {
            "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
            "bearer": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "novasvc_session"},
        },
    },
}
"""The description of all paths; a test compares it with the routes.

It is written by hand: of its entries the routes know path and method only, which are 33 of its 457 lines.
"""


class OpenAPI:
    """Serves ``/openapi.json``, without authentication."""

    app = make_app()

    @app.route("/openapi.json", methods=["GET", "HEAD"])
    def document(self, request: Any) -> bytes:
        """Return the description."""
        return json_response(request, DOCUMENT)
