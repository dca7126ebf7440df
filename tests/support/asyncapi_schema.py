"""Validates documents by the official JSON Schema of AsyncAPI 3.0; see tests/support/asyncapi/README.md."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest import TestCase

import jsonschema_rs


@cache
def _validator() -> Any:
    packed = Path(__file__).with_name("asyncapi") / "asyncapi-3.0.0.json.gz"
    return jsonschema_rs.validator_for(json.loads(gzip.decompress(packed.read_bytes())))


def check_asyncapi(test: TestCase, document: Any) -> None:
    """Check that a document is an AsyncAPI 3.0 document, and that its references lead somewhere."""
    problems = [f"{list(error.instance_path)}: {error.message[:300]}" for error in _validator().iter_errors(document)]
    test.assertEqual(problems[:3], [])
    for reference in _references(document):
        part = document
        for name in reference.removeprefix("#/").split("/"):
            test.assertIn(name, part, reference)
            part = part[name]


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in _references(value)]
    return [found for value in part for found in _references(value)] if isinstance(part, list) else []
