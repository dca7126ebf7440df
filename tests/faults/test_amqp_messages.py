"""Messages that are none, or too large, or that nobody wants."""

import json
import struct
from typing import Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue

from novasvc.errors import RPCError, UndeliverableError
from novasvc.transport.amqp.frames import pack_content, pack_publish
from tests.faults.amqp_rig import CONTEXT, PATIENCE, TOPIC, AMQPCase, Diary

JSON_TYPE = b"\x10application/json"
BODY_LIMIT = 16 * 2**20


def enveloped(payload: str) -> bytes:
    return json.dumps({"oslo.version": "2.0", "oslo.message": payload}).encode()


def request(**changes: Any) -> bytes:
    fields = {"method": "note", "args": {}, "version": "1.0", "_unique_id": uuid4().hex} | changes
    return enveloped(json.dumps({name: value for name, value in fields.items() if value is not ...}))


DEEP = "[" * 100_000

MALFORMED = {
    "nothing": b"",
    "not JSON": b"hello",
    "half of it": request()[:-20],
    "not UTF-8": b"\xff\xfe{}",
    "not an object": b"[1]",
    "a number": b"1",
    "null": b"null",
    "deep": DEEP.encode(),
    "deep inside": enveloped(DEEP),
    "deep arguments": enveloped(f'{{"method": "note", "args": {{"what": {DEEP}'),
    "NaN for an envelope": b"NaN",
    "a version of tomorrow": request().replace(b'"2.0"', b'"3.0"'),
    "an envelope without a message": b'{"oslo.version": "2.0"}',
    "an object for a message": b'{"oslo.version": "2.0", "oslo.message": {"method": "note"}}',
    "a number for a version": request().replace(b'"2.0"', b"2"),
    "no JSON in the envelope": enveloped("hello"),
    "a list in the envelope": enveloped("[]"),
    "lone surrogates": enveloped('"\\ud800'),
    "no method": request(method=...),
    "a number for a method": request(method=1),
    "null for a method": request(method=None),
    "a list for arguments": request(args=[1]),
    "null for arguments": request(args=None),
    "a number for a namespace": request(namespace=1),
    "null for a version": request(version=None),
    "a version without a dot": request(version="1"),
    "an endless version": request(version="1." + "9" * 10_000),
    "a private method": request(method="__init__"),
    "a method that is not exposed": request(method="let_go"),
    "an unknown method": request(method="no_such"),
    "unknown arguments": request(args={"bogus": 1}),
    "self for an argument": request(args={"self": 1}),
}
"""Each is to be refused, once."""


def table(*fields: bytes) -> bytes:
    octets = b"".join(fields)
    return struct.pack(">I", len(octets)) + octets


