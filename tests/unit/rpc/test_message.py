"""Tests for novasvc.rpc.message."""

import contextlib
import json
import math
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import InvalidArgumentsError, MessageFormatError, ResultNotSerializableError
from novasvc.rpc.message import (
    Reply,
    ReplyTo,
    Request,
    encode_failure,
    encode_keepalive,
    encode_request,
    encode_result,
    read_reply,
    read_reply_to,
    read_request,
    unwrap,
)
from tests.unit.rpc.test_payload import JSON

OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)

# Written by oslo.messaging 18.3.1.
CALL = (
    rb'{"oslo.version": "2.0", "oslo.message": "{\"method\": \"echo\", \"args\": {\"x\": 1, \"s\": \"h\\u00e9\"}, '
    rb"\"version\": \"1.2\", \"_msg_id\": \"f90072f09581436ab0353a45669e1c1f\", "
    rb"\"_reply_q\": \"reply_73c76d5ce9d243cebd34ca29ed69b0a5\", \"_timeout\": null, "
    rb"\"_unique_id\": \"09631b1ca6784f6baaa7cdafdb98594d\", \"_context_user\": \"u1\", "
    rb'\"_context_request_id\": \"req-1\", \"_context_n\": null, \"_context_l\": [1, 2]}"}'
)
CAST = (
    rb'{"oslo.version": "2.0", "oslo.message": "{\"method\": \"note\", \"args\": {\"k\": \"fanout\"}, '
    rb'\"version\": \"1.2\", \"_unique_id\": \"998d45bc1637450da3fce9013a8ec395\"}"}'
)
REPLY = (
    rb'{"oslo.version": "2.0", "oslo.message": "{\"result\": {\"x\": 1, \"s\": \"h\\u00e9\"}, \"failure\": null, '
    rb"\"ending\": true, \"_msg_id\": \"f90072f09581436ab0353a45669e1c1f\", "
    rb'\"_unique_id\": \"f712a7ba4ba74a10b0f6614ae1c8de8f\"}"}'
)


def wrapped(body: object) -> bytes:
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(body)}).encode()


class CapturedTests(SynchronousTestCase):
    def test_call(self) -> None:
        """A call written by oslo.messaging is decoded."""
        expected = Request(
            method="echo",
            args={"x": 1, "s": "h\u00e9"},
            context={"user": "u1", "request_id": "req-1", "n": None, "l": [1, 2]},
            version="1.2",
            reply_to=ReplyTo("f90072f09581436ab0353a45669e1c1f", "reply_73c76d5ce9d243cebd34ca29ed69b0a5"),
            unique_id="09631b1ca6784f6baaa7cdafdb98594d",
        )
        self.assertEqual(read_request(unwrap(CALL)), expected)

    def test_cast(self) -> None:
        """A cast written by oslo.messaging is decoded."""
        request = read_request(unwrap(CAST))
        self.assertEqual((request.method, request.args, request.context), ("note", {"k": "fanout"}, {}))
        self.assertIsNone(request.reply_to)

    def test_reply(self) -> None:
        """A reply written by oslo.messaging is decoded."""
        expected = Reply("f90072f09581436ab0353a45669e1c1f", {"x": 1, "s": "h\u00e9"})
        self.assertEqual(read_reply(unwrap(REPLY)), expected)

    def written(self, message: bytes) -> dict[str, Any]:
        outer = json.loads(message)
        self.assertEqual((list(outer), outer["oslo.version"]), (["oslo.version", "oslo.message"], "2.0"))
        body: dict[str, Any] = json.loads(outer["oslo.message"])
        self.assertRegex(body.pop("_unique_id"), r"\A[0-9a-f]{32}\Z")
        return body

    def test_call_written(self) -> None:
        """A call is encoded with oslo.messaging's keys, in their order."""
        reply_to = ReplyTo("f90072f09581436ab0353a45669e1c1f", "reply_73c76d5ce9d243cebd34ca29ed69b0a5")
        context = {"user": "u1", "request_id": "req-1", "n": None, "l": [1, 2]}
        message = encode_request("echo", {"x": 1, "s": "h\u00e9"}, context, version="1.2", reply_to=reply_to)
        expected = unwrap(CALL)
        del expected["_unique_id"]
        self.assertEqual(self.written(message), expected)
        self.assertEqual(list(unwrap(message)), list(unwrap(CALL)))

    def test_cast_written(self) -> None:
        """A cast has none of a call's keys, and a version or namespace only if given."""
        self.assertEqual(self.written(encode_request("note", {}, {})), {"method": "note", "args": {}})
        with_namespace = encode_request("note", {}, {}, namespace="")
        self.assertEqual(self.written(with_namespace), {"method": "note", "args": {}, "namespace": ""})

    def test_reply_written(self) -> None:
        """All replies have the same five keys."""
        for message, result, failure, ending in (
            (encode_result("1", [2], "echo"), [2], None, True),
            (encode_failure("1", "{}"), None, "{}", True),
            (encode_keepalive("1"), None, None, False),
        ):
            expected = {"result": result, "failure": failure, "ending": ending, "_msg_id": "1"}
            self.assertEqual(self.written(message), expected)
            self.assertEqual(read_reply(unwrap(message)), Reply("1", result, failure, ending))

    def test_ids(self) -> None:
        """Each message has a unique id."""
        ids = {unwrap(encode_request("echo", {}, {}))["_unique_id"] for _ in range(1000)}
        self.assertEqual(len(ids), 1000)


