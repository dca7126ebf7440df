import re
from typing import Any
from unittest import TestCase

from novasvc.api.openapi import Component, content, make_document, object_schema, operation, operations_of
from novasvc.api.responses import make_app
from tests.support.api_rig import TOKENS, APIRig

METHODS = {"get", "put", "post", "delete"}
ELSEWHERE = {"/": {"get"}, "/v2.1/os-services": {"get"}}
"""Paths that are no Klein routes: the index, and the fast path."""


def routes(rig: APIRig) -> dict[str, set[str]]:
    """Return the methods of every path that the resources of the API serve, as the description writes it."""
    found: dict[str, set[str]] = {path: set(methods) for path, methods in ELSEWHERE.items()}
    for resource in rig.site.resource.resources.values():
        app = getattr(resource, "_app", None)
        for rule in () if app is None else app.url_map.iter_rules():
            path = re.sub(r"<any\('v2', 'v2\.1'\):path>", "v2.1", rule.rule)
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)
            if "{project}" not in path and path != "/v2.1":  # the same as without
                found.setdefault(path, set()).update(
                    method.lower() for method in rule.methods or () if method.lower() in METHODS
                )
    return found


class OpenAPITests(TestCase):
    """Tests for /openapi.json."""

    def test_complete(self) -> None:
        """It describes every route of every resource, and nothing else."""
        rig = APIRig(self)
        described = {path: {*item} & METHODS for path, item in rig.get("/openapi.json").document["paths"].items()}
        self.assertEqual(described, routes(rig))

    def test_public(self) -> None:
        """It can be read without a token, and says which operations need none."""
        paths = APIRig(self, TOKENS).get("/openapi.json").document["paths"]
        public = {path for path, item in paths.items() for each in item.values() if each.get("security") == []}
        self.assertEqual(
            public, {"/", "/v2.1/", "/healthz", "/readyz", "/openapi.json", "/login", "/static/{digest}/{name}"}
        )


class OperationTests(TestCase):
    """Tests for the description of handlers."""

    def document(self, *args: Any, **kwargs: Any) -> Any:
        """Return the document of one handler at /things/<int:number>."""
        app = make_app()

        @app.route("/things/<int:number>", methods=["GET", "HEAD"])
        @operation("A thing", *args, path_parameters={"number": "Of the thing."}, **kwargs)
        def thing(self: object, request: object, number: int) -> None:
            """Never called."""

        return make_document(operations_of(app))

    def test_route(self) -> None:
        """Path, method and the parameters of the path are those of the route."""
        (item,) = self.document({204: {"description": "Nothing."}})["paths"].items()
        path, methods = item
        self.assertEqual((path, [*methods]), ("/things/{number}", ["get"]))
        (parameter,) = methods["get"]["parameters"]
        self.assertEqual((parameter["name"], parameter["in"], parameter["required"]), ("number", "path", True))

    def test_components(self) -> None:
        """A component is in the document once, also if it is part of another one; schemas refer to it."""
        inner = Component("Inner", object_schema({}))
        outer = Component("Outer", object_schema({"inner": inner, "inners": {"type": "array", "items": inner}}))
        document = self.document({200: content("It.", json=outer)}, body=inner)
        get = document["paths"]["/things/{number}"]["get"]
        reference = {"$ref": "#/components/schemas/Inner"}
        self.assertEqual(get["requestBody"]["content"]["application/json"]["schema"], reference)
        self.assertEqual(document["components"]["schemas"]["Outer"]["properties"]["inners"]["items"], reference)
        self.assertEqual(document["components"]["schemas"]["Inner"], object_schema({}))

    def test_missing(self) -> None:
        """A route whose handler is not described, or a parameter that is not, is an error at the start."""
        app = make_app()

        @app.route("/undescribed", methods=["GET"])
        def undescribed(self: object, request: object) -> None:
            """Never called."""

        with self.assertRaises(AttributeError):
            make_document(operations_of(app))
        app = make_app()

        @app.route("/<name>", methods=["GET"])
        @operation("A thing", {})
        def thing(self: object, request: object, name: str) -> None:
            """Never called."""

        with self.assertRaises(KeyError):
            make_document(operations_of(app))
