"""Tests for novasvc.http.channel, deadlines and teardown."""

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http import channel
from novasvc.http.head import PartialHead
from novasvc.http.limits import Limits
from novasvc.telemetry import metrics
from tests.support.http_rig import GET, LAST, Wire


class RequestTests(SynchronousTestCase):
    def test_one(self) -> None:
        """A request is answered without a Server header, and the connection stays open."""
        wire = Wire()
        wire.send(GET)
        (answer,) = wire.answers()
        self.assertEqual((answer.status, answer.body), (200, b"GET / "))
        self.assertEqual(answer.headers["date"], "Mon, 12 Jan 1970 13:46:40 GMT")
        self.assertNotIn("server", answer.headers)
        self.assertFalse(wire.transport.disconnecting)

    def test_in_pieces(self) -> None:
        """A request may arrive a byte at a time."""
        wire = Wire()
        data = b"\r\nPOST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        wire.send(*[bytes([byte]) for byte in data * 2])
        self.assertEqual([answer.body for answer in wire.answers()], [b"POST /x abc"] * 2)

    def test_slow_head(self) -> None:
        """A head that arrives a byte at a time has one PartialHead, which checks each byte once."""
        made: list[PartialHead] = []

        def make(limits: Limits) -> PartialHead:
            made.append(PartialHead(limits))
            return made[-1]

        self.patch(channel, "PartialHead", make)
        wire = Wire()
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"A: " + b"b" * 495 + b"\r\n") * 8
        wire.send(*[bytes([byte]) for byte in head])
        self.assertEqual([each.checked for each in made], [len(head)])
        wire.send(b"\r\n")
        self.assertEqual(wire.answers()[0].status, 200)

    def test_empty_line(self) -> None:
        """One empty line before a request is ignored; anything else is rejected."""
        for before in (b"", b"\r\n"):
            wire = Wire()
            wire.send(*[bytes([byte]) for byte in (before + GET) * 2])
            self.assertEqual([answer.status for answer in wire.answers()], [200, 200], before)
        for before in (b"\r", b"\n", b"\r\r\n", b"\n\r\n", b"\r\n\r\n", b"\r\n\n", b"\r\n\r", b" ", b"\x00"):
            for pieces in ((before + GET,), [bytes([byte]) for byte in before + GET]):
                wire = Wire()
                wire.send(GET, *pieces)
                self.assertEqual([answer.status for answer in wire.answers()], [200, 400], before)

    def test_empty_line_only(self) -> None:
        """An empty line does not begin a request: the connection counts as idle after it."""
        wire = Wire(head_timeout=10, idle_timeout=100)
        wire.send(GET + b"\r\n")
        wire.answers()
        wire.pass_time(99)
        self.assertFalse(wire.transport.disconnecting)
        wire.pass_time(2)
        self.assertEqual(wire.answers(), [])
        self.assertTrue(wire.transport.disconnecting)

    def test_scheme(self) -> None:
        """A request for an https URL is rejected on a connection without TLS."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"http://x/ "), GET.replace(b"/ ", b"https://x/ "))
        self.assertEqual([answer.status for answer in wire.answers()], [200, 421])

    def test_pipelined(self) -> None:
        """Pipelined requests are answered in order, and other connections get their turn between them."""
        wire = Wire()
        wire.send(GET * 1000 + LAST)
        self.assertLess(len(wire.answers()), 20)
        self.assertEqual(wire.transport.producerState, "paused")
        wire.clock.pump([0.0] * 100)
        self.assertGreater(len(wire.answers()), 980)
        self.assertTrue(wire.transport.disconnecting)

    def test_unread(self) -> None:
        """Nothing more is answered for or read from a client that does not read; both resume when it reads."""
        wire = Wire()
        wire.send(GET)
        wire.answers()
        wire.channel.pauseProducing()
        wire.send(GET * 10)
        self.assertEqual(wire.answers(), [])
        self.assertEqual(wire.transport.producerState, "paused")
        wire.channel.resumeProducing()
        self.assertEqual(len(wire.answers()), 10)

    def test_unread_while_answered(self) -> None:
        """The input that is buffered for a client that does not read its response is bounded."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later "))
        wire.channel.pauseProducing()
        self.assertEqual(wire.transport.producerState, "producing")
        wire.send(b"x" * 10_000, b"x" * 10_000)
        self.assertEqual(wire.transport.producerState, "paused")
        wire.channel.resumeProducing()
        self.assertEqual(wire.transport.producerState, "paused")

    def test_waiting(self) -> None:
        """The next request waits while one is answered, and a client that pipelines too many is paused."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later "), GET)
        self.assertEqual(wire.answers(), [])
        self.assertEqual(wire.transport.producerState, "producing")
        wire.send(GET * 1000)
        self.assertEqual(wire.transport.producerState, "paused")
        wire.resource.waiting.pop().finish()
        wire.clock.pump([0.0] * 100)
        self.assertEqual(len(wire.answers()), 1002)
        self.assertEqual(wire.transport.producerState, "producing")

    def test_close(self) -> None:
        """Connection: close ends the connection, and later input is ignored."""
        wire = Wire()
        wire.send(LAST + GET)
        (answer,) = wire.answers()
        self.assertEqual(answer.headers["connection"], "close")
        self.assertTrue(wire.transport.disconnecting)
        wire.send(GET)
        self.assertEqual(wire.answers(), [])

    def test_no_keep_alive(self) -> None:
        """Without keep_alive a connection takes one request."""
        wire = Wire(keep_alive=False)
        wire.send(GET)
        self.assertEqual(wire.answers()[0].headers["connection"], "close")
        self.assertTrue(wire.transport.disconnecting)

    def test_continue(self) -> None:
        """100 Continue is sent unless the body is there already, or is over the limit."""
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        wire = Wire(max_body=10)
        wire.send(head % 3)
        self.assertEqual([answer.status for answer in wire.answers()], [100])
        wire.send(b"abc")
        self.assertEqual([answer.body for answer in wire.answers()], [b"PUT / abc"])
        wire.send(head % 3 + b"abc")
        self.assertEqual([answer.status for answer in wire.answers()], [200])
        wire.send(head % 11)
        self.assertEqual([answer.status for answer in wire.answers()], [413])

    def test_failed(self) -> None:
        """A resource that raises gets a 500 without the reason."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/boom ") + GET)
        failed, after = wire.answers()
        self.assertEqual((failed.status, after.status), (500, 200))
        self.assertEqual(failed.error["title"], "Internal Server Error")
        self.assertNotIn(b"secret", failed.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_failed_midway(self) -> None:
        """What a resource wrote before it raised arrives, and the client can tell that it is incomplete."""
        for version, headers, end in (
            (b"1.1", {}, b"\r\n\r\n3\r\nabc\r\n"),
            (b"1.1", {b"content-length": b"9"}, b"\r\n\r\nabc"),
            (b"1.0", {b"content-length": b"9"}, b"\r\n\r\nabc"),
            (b"1.0", {}, b"\r\n\r\nabc"),
        ):
            wire = Wire()
            wire.send(GET.replace(b"/ ", b"/later ").replace(b"1.1", version))
            request = wire.resource.waiting.pop()
            for name, value in headers.items():
                request.setHeader(name, value)
            request.write(b"abc")
            request.processingFailed(Failure(RuntimeError("secret")))
            self.assertTrue(wire.transport.value().endswith(end), wire.transport.value())
            delimited = version == b"1.1" or bool(headers)
            self.assertEqual((wire.transport.disconnecting, wire.transport.aborted), (delimited, False))
            wire.pass_time(1)  # a reset, once all has arrived: nothing else shows that the response is incomplete
            self.assertEqual(wire.transport.aborted, not delimited)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_without_body(self) -> None:
        """204, 205 and 304 have no body, and no header fields about one."""
        for code, length in ((204, None), (205, "0"), (304, None)):
            wire = Wire()
            wire.send(GET.replace(b"/ ", b"/later ") + GET)
            request = wire.resource.waiting.pop()
            request.setResponseCode(code)
            request.setHeader(b"content-length", b"3")
            request.write(b"abc")
            request.write(b"")
            request.finish()
            answer, after = wire.answers()
            self.assertEqual((answer.status, answer.headers.get("content-length"), after.status), (code, length, 200))
            self.assertNotIn("transfer-encoding", answer.headers)

    def test_gone(self) -> None:
        """A resource is told that its client has disconnected."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later "))
        gone = wire.resource.waiting.pop().notifyFinish()
        wire.drop()
        self.failureResultOf(gone, ConnectionDone)
        self.assertEqual(wire.site.channels, set())

    def test_counted(self) -> None:
        """Requests are counted by outcome, rejected ones included, and requests in progress are a gauge."""
        begun = metrics.requests_now.at("http")
        before = begun.value
        answered = metrics.requests.at("http", "", "GET", "2xx")
        refused = metrics.requests.at("http", "", "other", "4xx")
        counts = answered.value, refused.value
        wire = Wire()
        wire.send(GET + GET.replace(b"/ ", b"/later "))
        self.assertEqual(begun.value, before + 1)
        wire.resource.waiting.pop().finish()
        wire.send(b"what?\r\n\r\n")
        self.assertEqual(begun.value, before)
        self.assertEqual((answered.value, refused.value), (counts[0] + 2, counts[1] + 1))


class RefusedTests(SynchronousTestCase):
    def refused(self, status: int, *data: bytes, **limits: Any) -> str:
        wire = Wire(**limits)
        wire.send(*data)
        (answer,) = wire.answers()
        self.assertEqual(answer.status, status)
        self.assertEqual(answer.headers["connection"], "close")
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(answer.error["code"], status)
        # Lingering close: the client may still be sending, and must see the response.
        self.assertTrue(wire.transport.half_closed)
        wire.send(b"more" * 100)
        self.assertEqual(wire.answers(), [])
        wire.pass_time(4)
        self.assertTrue(wire.transport.aborted)
        message: str = answer.error["message"]
        return message

    def test_each(self) -> None:
        """A malformed or oversized request gets a JSON error that says what is wrong, and its connection is closed."""
        self.refused(400, b"what?\r\n\r\n")
        self.refused(414, b"GET /", b"x" * 9000)
        self.refused(431, GET[:-2], b"A: " + b"x" * 17000)
        self.refused(431, GET[:-2], b"A: b\r\n" * 101)
        self.refused(400, b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"oops\r\n")
        self.refused(413, b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", b"x" * 10)
        chunked = b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n6\r\n"
        self.assertEqual("the body is longer than 10 bytes", self.refused(413, chunked, max_body=10))

    def test_after_others(self) -> None:
        """Requests before a malformed one are answered, and input after it is ignored."""
        wire = Wire()
        wire.send(GET + b"oops\r\n\r\n" + GET)
        self.assertEqual([answer.status for answer in wire.answers()], [200, 400])


class HalfClosedTests(SynchronousTestCase):
    """Tests for clients that close their sending side."""

    def test_answered(self) -> None:
        """Requests sent before the half-close are answered, at once or later; then the connection is closed."""
        for before, after in ((GET, b""), (b"", GET), (GET, GET), (b"", GET.replace(b"1.1", b"1.0")), (b"", LAST)):
            wire = Wire()
            wire.send(before + after.replace(b"/ ", b"/later "))
            wire.end_input()
            if after:
                self.assertFalse(wire.transport.disconnecting)
                wire.resource.waiting.pop().finish()
            answers = wire.answers()
            self.assertEqual([answer.status for answer in answers], [200] * (bool(before) + bool(after)))
            self.assertEqual(answers[-1].headers.get("connection"), "close" if after else None)
            self.assertTrue(wire.transport.disconnecting)

    def test_pipelined(self) -> None:
        """All pipelined requests are answered, even over several turns of the reactor; the last response closes."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later ") + GET * 100)
        wire.end_input()
        wire.end_input()  # a transport that is resumed reads the end of input again
        wire.resource.waiting.pop().finish()
        wire.clock.pump([0.0] * 20)
        answers = wire.answers()
        self.assertEqual(len(answers), 101)
        self.assertEqual([answer.headers.get("connection") for answer in answers], [None] * 100 + ["close"])
        self.assertTrue(wire.transport.disconnecting)

    def test_not_reading(self) -> None:
        """Requests of a client that does not read are answered once it reads."""
        wire = Wire()
        wire.channel.pauseProducing()
        wire.send(GET * 2)
        wire.end_input()
        self.assertFalse(wire.transport.disconnecting)
        wire.channel.resumeProducing()
        self.assertEqual(len(wire.answers()), 2)
        self.assertTrue(wire.transport.disconnecting)

    def test_incomplete(self) -> None:
        """An incomplete request is rejected; a client that sent none is closed without a response."""
        put = b"PUT / HTTP/1.1\r\nHost: x\r\n"
        for data in (
            b"G",
            GET[:-1],
            put + b"Content-Length: 3\r\n\r\n",
            put + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\nab",
            put + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        ):
            wire = Wire()
            wire.send(data)
            wire.end_input()
            self.assertEqual([answer.status for answer in wire.answers()], [400], data)
            self.assertTrue(wire.transport.disconnecting)
        for data in (b"", b"\r", b"\r\n"):
            wire = Wire()
            wire.send(data)
            wire.end_input()
            self.assertEqual(wire.answers(), [])
            self.assertTrue(wire.transport.disconnecting)

    def test_refused(self) -> None:
        """A rejected client that has closed its sending side is not lingered for."""
        wire = Wire()
        wire.send(b"what?\r\n\r\n")
        self.assertFalse(wire.transport.disconnecting)
        wire.end_input()
        self.assertTrue(wire.transport.disconnecting)

    def test_inquiry(self) -> None:
        """A client that waits gets one interim response, so that one that has gone resets the connection."""
        for data, inquiries in ((GET, 1), (GET.replace(b"1.1", b"1.0"), 0)):
            wire = Wire()
            wire.send(data.replace(b"/ ", b"/later "))
            wire.pass_time(5)
            wire.end_input()
            wire.pass_time(1)
            self.assertEqual(wire.answers(), [])
            wire.pass_time(10)
            self.assertEqual([answer.status for answer in wire.answers()], [100] * inquiries)
            wire.resource.waiting.pop().finish()
            self.assertEqual([answer.status for answer in wire.answers()], [200])

    def test_inquiry_of_a_reader(self) -> None:
        """No interim response is sent once the final one has begun."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later "))
        wire.resource.waiting[0].write(b"abc")
        wire.end_input()
        wire.pass_time(10)
        wire.resource.waiting[0].finish()
        self.assertEqual([answer.body for answer in wire.answers()], [b"abc"])


class LateTests(SynchronousTestCase):
    def test_head(self) -> None:
        """A head must be complete in time, however its bytes arrive."""
        wire = Wire(head_timeout=10)
        for byte in GET[:11]:
            wire.send(bytes([byte]))
            wire.pass_time(1)
        (answer,) = wire.answers()
        self.assertEqual(answer.status, 408)
        self.assertIn("10 s", json.loads(answer.body)["error"]["message"])

    def test_silent(self) -> None:
        """A connection without a request is closed without a response."""
        wire = Wire(head_timeout=10)
        wire.pass_time(9)
        self.assertFalse(wire.transport.disconnecting)
        wire.pass_time(2)
        self.assertEqual(wire.answers(), [])
        self.assertTrue(wire.transport.disconnecting)

    def test_idle(self) -> None:
        """Between requests a connection may be idle for idle_timeout."""
        wire = Wire(head_timeout=10, idle_timeout=100)
        wire.send(GET)
        wire.pass_time(99)
        wire.send(GET)
        self.assertEqual(len(wire.answers()), 2)
        wire.pass_time(101)
        self.assertTrue(wire.transport.disconnecting)
        self.assertEqual(wire.answers(), [])

    def test_never(self) -> None:
        """Without an idle timeout an idle connection is never closed."""
        wire = Wire(idle_timeout=0)
        wire.send(GET)
        wire.pass_time(2000)
        self.assertFalse(wire.transport.disconnecting)

    def body(self, pieces: Sequence[bytes], every: int, **limits: Any) -> Wire:
        wire = Wire(**limits)
        wire.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        for piece in pieces:
            wire.send(piece)
            wire.pass_time(every)
        return wire

    def test_body(self) -> None:
        """A body must arrive at a minimum rate."""
        late = self.body([b"x"] * 20, 1, body_timeout=10, body_rate=100)
        self.assertEqual([answer.status for answer in late.answers()], [408])
        steady = self.body([b"x" * 50] * 20, 1, body_timeout=10, body_rate=100)
        self.assertEqual([answer.status for answer in steady.answers()], [200])

    def test_stalled_body(self) -> None:
        """A body that stalls is rejected after idle_timeout, even if it was fast before."""
        wire = self.body([b"x" * 999], 0, body_timeout=10, body_rate=1, idle_timeout=20)
        wire.pass_time(21)
        self.assertEqual([answer.status for answer in wire.answers()], [408])

    def test_answering(self) -> None:
        """There is no deadline for the response."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later "))
        wire.pass_time(2000)
        wire.resource.waiting.pop().finish()
        self.assertEqual(len(wire.answers()), 1)

    def test_not_reading(self) -> None:
        """The connection of a client that does not read its response is aborted."""
        wire = Wire(idle_timeout=100)
        wire.send(GET.replace(b"/ ", b"/later "))
        wire.channel.pauseProducing()
        wire.pass_time(50)
        wire.channel.resumeProducing()
        wire.channel.pauseProducing()
        wire.pass_time(99)
        self.assertFalse(wire.transport.aborted)
        wire.pass_time(2)
        self.assertTrue(wire.transport.aborted)

    def test_not_reading_the_end(self) -> None:
        """The connection of a client that does not read the rest of its last response is aborted."""
        wire = Wire()
        wire.send(LAST)
        self.assertTrue(wire.transport.disconnecting)
        wire.pass_time(61)
        self.assertTrue(wire.transport.aborted)

    def test_watch_ends(self) -> None:
        """No timer is left when all connections are closed."""
        wire = Wire()
        wire.drop()
        wire.pass_time(2)
        self.assertEqual(wire.clock.getDelayedCalls(), [])


class DrainTests(SynchronousTestCase):
    def test_under_way(self) -> None:
        """A draining connection finishes the request in progress, and takes no other."""
        wire = Wire()
        wire.send(GET.replace(b"/ ", b"/later ") + GET)
        wire.channel.drain()
        self.assertFalse(wire.transport.disconnecting)
        wire.resource.waiting.pop().finish()
        self.assertEqual(len(wire.answers()), 1)
        self.assertTrue(wire.transport.disconnecting)

    def test_idle(self) -> None:
        """A draining idle connection answers a request that arrives within a second, and is closed then."""
        asking, silent = Wire(), Wire()
        for wire in (asking, silent):
            wire.channel.drain()
            self.assertFalse(wire.transport.disconnecting)
        asking.send(GET)
        self.assertEqual(asking.answers()[0].headers["connection"], "close")
        self.assertTrue(asking.transport.disconnecting)
        silent.pass_time(1)
        self.assertTrue(silent.transport.disconnecting)
