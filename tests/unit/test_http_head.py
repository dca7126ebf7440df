"""Heads of requests: what is read, and what is refused."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.head import Head, read_head, see_partial
from novasvc.http.limits import Limits
from novasvc.http.refusal import RefusedError

LIMITS = Limits(max_url_len=100, max_header_line=200, max_head=1000, max_headers=10)


def read(*lines: bytes) -> Head:
    return read_head(b"".join(line + b"\r\n" for line in lines), LIMITS)


class HeadTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """A head is taken apart: path and query, names in lower case, values without the blanks around them."""
        head = read(b"GET /a%20b?c=d?e HTTP/1.1", b"Host: x:1", b"X-A:  b c \t", b"x-empty:")
        self.assertEqual((head.method, head.path, head.query), (b"GET", b"/a%20b", b"c=d?e"))
        self.assertEqual(head.headers, [(b"host", b"x:1"), (b"x-a", b"b c"), (b"x-empty", b"")])
        self.assertEqual((head.length, head.last, head.expects), (0, False, False))

    def test_body(self) -> None:
        """The length of the body is what one of two headers says."""
        self.assertEqual(read(b"PUT / HTTP/1.1", b"Host: x", b"Content-Length: 12").length, 12)
        self.assertIsNone(read(b"PUT / HTTP/1.1", b"Host: x", b"Transfer-Encoding: Chunked").length)
        self.assertEqual(read(b"PUT / HTTP/1.0", b"Content-Length: 12").length, 12)

    def test_last(self) -> None:
        """A connection ends with a request that says so, and with one of HTTP/1.0."""
        self.assertTrue(read(b"GET / HTTP/1.1", b"Host: x", b"Connection: te, Close").last)
        self.assertTrue(read(b"GET / HTTP/1.0").last)
        self.assertFalse(read(b"GET / HTTP/1.1", b"Host: x", b"Connection: keep-alive").last)

    def test_expects(self) -> None:
        """A client that waits for 100 Continue is known, unless it has nothing to send, or speaks HTTP/1.0."""
        expect = b"Expect: 100-continue"
        self.assertTrue(read(b"PUT / HTTP/1.1", b"Host: x", b"Content-Length: 1", expect).expects)
        self.assertFalse(read(b"PUT / HTTP/1.1", b"Host: x", expect).expects)
        self.assertFalse(read(b"PUT / HTTP/1.0", b"Content-Length: 1", expect).expects)

    def test_other_targets(self) -> None:
        """A whole URL is read as its path, and its host is that of the request; OPTIONS may ask the server itself."""
        head = read(b"GET http://there:80?x=1 HTTP/1.1", b"Host: here")
        self.assertEqual((head.path, head.query), (b"/", b"x=1"))
        self.assertEqual(head.headers, [(b"host", b"there:80")])
        self.assertEqual(read(b"OPTIONS * HTTP/1.1", b"Host: x").path, b"*")

    def refused(self, status: int, *lines: bytes) -> str:
        error = self.assertRaises(RefusedError, read, *lines)
        self.assertEqual(error.status, status, str(error))
        return error.message

    def test_request_line(self) -> None:
        """What is no request line is refused."""
        for line in (
            b"",
            b"GET",
            b"GET /",
            b"GET  / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b" GET / HTTP/1.1",
            b"GET /a b HTTP/1.1",
            b"GET\t/ HTTP/1.1",
            b"GET / http/1.1",
            b"GET / HTTP/11",
            b"G(T / HTTP/1.1",
            b"GET /\x00 HTTP/1.1",
            b"GET x HTTP/1.1",
            b"GET * HTTP/1.1",
            b"CONNECT x:443 HTTP/1.1",
            b"GET http://user@x/ HTTP/1.1",
            b"GET ftp://x/ HTTP/1.1",
        ):
            self.refused(400, line, b"Host: x")
        self.refused(505, b"GET / HTTP/2.0", b"Host: x")
        self.assertIn("TLS", self.refused(400, b"\x16\x03\x01\x02\x00\x01\x00\x01"))

    def test_headers(self) -> None:
        """What is no header, or could be read in two ways, is refused."""
        for line in (
            b"no colon",
            b": no name",
            b"blank : before the colon",
            b" folded: x",
            b"\tfolded",
            b"a\x00b: x",
            b"A: \x00",
            b"A: \x0b",
            b"A: \x7f",
            b"B\xe4d: x",
            b"A: bare\nB: x",
            b"A: bare\rB: x",
            b"Host: y",
            b"Content-Length: 1, 1",
            b"Content-Length: +1",
            b"Content-Length: -1",
            b"Content-Length: 0x1",
            b"Content-Length: 1_0",
            b"Content-Length:",
            b"Content-Length: " + b"9" * 30,
        ):
            self.refused(400, b"GET / HTTP/1.1", b"Host: x", line)
        self.refused(400, b"GET / HTTP/1.1", b"Host: a/b")
        self.refused(400, b"GET / HTTP/1.1", b"Accept: x")
        self.refused(400, b"PUT / HTTP/1.1", b"Host: x", b"Content-Length: 1", b"Content-Length: 1")
        self.refused(400, b"PUT / HTTP/1.1", b"Host: x", b"Content-Length: 1", b"Transfer-Encoding: chunked")
        self.refused(400, b"PUT / HTTP/1.0", b"Transfer-Encoding: chunked")
        self.refused(501, b"PUT / HTTP/1.1", b"Host: x", b"Transfer-Encoding: gzip, chunked")
        self.refused(501, b"PUT / HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")
        self.refused(417, b"PUT / HTTP/1.1", b"Host: x", b"Expect: wonders")

    def test_where(self) -> None:
        """The message says which line is wrong."""
        self.assertIn("header line 2", self.refused(400, b"GET / HTTP/1.1", b"Host: x", b"oops"))

    def test_limits(self) -> None:
        """What is too long or too much is refused, with the limit."""
        self.assertIn("100 bytes", self.refused(414, b"GET /" + b"a" * 100 + b" HTTP/1.1", b"Host: x"))
        self.assertIn("100 bytes", self.refused(414, b"G" * 300))
        self.assertIn("200 bytes", self.refused(431, b"GET / HTTP/1.1", b"Host: x", b"A: " + b"b" * 198))
        self.assertIn("10 header", self.refused(431, b"GET / HTTP/1.1", *[b"A: b"] * 11))
        self.assertIn("1000 bytes", self.refused(431, b"GET / HTTP/1.1", *[b"A: " + b"b" * 190] * 6))
        read(b"GET /" + b"a" * 99 + b" HTTP/1.1", b"Host: x", b"A: " + b"b" * 197)

    def test_partial(self) -> None:
        """What cannot become a head any more is refused before it is complete."""
        for text in (b"GET /", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nHost: x\r\n\r", b""):
            see_partial(text, LIMITS)
        for status, text in (
            (414, b"GET /" + b"a" * 200),
            (431, b"GET / HTTP/1.1\r\nA: " + b"b" * 200),
            (431, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 11),
            (431, b"GET / HTTP/1.1\r\n" + (b"A: " + b"b" * 190 + b"\r\n") * 6),
            (400, b"GET / HTTP/1.1\nHost: x\n\n"),
            (400, b"\x16\x03\x01\x00\xa5\x01\x00\n"),
        ):
            self.assertEqual(self.assertRaises(RefusedError, see_partial, text, LIMITS).status, status, text)

    @given(st.binary(max_size=300))
    def test_anything(self, text: bytes) -> None:
        """Whatever comes is read or refused."""
        for data in (text + b"\r\n", b"GET / HTTP/1.1\r\n" + text + b"\r\n"):
            try:
                read_head(data, LIMITS)
            except RefusedError as error:
                self.assertIn(error.status, {400, 414, 417, 431, 501, 505})
