"""``/openapi.json``: what the API takes and answers, for programs that read such a thing."""

from typing import Any

from klein import Klein

from novasvc._version import __version__
from novasvc.api.answers import answer_json
from novasvc.api.gateway import LONGEST_TIMEOUT, SHORTEST_TIMEOUT

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


def _answers(answers: dict[str, _Schema], *refusals: int, form: str = "Error") -> _Schema:
    told = {str(status): _json(_ref(form), _REFUSALS[status]) for status in refusals}
    # Before a room is entered: what is no HTTP as this server takes it.
    limits = {str(status): _json(_ref("Error"), _REFUSALS[status]) for status in (413, 414, 431)}
    return {**limits, **told, **answers}


_REFUSALS = {
    400: "What was sent cannot be taken; the message says why.",
    401: "A token is needed, and there was none, or a wrong one.",
    403: "The token's scope does not allow this; or it came from another site's page.",
    404: "It is not there.",
    405: "There is no such method for this path.",
    406: "The microversion is not served.",
    413: "The body is longer than max_request_body_size.",
    414: "The URL is longer than this server takes.",
    415: "The body is not of the type application/json.",
    431: "The headers are longer than max_header_line, or too many.",
    500: "The database has an error; the message says which.",
    502: "The method raised an error, or its node cannot give an answer.",
    503: "The database or the broker is not there, or there is too much to do; Retry-After says when to ask.",
    504: "The node did not answer in time.",
}