def field(name: str, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name.encode() + kind + value


def long_string(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets


EVERY_TYPE = [
    field("t", b"t", b"\x01"),
    field("b", b"b", b"\xff"),
    field("B", b"B", b"\xff"),
    field("s", b"s", struct.pack(">h", -2)),
    field("u", b"u", struct.pack(">H", 2)),
    field("I", b"I", struct.pack(">i", -3)),
    field("i", b"i", struct.pack(">I", 3)),
    field("l", b"l", struct.pack(">q", -4)),
    field("f", b"f", struct.pack(">f", 0.5)),
    field("d", b"d", struct.pack(">d", 0.25)),
    field("D", b"D", b"\x02" + struct.pack(">i", 314)),
    field("S", b"S", long_string(b"\xff not UTF-8")),
    field("A", b"A", long_string(b"t\x00" + b"V" + b"A" + long_string(b""))),
    field("T", b"T", struct.pack(">Q", 2**63 - 1)),
    field("F", b"F", table(field("inner", b"V", b""))),
    field("V", b"V", b""),
    field("x", b"x", long_string(b"\x00\x01")),
]
X_DEATH = field(
    "x-death",
    b"A",
    long_string(
        b"F"
        + table(
            field("count", b"l", struct.pack(">q", 10**6)),
            field("reason", b"S", long_string(b"rejected")),
            field("time", b"T", struct.pack(">Q", 1)),
            field("routing-keys", b"A", long_string(b"S" + long_string(b"compute"))),
        )
    ),
)


class RawCase(AMQPCase):
    """Sends bytes as they are."""

    async def setUp(self) -> None:
        super().setUp()
        self.raw = await self.connect()
        self.transport = await self.connect()
        self.server = await self.serve(self.transport)
        self.client_ = await self.client(self.transport)

    def publish(self, body: bytes, properties: bytes = b"\x80\x00" + JSON_TYPE) -> None:
        """Send to the server's topic, in the midst of what a transport of ours sends."""
        protocol = self.raw.connections[0].protocol
        assert protocol is not None
        channel = min(number for number in protocol.channels if number)
        protocol.write(
            pack_publish(channel, "", TOPIC, mandatory=False)
            + pack_content(channel, properties, body, protocol.frame_max)
        )

    @property
    def waiting(self) -> int:
        return sum(number for queue, number in self.broker.queues(self.vhost).items() if queue.startswith(TOPIC))


class MalformedTests(RawCase):
    async def test_malformed(self) -> None:
        """Each malformed message is refused once, counted and logged in a line, and nothing stops."""
        metrics = self.server.delivery_metrics
        before = metrics.malformed.value + metrics.refused.value
        for number, body in enumerate(MALFORMED.values(), 1):
            self.publish(body)
            expected = before + number
            await self.until(lambda expected=expected: metrics.malformed.value + metrics.refused.value == expected)
        await self.assert_serves(self.client_)
        self.assertEqual(self.waiting, 0)
        self.assertEqual(self.diary.calls, ["still here"])
        lines = self.said("was dropped|was refused")
        self.assertEqual(len(lines), len(MALFORMED))
        self.assertLess(max(map(len, lines)), 1000)
        self.assertEqual([line for line in lines if "\n" in line], [])

    async def test_way_back(self) -> None:
        """Who sent a message that is refused, and said where replies go, gets the reason there."""
        replies: DeferredQueue[bytes] = DeferredQueue()
        address = await self.transport.open_replies(replies.put)
        for name in ("no method", "an unknown method", "unknown arguments", "null for a version", "a private method"):
            body = json.loads(MALFORMED[name])
            fields = json.loads(body["oslo.message"]) | {"_msg_id": "1", "_reply_q": address}
            self.publish(enveloped(json.dumps(fields)))
            reply = json.loads(json.loads(await replies.get().addTimeout(PATIENCE, reactor))["oslo.message"])
            self.assertEqual((reply["_msg_id"], reply["result"], reply["ending"]), ("1", None, True))
            failure = json.loads(reply["failure"])
            self.assertTrue(failure["class"] and failure["message"], name)

    async def test_nan(self) -> None:
        """NaN among the arguments is taken, as peers send it."""
        self.publish(enveloped('{"method": "note", "args": {"what": NaN}, "version": "1.0"}'))
        await self.until(lambda: self.diary.calls)
        self.assertNotEqual(self.diary.calls[0], self.diary.calls[0])

    async def test_too_long(self) -> None:
        """A body over the limit is rejected once; what comes after it is served."""
        self.publish(b"x" * (BODY_LIMIT + 1))
        await self.until(lambda: self.said("the body exceeds"))
        await self.assert_serves(self.client_)
        self.assertEqual(self.waiting, 0)
        self.assertEqual(len(self.said("the body exceeds")), 1)

    async def test_too_long_to_send(self) -> None:
        """A message that no receiver would take is refused at its sender."""
        call = self.client_.call(CONTEXT, "note", what="x" * BODY_LIMIT)
        error = await self.assertFailure(call, RPCError)
        self.assertIn(str(BODY_LIMIT), str(error))
        await self.assert_serves(self.client_)

    async def test_result_too_long(self) -> None:
        """A result that no caller would take is an error at the caller, at once."""
        call = self.client_.call(CONTEXT, "hang", what=1)
        await self.until(lambda: self.diary.hanging)
        self.diary.hanging.pop()[1].callback("x" * BODY_LIMIT)
        begun = reactor.seconds()
        await self.assertFailure(call, RPCError)
        self.assertLess(reactor.seconds() - begun, 3.0)
        await self.assert_serves(self.client_)


class HeaderTests(RawCase):
    async def deliver(self, properties: bytes) -> None:
        before = len(self.diary.calls)
        self.publish(request(), properties)
        await self.until(lambda: len(self.diary.calls) == before + 1)

    async def test_types(self) -> None:
        """Headers of every type that there is, each and all of them, and x-death, are no obstacle."""
        metrics = self.server.delivery_metrics
        before = metrics.malformed.value, metrics.refused.value, metrics.duplicates.value
        for headers in (*([one] for one in EVERY_TYPE), EVERY_TYPE, [X_DEATH], [*EVERY_TYPE, X_DEATH]):
            await self.deliver(b"\xa0\x00" + JSON_TYPE + table(*headers))
        self.assertEqual((metrics.malformed.value, metrics.refused.value, metrics.duplicates.value), before)

    async def test_moved_out_of_quarantine(self) -> None:
        """A quarantined request that is moved back, headers and all, runs: in the server that had it, and in others."""
        counts = (field(f"x-novasvc-{name}", b"I", struct.pack(">i", 3)) for name in ("deliveries", "deaths"))
        properties = b"\xa0\x00" + JSON_TYPE + table(*counts)
        for what in ("the same server", "another one"):
            self.publish(request(method="hang_again", args={"what": what}), properties)
            await self.until_asked(lambda: self.broker.queues(self.vhost).get(f"{TOPIC}_quarantine") == 1)
            if what == "another one":
                await self.server.close()
                await self.serve(server="h2")
            await self.move(f"{TOPIC}_quarantine", TOPIC)
            await self.until(lambda: self.diary.hanging)
            self.diary.let_go()
            await self.until_asked(lambda: not self.waiting)
        self.assertEqual(self.diary.calls, ["the same server", "another one"])

    async def test_properties(self) -> None:
        """All other properties, with odd values, are no obstacle either."""
        short = b"\x03odd"
        values = (JSON_TYPE, short, table(), b"\x02", b"\xff", short, short, b"\x0599999", short)
        rest = (struct.pack(">Q", 2**64 - 1), short, b"\x05guest", short, short)
        await self.deliver(b"\xff\xfc" + b"".join((*values, *rest)))

    async def test_malformed(self) -> None:
        """Headers that are malformed cost the message at the most."""
        for headers in (table(field("?", b"?", b"")), b"\x00\x00\x00\xff", table(b"\x05ab")):
            self.publish(request(), b"\xa0\x00" + JSON_TYPE + headers)
            try:
                await self.assert_serves(self.client_)
            except RPCError:
                await self.assert_comes_back(self.client_)
            # The broker itself refuses some of them, and closes the connection that they came by.
            await self.until(lambda: self.raw.connections[0].state == "ready")
        self.assertEqual(self.waiting, 0)


class NobodyTests(AMQPCase):
    async def test_nobody_serves(self) -> None:
        """A call of what nobody serves fails at once."""
        client = await self.client()
        for target in (client, client.prepare(server="h9")):
            begun = reactor.seconds()
            await self.assertFailure(target.call(CONTEXT, "note"), UndeliverableError)
            self.assertLess(reactor.seconds() - begun, 1.0)

    async def test_caller_gone(self) -> None:
        """A reply to a caller that is gone is dropped after a while, and holds nobody up."""
        transport = await self.connect()
        server = await self.serve(transport, concurrency=2)
        away = await self.connect()
        leaving = await self.client(away)
        calls = [leaving.call(CONTEXT, "hang", what=n) for n in range(2)]
        await self.until(lambda: len(self.diary.hanging) == 2)
        await leaving.close()
        await self.outcomes(calls)
        await away.close()
        self.diary.let_go()
        begun = reactor.seconds()
        client = await self.client(transport)
        await self.assert_serves(client)
        self.assertLess(reactor.seconds() - begun, 5.0)
        await self.until(lambda: server.in_flight == 0, 8.0)
        self.assertEqual(transport.dropped_replies, 2)


class DrainTests(AMQPCase):
    async def test_drained(self) -> None:
        """A server that drains under load loses no call, and runs none twice."""
        diaries = [Diary(), Diary()]
        first = await self.serve(server="h1", diary=diaries[0], concurrency=8)
        await self.serve(server="h2", diary=diaries[1], concurrency=8)
        client = await self.client()
        methods = ("hang", "hang_again")
        calls: list[Deferred[Any]] = [client.call(CONTEXT, methods[n % 2], what=n) for n in range(300)]
        await self.until(lambda: all(len(diary.hanging) == 8 for diary in diaries))
        stopping = first.stop_consuming()
        while not all(call.called for call in calls):
            for diary in diaries:
                diary.let_go()
            if stopping is not None and first.in_flight:
                await stopping
                stopping = None
            await self.until(lambda: any(diary.hanging for diary in diaries) or all(call.called for call in calls))
        await first.drained()
        await first.close()
        self.assertEqual(await self.outcomes(calls), list(range(300)))
        self.assertEqual(sorted(diaries[0].calls + diaries[1].calls), list(range(300)))
