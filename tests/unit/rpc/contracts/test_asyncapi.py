"""Tests for novasvc.rpc.contracts.asyncapi."""

from typing import Any

import jsonschema_rs
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.rpc.contracts.asyncapi import make_asyncapi
from novasvc.rpc.contracts.description import describe_methods
from tests.support.asyncapi_schema import check_asyncapi
from tests.support.wild_manager import Wild


class Greeter(Manager):
    @rpc.expose(idempotent=True, expected=(LookupError,))
    def greet(self, context: RequestContext, name: str, times: int = 1) -> str:
        """Greet somebody."""
        return name * times

    @rpc.expose
    def bare(self, context, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return value


def answer(manager: Manager, topic: str) -> dict[str, Any]:
    return {"topic": topic, "host": "h1", "methods": describe_methods(rpc.Endpoints(manager))}


class DocumentTests(SynchronousTestCase):
    def test_valid(self) -> None:
        """The official schema accepts it, with every kind of type, and with strange topics."""
        answers = [answer(Wild("h1"), "wild"), answer(Greeter("h1"), "a b/c.d~é")]
        check_asyncapi(self, make_asyncapi(answers, unanswered={"gone": "no reply"}))
        check_asyncapi(self, make_asyncapi([]))

    def test_checked(self) -> None:
        """The check finds what is wrong: it can fail."""
        document = make_asyncapi([answer(Greeter("h1"), "greeter")])
        document["operations"]["greeter.greet"]["action"] = "answer"
        self.assertRaises(AssertionError, check_asyncapi, self, document)

    def test_method(self) -> None:
        """A method is an operation that receives a request and replies."""
        document = make_asyncapi([answer(Greeter("h1"), "greeter")], exchange="cells")
        channel = document["channels"]["greeter"]
        self.assertEqual(channel["address"], "greeter")
        self.assertEqual(channel["bindings"]["amqp"]["exchange"], {"name": "cells", "type": "topic"})
        operation = document["operations"]["greeter.greet"]
        self.assertEqual((operation["action"], operation["summary"]), ("receive", "Greet somebody."))
        self.assertEqual((operation["x-novasvc-idempotent"], operation["x-novasvc-raises"]), (True, ["LookupError"]))
        payload = document["components"]["messages"]["greeter.greet"]["payload"]
        request = {"method": "greet", "args": {"name": "ada"}, "_msg_id": "1", "_reply_q": "r"}
        self.assertTrue(jsonschema_rs.is_valid(payload, request))
        for wrong in ({"name": 7}, {}, {"name": "ada", "more": 1}):
            self.assertFalse(jsonschema_rs.is_valid(payload, {**request, "args": wrong}))
        reply = document["components"]["messages"]["greeter.greet.reply"]["payload"]
        self.assertTrue(jsonschema_rs.is_valid(reply, {"result": "ada", "failure": None, "_msg_id": "1"}))
        self.assertFalse(jsonschema_rs.is_valid(reply, {"result": 7, "failure": None, "_msg_id": "1"}))
        bare = document["components"]["messages"]["greeter.bare"]["payload"]["properties"]["args"]
        self.assertEqual((bare["properties"], bare["required"]), ({"value": {}}, ["value"]))

    def test_interfaces(self) -> None:
        """Methods of other namespaces and major versions have names of their own; those of every node are left out."""
        document = make_asyncapi([answer(Wild("h1"), "wild")])
        names = set(document["operations"])
        self.assertLess({"wild.list", "wild.v2.newer", "wild.admin.reset"}, names)
        request = document["components"]["messages"]["wild.admin.reset"]["payload"]
        self.assertEqual(request["properties"]["namespace"], {"const": "admin"})

    def test_malformed(self) -> None:
        """A service that describes itself wrongly is named, and the others are described."""
        wrong = {"topic": "wrong", "methods": [{"method": 7}]}
        document = make_asyncapi([wrong, answer(Greeter("h1"), "greeter"), {}])
        check_asyncapi(self, document)
        self.assertEqual(list(document["channels"]), ["greeter", "greeter.replies"])
        unanswered = document["info"]["x-novasvc-unanswered"]
        self.assertEqual(unanswered["wrong"], "it describes itself wrongly: KeyError")
