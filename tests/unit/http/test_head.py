"""Tests for novasvc.http.head."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.errors import HTTPError
from novasvc.http.head import Head, PartialHead, read_head
from novasvc.http.limits import Limits

LIMITS = Limits(max_url_len=100, max_header_line=200, max_head=1000, max_headers=10)


def read(*lines: bytes) -> Head:
    return read_head(b"".join(line + b"\r\n" for line in lines), LIMITS)


class HeadTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """A head is parsed: path and query, names in lower case, values without whitespace around them."""
        head = read(b"GET /a%20b?c=d?e HTTP/1.1", b"Host: x:1", b"X-A:  b c \t", b"x-empty:")
        self.assertEqual((head.method, head.path, head.query), (b"GET", b"/a%20b", b"c=d?e"))
        self.assertEqual(head.headers, [(b"host", b"x:1"), (b"x-a", b"b c"), (b"x-empty", b"")])
        self.assertEqual((head.length, head.last, head.expects), (0, False, False))

    def test_body(self) -> None:
        """Content-Length or Transfer-Encoding says how long the body is."""
        self.assertEqual(read(b"PUT / HTTP/1.1", b"Host: x", b"Content-Length: 12").length, 12)
        self.assertIsNone(read(b"PUT / HTTP/1.1", b"Host: x", b"Transfer-Encoding: Chunked").length)
        self.assertEqual(read(b"PUT / HTTP/1.0", b"Content-Length: 12").length, 12)

    def test_last(self) -> None:
        """Connection: close, or HTTP/1.0, ends the connection after the request."""
        self.assertTrue(read(b"GET / HTTP/1.1", b"Host: x", b"Connection: te, Close").last)
        self.assertTrue(read(b"GET / HTTP/1.0").last)
        self.assertFalse(read(b"GET / HTTP/1.1", b"Host: x", b"Connection: keep-alive").last)

    def test_expects(self) -> None:
        """An Expect header counts unless the body is empty, or the client uses HTTP/1.0."""
        expect = b"Expect: 100-continue"
        self.assertTrue(read(b"PUT / HTTP/1.1", b"Host: x", b"Content-Length: 1", expect).expects)
        self.assertFalse(read(b"PUT / HTTP/1.1", b"Host: x", expect).expects)
        self.assertFalse(read(b"PUT / HTTP/1.0", b"Content-Length: 1", expect).expects)

    def test_other_targets(self) -> None:
        """Absolute form gives path and Host, and OPTIONS takes the asterisk form."""
        head = read(b"GET http://there:80?x=1 HTTP/1.1", b"Host: here")
        self.assertEqual((head.path, head.query), (b"/", b"x=1"))
        self.assertEqual(head.headers, [(b"host", b"there:80")])
        self.assertEqual(read(b"OPTIONS * HTTP/1.1", b"Host: x").path, b"*")

    def test_host_of_target(self) -> None:
        """The host of a target in absolute form replaces the Host header, in HTTP/1.0 as well."""
        head = read(b"GET HTTPS://there/ HTTP/1.0", b"X-A: b")
        self.assertEqual(head.headers, [(b"host", b"there"), (b"x-a", b"b")])
        self.assertEqual((head.scheme, head.path), (b"https", b"/"))
        self.assertEqual(read(b"GET / HTTP/1.0").scheme, b"")

    def test_target_without_host(self) -> None:
        """HTTP/1.1 needs a Host with any form of target; HTTP/1.0 does not (RFC 9112, 3.2 and 3.2.2)."""
        for target in (b"/", b"http://there/", b"*"):
            self.assertIn("one Host header", self.refused(400, b"OPTIONS " + target + b" HTTP/1.1"))
            self.assertIn("one Host header", self.refused(400, b"OPTIONS " + target + b" HTTP/1.0", *[b"Host: x"] * 2))
            self.assertEqual(
                dict(read(b"OPTIONS " + target + b" HTTP/1.0").headers).get(b"host"),
                b"there" if target.startswith(b"http") else None,
            )

    def test_fragment(self) -> None:
        """A target with a fragment is rejected."""
        for target in (b"/a#b", b"/#", b"#", b"/?a#b", b"http://x/#y", b"http://x#y", b"*#"):
            self.assertIn("contains a fragment ('#')", self.refused(400, b"GET " + target + b" HTTP/1.1", b"Host: x"))
        self.assertEqual(read(b"G#T /%23 HTTP/1.1", b"Host: x").path, b"/%23")

    def test_hosts(self) -> None:
        """A host is a name or an address with an optional port, in the Host header and in absolute form."""
        good = [
            b"x",
            b"x:",
            b"x:0",
            b"x:65535",
            b"127.0.0.1:80",
            b"a-b.c_d~e%20f",
            b"[::1]",
            b"[::1]:8774",
            b"[::ffff:10.0.0.1]:80",
        ]
        bad = [
            b":80",
            b"a:b",
            b"a:b:c",
            b"a:1:2",
            b"a:-1",
            b"a:65536",
            b"a:99999",
            b"a:123456",
            b"a b",
            b"user@a",
            b"a@b:80",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a\\b",
            b"a%2",
            b"a%zz",
            b"\xe4",
            b"::1",
            b"[",
            b"[]",
            b"[::1",
            b"::1]",
            b"[::1]x",
            b"[::1]:x",
            b"[1::2::3]",
            b"[fe80::1%25eth0]",
            b"[v1.x]",
            b"[127.0.0.1]",
        ]
        for host in good:
            read(b"GET / HTTP/1.1", b"Host: " + host)
            head = read(b"GET http://" + host + b"/ HTTP/1.1", b"Host: other")
            self.assertEqual(head.headers, [(b"host", host)])
        for host in bad:
            self.refused(400, b"GET / HTTP/1.1", b"Host: " + host)
            if not {*b"/?"} & {*host}:  # the host of a URL ends there
                self.refused(400, b"GET http://" + host + b"/ HTTP/1.1", b"Host: x")
        read(b"GET / HTTP/1.1", b"Host:")
        self.refused(400, b"GET http:/// HTTP/1.1", b"Host: x")
        self.refused(400, b"GET http://x/ HTTP/1.1", b"Host: a:b:c")
        self.refused(400, b"GET http://x/ HTTP/1.1")

    def refused(self, status: int, *lines: bytes) -> str:
        error = self.assertRaises(HTTPError, read, *lines)
        self.assertEqual(error.status, status, str(error))
        return error.message

    def test_request_line(self) -> None:
        """Malformed request lines are rejected."""
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
            b"GET x:443 HTTP/1.1",
            b"GET ftp://x/ HTTP/1.1",
        ):
            self.refused(400, line, b"Host: x")
        for line in (b"CONNECT x:443 HTTP/1.1", b"CONNECT / HTTP/1.1"):
            self.assertIn("proxy", self.refused(501, line, b"Host: x"))
        self.refused(505, b"GET / HTTP/2.0", b"Host: x")
        self.assertIn("TLS", self.refused(400, b"\x16\x03\x01\x02\x00\x01\x00\x01"))

    def test_headers(self) -> None:
        """Malformed and ambiguous header lines are rejected."""
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
        """The message has the number of the malformed line."""
        self.assertIn("header line 2", self.refused(400, b"GET / HTTP/1.1", b"Host: x", b"oops"))

    def test_limits(self) -> None:
        """A request that exceeds a limit is rejected with the limit."""
        self.assertIn("100 bytes", self.refused(414, b"GET /" + b"a" * 100 + b" HTTP/1.1", b"Host: x"))
        self.assertIn("100 bytes", self.refused(414, b"G" * 300))
        self.assertIn("200 bytes", self.refused(431, b"GET / HTTP/1.1", b"Host: x", b"A: " + b"b" * 198))
        self.assertIn("10 header", self.refused(431, b"GET / HTTP/1.1", *[b"A: b"] * 11))
        self.assertIn("1000 bytes", self.refused(431, b"GET / HTTP/1.1", *[b"A: " + b"b" * 190] * 6))
        read(b"GET /" + b"a" * 99 + b" HTTP/1.1", b"Host: x", b"A: " + b"b" * 197)

    def test_partial(self) -> None:
        """Input that cannot become a valid head is rejected before it is complete."""
        for text in (b"GET /", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nHost: x\r\n\r", b""):
            PartialHead(LIMITS).check(text)
        for status, text in (
            (414, b"GET /" + b"a" * 200),
            (431, b"GET / HTTP/1.1\r\nA: " + b"b" * 200),
            (431, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 11),
            (431, b"GET / HTTP/1.1\r\n" + (b"A: " + b"b" * 190 + b"\r\n") * 6),
            (400, b"GET / HTTP/1.1\nHost: x\n\n"),
            (400, b"\x16\x03\x01\x00\xa5\x01\x00\n"),
            (400, b"\r\nGET"),
        ):
            self.assertEqual(self.assertRaises(HTTPError, PartialHead(LIMITS).check, text).status, status, text)

    def test_checked_once(self) -> None:
        """What has arrived is not checked again with what follows."""
        for begin in (b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            partial = PartialHead(LIMITS)
            partial.check(begin)
            self.assertEqual(partial.checked, len(begin))
            partial.check(b"\n" * len(begin) + b"A: b\r\n")
            self.assertEqual(partial.checked, len(begin) + 6)

    @given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b"A: b", b"a" * 150, b"GET / HTTP/1.1\r\n"])))
    def test_in_pieces(self, pieces: list[bytes]) -> None:
        """A head that arrives in pieces is rejected at the same byte, and with the same error, as one that is whole."""
        partial, text = PartialHead(LIMITS), b""
        for piece in pieces:
            text += piece
            if b"\r\n\r\n" in text:
                break
            found = [self.reason(each, text) for each in (partial, PartialHead(LIMITS))]
            self.assertEqual(found[0], found[1], text)
            if found[0]:
                break

    def reason(self, partial: PartialHead, text: bytes) -> str:
        try:
            partial.check(text)
        except HTTPError as error:
            return error.message
        return ""

    @given(st.binary(max_size=300))
    def test_anything(self, text: bytes) -> None:
        """Any input is parsed or rejected with an HTTPError."""
        for data in (text + b"\r\n", b"GET / HTTP/1.1\r\n" + text + b"\r\n"):
            try:
                read_head(data, LIMITS)
            except HTTPError as error:
                self.assertIn(error.status, {400, 414, 417, 431, 501, 505})
