"""Tests for novasvc.transport.amqp.spec."""

import inspect
from itertools import groupby
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from txamqp.spec import Method, pythonize

from novasvc.transport.amqp.spec import SPEC

METHODS = [method for kind in SPEC.classes for method in kind.methods]
DOMAINS = {"bit", "octet", "short", "long", "longlong", "shortstr", "longstr", "table"}


def ids(text: str) -> tuple[int, int]:
    method = SPEC.parse_method(text)
    return method.klass.id, method.id


def answers(text: str) -> list[str]:
    return [method.name for method in SPEC.parse_method(text).responses]


def fields(text: str) -> list[str]:
    return [f"{field.type} {field.name}" for field in SPEC.parse_method(text).fields]


class Invoked(SPEC.klass):
    """Keeps what the spec's methods hand to a channel."""

    def invoke(self, *args: Any) -> tuple[Any, ...]:
        return args


class SpecTests(SynchronousTestCase):
    def test_version(self) -> None:
        """txamqp counts it as 0-9, whose methods it calls the same way."""
        self.assertEqual((SPEC.major, SPEC.minor), (0, 9))

    def test_complete(self) -> None:
        """It has all classes that a client of RabbitMQ meets, under their numbers."""
        self.assertEqual(
            {kind.name: (kind.id, len(kind.methods)) for kind in SPEC.classes},
            {
                "connection": (10, 14),
                "channel": (20, 6),
                "exchange": (40, 8),
                "queue": (50, 10),
                "basic": (60, 18),
                "confirm": (85, 2),
                "tx": (90, 6),
            },
        )

    def test_extensions(self) -> None:
        """RabbitMQ's own methods have RabbitMQ's numbers."""
        for name, expected in (
            ("connection.blocked", (10, 60)),
            ("connection.unblocked", (10, 61)),
            ("connection.update-secret", (10, 70)),
            ("connection.update-secret-ok", (10, 71)),
            ("exchange.bind", (40, 30)),
            ("exchange.unbind", (40, 40)),
            ("exchange.unbind-ok", (40, 51)),
            ("basic.nack", (60, 120)),
            ("confirm.select", (85, 10)),
        ):
            self.assertEqual(ids(name), expected, name)

    def test_answers(self) -> None:
        """A method is answered by the ones that are named after it, and basic.get by one of two."""
        self.assertEqual(answers("basic.get"), ["get-ok", "get-empty"])
        self.assertEqual(answers("basic.cancel"), ["cancel-ok"])
        self.assertEqual(answers("basic.publish"), [])
        for method in METHODS:
            if method.name != "get" and method.responses:
                self.assertEqual([answer.name for answer in method.responses], [f"{method.name}-ok"])

    def test_answers_are_marked(self) -> None:
        """Only an answer is marked as one: basic.cancel of the broker's is none, cancel-ok is."""
        for method in METHODS:
            expected = method.name.endswith("-ok") or method.name == "get-empty"
            self.assertEqual(method.response, expected, f"{method.klass.name}.{method.name}")

    def test_answered_is_synchronous(self) -> None:
        """What is answered is waited for."""
        for method in METHODS:
            self.assertEqual(method.synchronous, bool(method.responses), f"{method.klass.name}.{method.name}")

    def test_content(self) -> None:
        """Four methods bring a message."""
        self.assertEqual(
            [f"{method.klass.name}.{method.name}" for method in METHODS if method.content],
            ["basic.publish", "basic.return", "basic.deliver", "basic.get-ok"],
        )

    def test_no_wait(self) -> None:
        """It is called as in 0-9-1, everywhere, and never "nowait"."""
        names = {field.name for method in METHODS for field in method.fields}
        self.assertIn("no-wait", names)
        self.assertNotIn("nowait", names)
        self.assertEqual(SPEC.parse_method("queue.declare").fields.bypyname["no_wait"].type, "bit")

    def test_queue_declare(self) -> None:
        """queue.declare has its arguments in the order of the wire."""
        self.assertEqual(
            fields("queue.declare"),
            [
                "short reserved-1",
                "shortstr queue",
                "bit passive",
                "bit durable",
                "bit exclusive",
                "bit auto-delete",
                "bit no-wait",
                "table arguments",
            ],
        )

    def test_types(self) -> None:
        """Every argument is of a type that the protocol has, and its bits follow one another."""
        for method in METHODS:
            kinds = [field.type for field in method.fields]
            self.assertLessEqual(set(kinds), DOMAINS)
            self.assertLessEqual([kind for kind, _ in groupby(kinds)].count("bit"), 1)

    def test_places(self) -> None:
        """An argument's number is its place."""
        for method in METHODS:
            self.assertEqual([field.id for field in method.fields], list(range(len(method.fields))))

    def test_properties(self) -> None:
        """A message has the fourteen properties, in the order of their flags."""
        self.assertEqual(
            [field.name for field in SPEC.classes.byname["basic"].fields],
            [
                *("content-type", "content-encoding", "headers", "delivery-mode", "priority", "correlation-id"),
                *("reply-to", "expiration", "message-id", "timestamp", "type", "user-id", "app-id", "cluster-id"),
            ],
        )

    def test_constants(self) -> None:
        """The numbers of frames and of replies have their names."""
        for name, value in (
            ("frame_method", 1),
            ("frame_header", 2),
            ("frame_body", 3),
            ("frame_heartbeat", 8),
            ("frame_end", 206),
            ("frame_min_size", 4096),
        ):
            self.assertEqual(SPEC.constants.bypyname[name].id, value)
        for value, name in ((312, "no-route"), (404, "not-found"), (406, "precondition-failed"), (530, "not-allowed")):
            self.assertEqual(SPEC.constants.byid[value].name, name)


class ChannelMethodsTests(SynchronousTestCase):
    def test_all(self) -> None:
        """The class for channels has every method, and each takes the spec's arguments by their names."""
        for method in METHODS:
            function = getattr(SPEC.klass, pythonize(f"{method.klass.name}_{method.name}"))
            names = [pythonize(field.name) for field in method.fields] + ["content"] * method.content
            self.assertEqual(list(inspect.signature(function).parameters), ["self", *names])

    def test_invoke(self) -> None:
        """A method hands the channel itself and its arguments, with defaults for those that were left out."""
        method, args = Invoked().queue_declare(queue="compute", durable=True, arguments={"x-expires": 5})
        self.assertIsInstance(method, Method)
        self.assertEqual((method.klass.name, method.name), ("queue", "declare"))
        self.assertEqual(args, (0, "compute", False, True, False, False, False, {"x-expires": 5}))

    def test_reserved(self) -> None:
        """Reserved arguments can be left out, which is all that is allowed with them."""
        for method in METHODS:
            for field in method.fields:
                if field.name.startswith("reserved"):
                    function = getattr(SPEC.klass, pythonize(f"{method.klass.name}_{method.name}"))
                    default = inspect.signature(function).parameters[pythonize(field.name)].default
                    self.assertIn(default, (0, "", False))
