"""Tests for novasvc.cli.interface_source and interface_types."""

import ast
import dataclasses
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.cli.interface_source import write_interface
from novasvc.cli.interface_types import TypeWriter, identifier, member_names
from novasvc.errors import MessageFormatError
from novasvc.rpc.contracts.description import describe_methods
from tests.support.wild_manager import Line as OtherLine
from tests.support.wild_manager import Wild


@dataclasses.dataclass
class Line:
    item: str
    amount: int = 1


class Stock(Manager):
    @rpc.expose(version="1.2", expected=(LookupError,))
    def reserve(self, context: RequestContext, line: Line, note: str = "") -> int:
        """Reserve an item."""
        return line.amount

    @rpc.expose
    def note(self, context, text):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return text


class TwoLines(Manager):
    """Has two classes of one name."""

    @rpc.expose
    def one(self, context: RequestContext, line: Line) -> Line:
        return line

    @rpc.expose
    def other(self, context: RequestContext, line: OtherLine) -> OtherLine:
        return line


EXPECTED = '''"""The interface of the service stock, for typed clients.

Written by `novasvc stub stock`: do not edit it, write it again.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from novasvc import RequestContext, rpc
from twisted.internet.defer import Deferred


@dataclass
class Line:
    item: str
    amount: int = 1


class Stock(Protocol):
    """The methods of stock, version 1.2."""

    def note(self, context: RequestContext, text: Any) -> Deferred[Any]:
        """Call note."""

    def reserve(
        self,
        context: RequestContext,
        line: Line,
        note: str = "",
    ) -> Deferred[int]:
        """Reserve an item.

        :raises: LookupError.
        """


def stock(client: rpc.Client, host: str | None = None) -> Stock:
    """Return a client of stock: of any host, or of one."""
    prepared = client.prepare(topic="stock", server=host, version="1.2")
    return rpc.stub(Stock, prepared)
'''


def answer(manager: Manager, **changes: Any) -> dict[str, Any]:
    """Return what a node answers to ``interface``."""
    return {"host": "h1", "topic": "stock", "methods": describe_methods(rpc.Endpoints(manager)), **changes}


class SourceTests(SynchronousTestCase):
    def test_text(self) -> None:
        """The text has the types, a protocol, and a function that makes the client."""
        self.assertEqual(write_interface(answer(Stock("h1"))), EXPECTED)

    def test_errors(self) -> None:
        """An error of the service is named with its module, from which a caller imports it."""
        errors = [{"name": "TooLate", "module": "shop.errors", "signature": "()", "summary": ""}]
        (row, *_) = describe_methods(rpc.Endpoints(Stock("h1")))
        methods = [{**row, "raises": ["TooLate", "LookupError"]}]
        text = write_interface(answer(Stock("h1"), methods=methods, errors=errors))
        self.assertIn(":raises: shop.errors.TooLate, LookupError.\n", text)

    def test_deterministic(self) -> None:
        """It depends on neither host nor time."""
        texts = {write_interface(answer(Wild(host), host=host)) for host in ("h1", "h2")}
        self.assertEqual(len(texts), 1)

    def test_blocking(self) -> None:
        """For a blocking client methods return results."""
        text = write_interface(answer(Stock("h1")), blocking=True)
        self.assertIn('def reserve(self, context: RequestContext, line: Line, note: str = "") -> int:\n', text)
        self.assertIn("def stock(client: blocking.Client, host: str | None = None) -> Stock:", text)
        self.assertIn("Written by `novasvc stub stock --blocking`", text)
        self.assertNotIn("Deferred", text)

    def test_same_name(self) -> None:
        """Different classes of one name get names of their own; equal ones are written once."""
        text = write_interface(answer(TwoLines("h1")))
        self.assertEqual(text.count("class Line:"), 1)
        self.assertIn("def one(self, context: RequestContext, line: Line) -> Deferred[Line]:", text)
        self.assertIn("line: Line_2) -> Deferred[Line_2]", " ".join(text.split()).replace(", )", ")"))

    def test_framework(self) -> None:
        """The methods that every node has are left out."""

        class Node(Manager):
            @rpc.expose(namespace="node")
            def describe(self, context: RequestContext) -> str:
                return ""

        text = write_interface(answer(Node("h1")))
        self.assertNotIn("describe", text)
        ast.parse(text)


class PeerTests(SynchronousTestCase):
    """What a node sends is checked: it becomes a program."""

    def row(self, **changes: Any) -> dict[str, Any]:
        (row,) = [row for row in answer(Stock("h1"))["methods"] if row["method"] == "reserve"]
        return {**row, **changes}

    def test_names(self) -> None:
        """A name that is none is refused."""
        parameter = {"name": "x: __import__('os')", "required": True, "keyword_only": False, "open": False}
        for change in ({"method": "a(): pass\nimport os"}, {"method": "class"}, {"parameters": [parameter]}):
            wrong = answer(Stock("h1"), methods=[self.row(**change)])
            error = self.assertRaises(MessageFormatError, write_interface, wrong)
            self.assertIn("is not an identifier", str(error))

    def test_texts(self) -> None:
        """Texts stay texts: nothing that they have becomes a statement."""
        evil = '"""\nimport os\nos.system("true")\n"""\\'
        name = evil.replace("/", "")
        schema = {
            "arguments": {},
            "result": {"$ref": f"#/$defs/{name}"},
            "$defs": {
                evil.replace("/", ""): {"type": "object", "properties": {evil: {"enum": [evil], "default": evil}}}
            },
        }
        row = self.row(summary=evil, raises=[evil], version=f"1.0{evil}", schema=schema, namespace=evil)
        text = write_interface(answer(Stock("h1"), topic=evil, methods=[row]))
        statements = ast.parse(text).body
        self.assertEqual([each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Import)], [])
        allowed = (ast.Expr, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign)
        self.assertTrue(all(isinstance(each, allowed) for each in statements))
        calls = {ast.unparse(each.func) for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call)}
        self.assertEqual(calls, {"TypedDict", "client.prepare", "rpc.stub"})

    def test_malformed(self) -> None:
        """Anything else than a description is an error that says so."""
        for wrong in ({}, {"topic": "a", "methods": [{}]}, {"topic": "a", "methods": [self.row(schema=7)]}, []):
            error = self.assertRaises(MessageFormatError, write_interface, wrong)
            self.assertIn("the service describes itself wrongly", str(error))


class NameTests(SynchronousTestCase):
    def test_times(self) -> None:
        """A time is a datetime, also that of an earlier service, which promised an offset."""
        for name in ("date-time-local", "date-time"):
            self.assertEqual(TypeWriter({}, ()).type({"type": "string", "format": name}), "datetime")

    def test_identifier(self) -> None:
        """Any text becomes an identifier."""
        for text, name in (("a-b", "a_b"), ("7x", "_7x"), ("", "Type"), ("shop.Line", "shop_Line"), ("é", "Type")):
            self.assertEqual(identifier(text), name)
            self.assertTrue(name.isidentifier())

    def test_members(self) -> None:
        """Members of enums are named after their values, each by a name of its own."""
        values = ["g", "g!", "", "mro", "7", -1, 1]
        names = ["G", "G_2", "EMPTY", "VALUE_MRO", "VALUE_7", "VALUE_MINUS_1", "VALUE_1"]
        self.assertEqual(member_names(values), names)