class RoundTripTests(SynchronousTestCase):
    @given(st.text(max_size=255), OBJECTS, OBJECTS, st.none() | st.text(), st.none() | st.text(), st.text())
    def test_request(
        self, method: str, args: Any, context: Any, namespace: str | None, version: str | None, msg_id: str
    ) -> None:
        """An encoded request is decoded to the same values."""
        reply_to = ReplyTo(msg_id, "reply_1")
        message = encode_request(method, args, context, namespace=namespace, version=version, reply_to=reply_to)
        expected = Request(method, args, context, namespace, version or "1.0", reply_to, mock.ANY)
        if version != "":
            self.assertEqual(read_request(unwrap(message)), expected)

    @given(st.text(), JSON)
    def test_reply(self, msg_id: str, result: Any) -> None:
        """An encoded reply is decoded to the same values."""
        self.assertEqual(read_reply(unwrap(encode_result(msg_id, result, "m"))), Reply(msg_id, result))

    @given(st.binary() | OBJECTS.map(wrapped) | JSON.map(wrapped) | OBJECTS.map(lambda o: json.dumps(o).encode()))
    def test_anything(self, message: bytes) -> None:
        """Any message is decoded, or raises MessageFormatError."""
        try:
            fields = unwrap(message)
        except MessageFormatError:
            return
        for read in (read_request, read_reply):
            with contextlib.suppress(MessageFormatError):
                read(fields)


class UnwrapTests(SynchronousTestCase):
    def refused(self, message: bytes) -> str:
        error = self.assertRaises(MessageFormatError, unwrap, message, 10_000_000)
        self.assertNotIn("secret", str(error))
        return error.problem

    def test_forms(self) -> None:
        """The envelope's order and white space are ignored, and raw UTF-8 is accepted."""
        for message in (
            '{"oslo.message": "{\\"a\\": \\"h\u00e9\\"}", "oslo.version": "2.0"}',
            ' {"oslo.version":"2.0","oslo.message":"{\\"a\\": \\"h\\\\u00e9\\"}"}\n',
            '{"oslo.version": "2.0", "oslo.message": "{\\"a\\": \\"h\u00e9\\"}" }',
            '{"oslo.version": "2.0", "oslo.message": "{\\"a\\": \\"h\u00e9\\"}", "more": 1}',
        ):
            self.assertEqual(unwrap(message.encode()), {"a": "h\u00e9"})

    def test_without_envelope(self) -> None:
        """An object without an envelope is the body: the form before 2.0."""
        self.assertEqual(unwrap(b'{"method": "echo"}'), {"method": "echo"})
        self.assertEqual(unwrap(b'{"oslo.version": "2.0"}'), {"oslo.version": "2.0"})

    def test_refused(self) -> None:
        """A malformed message is refused with the reason, and without its contents."""
        for message, problem in (
            (b"secret", "it is not JSON"),
            (b'{"secret": "\xff"}', "it is not UTF-8"),
            (b'["secret"]', "it is not an object"),
            (b'{"oslo.version": "2.0", "oslo.message": {"secret": 1}}', "oslo.message is not a string"),
            (b'{"oslo.version": "2.0", "oslo.message": "secret"}', "oslo.message is not JSON"),
            (b'{"oslo.version": "2.0", "oslo.message": "[1]"}', "oslo.message is not an object"),
            (b'{"oslo.version": "2.0", "oslo.message": "{}"', "it is not JSON"),
            (b'{"oslo.version": "2.0", "oslo.message": "{}"}}', "it is not JSON"),
            (b'{"oslo.version": "2.0", "oslo.message": ', "it is not JSON"),
            (b"[" * 1_000_000, "it is nested too deeply"),
            (b'{"oslo.version": "2.0", "oslo.message": ' + b"[" * 1_000_000, "it is nested too deeply"),
            (wrapped({"a": "x"}).replace(b"x", b'x\\", \\"b\\": ' + b"[" * 1_000_000), "oslo.message is nested too"),
        ):
            self.assertIn(problem, self.refused(message))

    def test_versions(self) -> None:
        """Only envelopes of version 2.0 are accepted."""
        self.assertEqual(unwrap(b'{"oslo.version": "2.0.0", "oslo.message": "{}"}'), {})
        for version in ("2.1", "1.0", "3.0", "2.0.1", "2", "", 2.0, None, "secret"):
            problem = self.refused(json.dumps({"oslo.version": version, "oslo.message": "{}"}).encode())
            self.assertIn("not 2.0", problem)

    def test_limit(self) -> None:
        """A message over the limit is refused before it is decoded."""
        error = self.assertRaises(MessageFormatError, unwrap, b"[" * 11, 10)
        self.assertEqual(error.problem, "it is 11 bytes long; the limit is 10")

    def test_numbers(self) -> None:
        """NaN, infinities and huge integers are accepted."""
        fields = unwrap(b'{"a": NaN, "b": -Infinity, "c": 1' + b"0" * 1000 + b"}")
        self.assertTrue(math.isnan(fields["a"]))
        self.assertEqual((fields["b"], fields["c"]), (-math.inf, 10**1000))


class ReadRequestTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """A missing field has a default; an unknown field is ignored."""
        self.assertEqual(read_request({"method": "echo", "unknown": 1}), Request("echo", {}, {}))

    def test_null(self) -> None:
        """A null version stays None, and matches no method."""
        self.assertIsNone(read_request({"method": "echo", "version": None}).version)

    def test_wrong_types(self) -> None:
        """A field of the wrong type is named in the problem."""
        for fields, name in (
            ({}, "method"),
            ({"method": None}, "method"),
            ({"method": "x" * 256}, "method"),
            ({"method": "m", "args": None}, "args"),
            ({"method": "m", "args": []}, "args"),
            ({"method": "m", "namespace": 1}, "namespace"),
            ({"method": "m", "version": 1.0}, "version"),
        ):
            request = read_request({**fields, "_msg_id": "1", "_reply_q": "q", "_context_request_id": "req-1"})
            self.assertIn(f"'{name}'", str(request.problem))
            self.assertEqual((request.reply_to, request.context), (ReplyTo("1", "q"), {"request_id": "req-1"}))

    def test_reply_to(self) -> None:
        """Only a request with a message id and a reply address has a return address."""
        self.assertEqual(read_reply_to({"_msg_id": "1", "_reply_q": "q"}), ReplyTo("1", "q"))
        for fields in ({}, {"_msg_id": "1"}, {"_reply_q": "q"}, {"_msg_id": "1", "_reply_q": ""}, {"_msg_id": 1}):
            self.assertIsNone(read_reply_to(fields))

    def test_keepalive(self) -> None:
        """Keepalives are requested with a number of seconds, from 2 upwards."""
        for sent, seconds in ((2, 2), (4, 4), (2.9, 2), ("2", 2), (1, None), (1.9, None), ("x", None), (None, None)):
            self.assertEqual(read_request({"method": "m", "_timeout": sent}).keepalive, seconds)
        for sent in ([2], {}, math.nan, math.inf, True):
            self.assertIsNone(read_request({"method": "m", "_timeout": sent}).keepalive)


class ReadReplyTests(SynchronousTestCase):
    def test_old_sender(self) -> None:
        """Missing fields of a reply have oslo.messaging's defaults."""
        self.assertEqual(read_reply({"_msg_id": "1"}), Reply("1", None, None, final=False))

    def test_failure(self) -> None:
        """An empty failure is no failure; one that is not a string is a failure."""
        failures = [read_reply({"_msg_id": "1", "failure": failure}).failure for failure in (None, "", {}, "{}")]
        self.assertEqual(failures, [None, None, None, "{}"])
        self.assertIsNotNone(read_reply({"_msg_id": "1", "failure": {"class": "X"}}).failure)

    def test_no_id(self) -> None:
        """A reply without a message id is refused."""
        for fields in ({}, {"_msg_id": None}, {"_msg_id": 1}):
            self.assertRaises(MessageFormatError, read_reply, fields)


class LimitTests(SynchronousTestCase):
    def test_arguments(self) -> None:
        """Arguments that JSON cannot hold, or that are too large, raise InvalidArgumentsError."""
        error = self.assertRaises(InvalidArgumentsError, encode_request, "echo", {"x": [object()]}, {})
        self.assertIn("['args']['x'][0] is of type object", str(error))
        error = self.assertRaises(InvalidArgumentsError, encode_request, "echo", {"x": "y" * 100}, {}, limit=99)
        self.assertIn("the limit is 99", str(error))

    def test_result(self) -> None:
        """A result that JSON cannot hold, or that is too large, raises ResultNotSerializableError."""
        error = self.assertRaises(ResultNotSerializableError, encode_result, "1", [object()], "echo")
        self.assertIn("the result[0] is of type object", str(error))
        self.assertRaises(ResultNotSerializableError, encode_result, "1", "y" * 100, "echo", limit=99)
