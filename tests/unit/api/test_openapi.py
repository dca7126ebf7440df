import re
from collections.abc import Iterator
from typing import Any
from unittest import TestCase

from novasvc.api.openapi import DOCUMENT
from novasvc.api.page.actions import ACTIONS
from tests.support.api_rig import APIRig

METHODS = {"get", "put", "post", "delete"}
ELSEWHERE = {"/": {"get"}, "/v2.1/os-services": {"get"}}
"""Paths that are no Klein routes: the index, and the fast path."""


def routes(rig: APIRig) -> dict[str, set[str]]:
    """Return the methods of every path of the API, as the description writes it."""
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


def references(part: Any) -> Iterator[str]:
    """Return all that a part of the description refers to."""
    if isinstance(part, dict):
        yield from (part[name] for name in part if name == "$ref")
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from references(each)


class OpenAPITests(TestCase):
    """Tests for /openapi.json."""

    def test_complete(self) -> None:
        """Every route is described, and nothing that is none."""
        told = {path: {*item} & METHODS for path, item in DOCUMENT["paths"].items()}
        self.assertEqual(told, routes(APIRig(self)))

    def test_sound(self) -> None:
        """All that it refers to is there, and each parameter of a path is described."""
        schemas = DOCUMENT["components"]["schemas"]
        for reference in references(DOCUMENT):
            self.assertIn(reference.removeprefix("#/components/schemas/"), schemas)
        for path, item in DOCUMENT["paths"].items():
            for operation in item.values():
                described = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
                self.assertEqual(described, set(re.findall(r"{(\w+)}", path)), path)

    def test_served(self) -> None:
        """Everybody may read it."""
        self.assertEqual(APIRig(self).get("/openapi.json").document, DOCUMENT)

    def test_verbs(self) -> None:
        """It names the page's verbs."""
        (verb, _) = DOCUMENT["paths"]["/action/{verb}/{uuid}"]["get"]["parameters"]
        for name in ACTIONS:
            self.assertIn(name, verb["description"])
