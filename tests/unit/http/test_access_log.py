"""Tests for novasvc.http.access_log."""

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http import AccessLog
from novasvc.http.access_log import loggable
from tests.support.http_rig import GET, Wire


class AccessLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lines: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if "access" in event:
                self.lines.append(str(event["line"]))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def test_form(self) -> None:
        """The default format is Nova's."""
        client = IPv4Address("TCP", "192.0.2.1", 1234)
        AccessLog().write(client, b"GET /v2.1 HTTP/1.1", 200, 3064, 0.25)
        self.assertEqual(self.lines, ['192.0.2.1 "GET /v2.1 HTTP/1.1" status: 200 len: 3064 time: 0.2500000'])

    def test_request_id(self) -> None:
        """A line carries the request id that the client was told, even if the response was delayed."""
        events: list[dict[str, object]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        wire = Wire(log=AccessLog())
        wire.send(GET.replace(b"/ ", b"/later "))
        (request,) = wire.channel.requests
        request.request_id = "req-1"
        request.finish()
        self.assertEqual([event["request_id"] for event in events if "access" in event], ["req-1"])

    def test_own_form(self) -> None:
        """The format can be configured; clients on a unix socket have no address."""
        AccessLog("%(client_ip)s:%(client_port)d [%(date_time)s]").write(UNIXAddress("/x"), b"", 0, 0, 0)
        self.assertRegex(self.lines[0], r"^unix::0 \[\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d\]$")

    def test_each(self) -> None:
        """Every request has a line: answered, rejected, or abandoned by its client."""
        wire = Wire(log=AccessLog("%(request_line)s %(status_code)d %(body_length)d"))
        wire.send(GET + GET.replace(b"/ ", b"/later "))
        wire.drop()
        wire = Wire(log=AccessLog("%(request_line)s %(status_code)d"), max_body=1)
        wire.send(b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        wire = Wire(log=AccessLog("%(request_line)s %(status_code)d"))
        wire.send(b"what?\r\n\r\n")
        wire = Wire(log=AccessLog("%(request_line)s %(status_code)d"))
        wire.send(b"GET /?token=t HTTP/1.1\r\n\r\n")
        self.assertEqual(
            self.lines,
            [
                "GET / HTTP/1.1 200 6",
                "GET /later HTTP/1.1 0 0",
                "PUT /x HTTP/1.1 413",
                "- 400",
                "GET /?token=*** HTTP/1.1 400",
            ],
        )

    def reason(self, *data: bytes, seconds: float = 0.0, **limits: Any) -> list[str]:
        """Return the log lines of a rejected request: its own, and that with the reason."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        try:
            wire = Wire(log=AccessLog("%(request_line)s"), **limits)
            for part in data:
                wire.send(part)
            wire.clock.pump([1.0] * int(seconds))
        finally:
            globalLogPublisher.removeObserver(events.append)
        return [str(formatEvent(event)) for event in events]

    def test_reasons(self) -> None:
        """A second line has the reason of a rejection: a malformed head, a large body, or a timeout."""
        for data, line, why in (
            ([b"what?\r\n\r\n"], "-", "400: the request line is not of the form METHOD TARGET"),
            ([b"GET / HTTP/1.1\r\n\r\n"], "GET / HTTP/1.1", "400: a request must have exactly one Host header"),
            ([b"GET / HTTP/1.1\r\n", b"A: " + b"x" * 20000], "GET / HTTP/1.1", "431: a header line is longer"),
            ([b"GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n"], "GET https://x/ HTTP/1.1", "421: "),
            ([b"GET http://u:pw@x/ HTTP/1.1\r\nHost: x\r\n\r\n"], "-", "400: the request target"),
            ([b"GET /", b"x" * 9000], "-", "414: the URL is longer"),
            ([b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"], "PUT / HTTP/1.1", "413: the body"),
        ):
            said = self.reason(*data)
            self.assertEqual((said[0], len(said)), (line, 2))
            self.assertTrue(said[1].startswith(f"192.168.1.1 rejected with {why}"), said)
            self.assertNotIn("pw", "".join(said))
        said = self.reason(b"GET / HTTP/1.1\r\n", seconds=40)
        self.assertEqual(said[0], "GET / HTTP/1.1")
        self.assertIn("rejected with 408: the request head was not complete within", said[1])

    def test_reason_is_bounded(self) -> None:
        """A reason is escaped and truncated."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        AccessLog().write_reason(IPv4Address("TCP", "h", 1), 400, 'a\r\n"b' + "x" * 9000)
        text = str(formatEvent(events[0]))
        self.assertTrue(text.startswith(r"h rejected with 400: a\x0d\x0a\x22bxx"), text)
        self.assertLess(len(text), 600)

    def test_injection(self) -> None:
        """Control characters and quotes of a request line are escaped, and a long line is truncated."""
        line = loggable(b'GET /"\x1b[31m\r\n\x85\xe2\x80\xa8\\ HTTP/1.1')
        self.assertEqual(line, r"GET /\x22\x1b[31m\x0d\x0a\x85\xe2\x80\xa8\x5c HTTP/1.1")
        self.assertLess(len(loggable(b"GET /" + b"x" * 9000)), 2100)

    def test_secrets(self) -> None:
        """Query values whose names look like secrets are masked, even if the name is percent-encoded."""
        self.assertEqual(
            loggable(b"GET /login?code=abc&x=1&API_Key=k&to%6ben=t&y HTTP/1.1"),
            "GET /login?code=***&x=1&API_Key=***&to%6ben=***&y HTTP/1.1",
        )