_SCHEMAS: _Schema = {
    "Error": _object(
        {"error": _object({"code": {"type": "integer"}, "title": {"type": "string"}, "message": {"type": "string"}})}
    ),
    "Fault": {
        "description": "An object with one entry, named after the fault; of 401, and of unknown paths, as in Error.",
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
            "id": {"type": ["integer", "string"], "description": "The uuid since 2.53, a number before."},
            "binary": {"type": "string"},
            "host": {"type": "string"},
            "zone": {"type": "string"},
            "status": {"enum": ["enabled", "disabled"]},
            "state": {"enum": ["up", "down"]},
            "updated_at": {**_NULL_TEXT, "description": "UTC, six decimals, no zone."},
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
            "detail": {"type": "string", "description": "For who may read."},
            "since": {"type": "string", "description": "For who may read; ISO 8601."},
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
                "description": "That node; otherwise any of the topic.",
            },
            "namespace": _NULL_TEXT,
            "version": {"type": ["string", "null"], "pattern": r"^[0-9]{1,9}\.[0-9]{1,9}(\.[0-9]{1,9})?$"},
            "timeout": {
                "type": ["number", "null"],
                "minimum": SHORTEST_TIMEOUT,
                "maximum": LONGEST_TIMEOUT,
                "description": "Seconds; rpc_response_timeout if it is left out.",
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
    '"compute 2.N", or "compute latest"; 2.1 if it is left out. /v2 is 2.1 for ever.',
)
_NAME = _parameter("name", "path", {"type": "string"}, "A uuid since 2.53; before, a number, or the action of a PUT.")
_OF_NODE = _parameter("uuid", "path", {"type": "string"}, "The node's.")
_VERB = _parameter("verb", "path", {"type": "string"}, "enable, disable, force-down, let-up, ping, drain or run-task.")

_SERVICES = "/v2.1/os-services"
_SERVICE = f"{_SERVICES}/{{name}}"

_PATHS: _Schema = {
    "/": {
        "get": {
            "summary": "The versions of the compute API; to a browser, the page of the fleet",
            "responses": _answers(
                {
                    "200": {
                        "description": "By what is accepted.",
                        "content": {
                            "application/json": {
                                "schema": _object({"versions": {"type": "array", "items": _ref("Version")}})
                            },
                            "text/html": {"schema": {"type": "string"}},
                        },
                    },
                    "303": {"description": "To the login."},
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
            "summary": "One version of the compute API; /v2/ is the other",
            "responses": _answers({"200": _json(_object({"version": _ref("Version")}), "The version.")}),
            "security": [],
        }
    },
    _SERVICES: {
        "get": {
            "summary": "List services. The same is at /v2.1/{project_id}/os-services, and at /v2",
            "parameters": [
                _MICROVERSION,
                _parameter("host", "query", {"type": "string"}, "Of this host."),
                _parameter("binary", "query", {"type": "string"}, "Of this binary."),
                _parameter("limit", "query", {"type": "string", "pattern": "^[0-9]*$"}, "So many, at the most 1000."),
                _parameter("marker", "query", {"type": "string"}, "The id of the last one of the page before."),
            ],
            "responses": _answers(
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
            "responses": _answers(
                {"200": _json(_object({"service": {"type": "object"}}), "As it is now.")},
                *(400, 401, 403, 404, 406, 415, 500, 503),
                form="Fault",
            ),
        },
        "delete": {
            "summary": "Delete a service's row",
            "parameters": [_MICROVERSION, _NAME],
            "responses": _answers(
                {"204": {"description": "It is gone."}}, *(400, 401, 403, 404, 406, 500, 503), form="Fault"
            ),
        },
    },
    "/v1/rpc/{topic}/{method}": {
        "post": {
            "summary": "Call a method of a node",
            "parameters": [
                _parameter("topic", "path", {"type": "string"}, "What the node serves."),
                _parameter("method", "path", {"type": "string"}, "An exposed method."),
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Call")}}},
            "responses": _answers(
                {
                    "200": _json(_object({"result": {}}), "What it returned."),
                    "202": _json(_object({"result": {"type": "null"}}), "A cast is on its way."),
                },
                *(400, 401, 403, 404, 415, 502, 503, 504),
            ),
        }
    },
    "/healthz": {
        "get": {
            "summary": "Whether this process answers",
            "responses": _answers({"200": _json(_object({"status": {"const": "ok"}}), "It does.")}),
            "security": [],
        }
    },
    "/readyz": {
        "get": {
            "summary": "Whether it can do what it is there for: each thing that it stands on",
            "responses": _answers(
                {"200": _json(_ref("Readiness"), "It can."), "503": _json(_ref("Readiness"), "It cannot.")}
            ),
            "security": [],
        }
    },
    "/metrics": {
        "get": {
            "summary": "What Prometheus asks for, of all workers",
            "responses": _answers(
                {
                    "200": {
                        "description": "An exposition.",
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
            "responses": _answers({"200": _json({"type": "object"}, "OpenAPI 3.1.")}),
            "security": [],
        }
    },
    "/events": {
        "get": {
            "summary": "What is new, for the page: a stream of server-sent events",
            "parameters": [_parameter("poll", "query", {"type": "string"}, '"1" asks once, and gets JSON.')],
            "responses": _answers(
                {
                    "200": {
                        "description": "The page's own form, which may change.",
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
            "summary": "A node's page",
            "parameters": [_OF_NODE],
            "responses": _answers(
                {"200": _page("The page."), "303": {"description": "To the login."}, "default": _page("Why not.")}
            ),
        }
    },
    "/action/{verb}/{uuid}": {
        "get": {
            "summary": "Ask whether it is meant",
            "parameters": [_VERB, _OF_NODE],
            "responses": _answers(
                {"200": _page("The question."), "303": {"description": "To the login."}, "default": _page("Why not.")}
            ),
        },
        "post": {
            "summary": "Do it: a form of the page",
            "parameters": [_VERB, _OF_NODE],
            "responses": _answers({"303": {"description": "Back to the page."}, "default": _page("Why not.")}),
        },
    },
    "/login": {
        "get": {
            "summary": "The form to log in by",
            "parameters": [_parameter("code", "query", {"type": "string"}, "Of a login link.")],
            "responses": _answers({"200": _page("The form."), "303": {"description": "Nobody has to log in."}}),
            "security": [],
        },
        "post": {
            "summary": "Log in, with a code or a token",
            "responses": _answers({"303": {"description": "To the page."}, "default": _page("Why not.")}),
            "security": [],
        },
    },
    "/logout": {
        "post": {
            "summary": "Log out",
            "responses": _answers({"303": {"description": "To the login."}, "default": _page("Why not.")}),
        }
    },
    "/static/{digest}/{name}": {
        "get": {
            "summary": "What the page is made of",
            "parameters": [
                _parameter("digest", "path", {"type": "string"}, "Of the contents."),
                _parameter("name", "path", {"type": "string"}, "Of the file."),
            ],
            "responses": _answers(
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
        "description": "The fleet: the compute services API of OpenStack, RPC over HTTP, health, metrics, and a page.",
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
"""The description of every path that there is; a test holds it against the routes."""


class OpenAPI:
    """Serves ``/openapi.json``, to everybody."""

    app = Klein()

    @app.route("/openapi.json", methods=["GET", "HEAD"])
    def document(self, request: Any) -> bytes:
        """Answer the description."""
        return answer_json(request, DOCUMENT)
