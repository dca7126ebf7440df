"""What we accept, h11 and llhttp (of Node.js, with its lenient flags off) read in the same way."""

import contextlib  # trial would use a module's `suppress` for its own purpose
import re
from collections.abc import Sequence
from typing import Any

import attrs
import h11
import httptools
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.examples import examples
from tests.support.http_rig import Wire

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
"""Sent after each request: only a parser that found the end of that request reads this as the next one."""


@attrs.frozen
class Read:
    """A request as it was read.

    :param headers: name in lower case and value, without those of the trailer section.
    """

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    known: bool = attrs.field(default=True, eq=False)
    """Whether all parsers know it: llhttp has a list of methods, h11 rejects non-ASCII targets, and both HTTP/1.2."""


def read_by_us(data: bytes) -> list[Read]:
    """Return the requests that we accept."""
    wire = Wire()
    taken: list[Read] = []
    lines = data.split(b"\r\n")

    def render(request: Any) -> bytes:
        head = request.head
        # The host of a target in absolute form replaces Host; see HeadTests.test_host_of_target.
        names = [(name, value) for name, value in head.headers if not (head.scheme and name == b"host")]
        line = b"%b %b HTTP/1." % (head.method, head.target)
        known = head.method in METHODS and head.target.isascii() and (line + b"0" in lines or line + b"1" in lines)
        taken.append(Read(head.method, head.target, names, request.content.read(), known))
        return b""

    wire.resource.render = render  # type: ignore[method-assign]
    wire.send(data)
    wire.clock.pump([0.0] * 5)
    return taken


def read_by_h11(data: bytes) -> list[Read]:
    """Return the requests that h11 accepts."""
    taken: list[Read] = []
    while True:
        reader = h11.Connection(h11.SERVER)
        # h11 leaves it to its user to ignore an empty line there (RFC 9112, 2.2).
        reader.receive_data(data.removeprefix(b"\r\n"))
        try:
            head: Any = reader.next_event()
            body = b""
            while type(event := reader.next_event()) is h11.Data:
                body += bytes(event.data)
        except h11.RemoteProtocolError:
            return taken
        if type(head) is not h11.Request or type(event) is not h11.EndOfMessage:
            return taken
        headers = [(bytes(name), bytes(value)) for name, value in head.headers]
        taken.append(Read(bytes(head.method), bytes(head.target), headers, body))
        data = reader.trailing_data[0]


class Heard:
    """The callbacks of llhttp."""

    def __init__(self) -> None:
        self.taken: list[Read] = []
        self.parser: Any = None

    def on_message_begin(self) -> None:
        self.target = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.in_head = True

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.taken.append(Read(self.parser.get_method(), self.target, self.headers, self.body))


def read_by_llhttp(data: bytes) -> list[Read]:
    """Return the requests that llhttp accepts."""
    heard = Heard()
    heard.parser = httptools.HttpRequestParser(heard)
    with contextlib.suppress(httptools.HttpParserError):
        heard.parser.feed_data(data)
    return heard.taken


def without_hosts(read: Read, like: Read) -> Read:
    """Leave out the Host headers if the other request has none."""
    if any(name == b"host" for name, _ in like.headers):
        return read
    return attrs.evolve(read, headers=[field for field in read.headers if field[0] != b"host"])


# -- requests --------------------------------------------------------------------------------------

TOKEN = st.sampled_from([b"a", b"X-A", b"x_y", b"!#$%&'*+-.^_`|~", b"Accept"])
VALUES = st.sampled_from([b"", b"b", b"b c\td", b"\xe4", b'"q\\""', b"a, b;c=d"])
PADS = st.sampled_from([b"", b" ", b"\t ", b"  "])
METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"HEAD"]
TARGETS = st.sampled_from(
    [b"/", b"/a/b?c=d&e", b"/%20?%zz", b"/?", b"//x", b"/a:b@c;d,e", b"http://x/", b"http://x:80?a"]
)
HOSTS = st.sampled_from([b"x", b"x:80", b"[::1]:1", b"", b"10.0.0.1", b"a.b-c"])
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b';a="\\"";b'])


@st.composite
def fields(draw: st.DrawFn, most: int) -> list[tuple[bytes, bytes, bytes]]:
    """Make header fields: name, value, and the line."""
    made = []
    for name, value in draw(st.lists(st.tuples(TOKEN, VALUES), max_size=most)):
        before, after = draw(PADS), draw(PADS)
        made.append((name.lower(), value, name + b":" + before + value + after + b"\r\n"))
    return made


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Read]:
    """Make a valid request (RFC 9112), and what a parser has to read from it."""
    method, target = draw(st.sampled_from(METHODS)), draw(TARGETS)
    host = draw(HOSTS)
    head = [(b"host", host, b"Host: " + host + b"\r\n"), *draw(fields(3))]
    body = draw(st.binary(max_size=20))
    framing = draw(st.sampled_from(["none", "length", "chunks"]))
    if framing == "none":
        body, sent = b"", b""
    elif framing == "length":
        sent = body
        head.append((b"content-length", b"%d" % len(body), b"content-Length: %d\r\n" % len(body)))
    else:
        head.append((b"transfer-encoding", b"chunked", b"Transfer-Encoding: chunked\r\n"))
        sent = b"".join(
            b"%x%b\r\n%b\r\n" % (len(part), draw(EXTENSIONS), part) for part in (body[:3], body[3:]) if part
        )
        trailers = b"".join(line for _, _, line in draw(fields(2)))
        sent += draw(st.sampled_from([b"0", b"000"])) + draw(EXTENSIONS) + b"\r\n" + trailers + b"\r\n"
    head = draw(st.permutations(head))
    text = method + b" " + target + b" HTTP/1.1\r\n" + b"".join(line for _, _, line in head) + b"\r\n" + sent
    headers = [(name, value) for name, value, _ in head if not (target[:1] == b"h" and name == b"host")]
    return draw(st.sampled_from([b"", b"\r\n"])) + text, Read(method, target, headers, body)


BLANK = st.sampled_from([b" ", b"\t", b"\r", b"\n"])
ODD = st.sampled_from(
    [bytes([byte]) for byte in b'\r\n\0\t :;,#"\\0159aAfx%@[]/?*=+-_\x0b\x7f\x80\xff']
    + [
        b"\r\n",
        b"\r\n ",
        b"\n\n",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"chunked, ",
        b"HTTP/1.0",
    ]
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Make a request with a few octets inserted, replaced or removed."""
    data, _ = draw(requests())
    for _ in range(draw(st.integers(1, 3))):
        # Parsers differ at the boundaries of elements.
        edges = [at + after for at, octet in enumerate(data) if octet in b"\r\n :;=" for after in (0, 1)]
        at = draw(st.sampled_from(edges) if edges else st.just(0))
        put = draw(st.just(b"") | BLANK | ODD)
        data = data[:at] + put + data[at + draw(st.sampled_from([0, 0, 1, 2])) :]
    return data


TAB_AFTER_CODING = re.compile(rb"transfer-encoding:[^\r\n]*\t", re.IGNORECASE)


class OracleTests(SynchronousTestCase):
    """No proxy in front of us reads other requests than we do."""

    @given(requests())
    def test_accepted(self, made: tuple[bytes, Read]) -> None:
        """A valid request is accepted as it is, and so is the next one."""
        data, expected = made
        last = Read(b"GET", b"/next", [(b"host", b"next")], b"")
        self.assertEqual(read_by_us(data + NEXT), [expected, last])

    @settings(max_examples=examples(300))
    @given(spoilt())
    @example(b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a\rb\r\n\r\n")
    def test_same(self, data: bytes) -> None:
        """Whatever we accept, the other parsers accept as well, and read in the same way."""
        ours = read_by_us(data + NEXT)
        readers = {"h11": read_by_h11(data + NEXT), "llhttp": read_by_llhttp(data + NEXT)}
        if TAB_AFTER_CODING.search(data):
            del readers["llhttp"]  # It rejects a tab there, which is optional whitespace (RFC 9110, 5.6.3).
        for name, theirs in readers.items():
            for number, read in enumerate(ours):
                if not read.known:
                    break
                self.assertGreater(len(theirs), number, f"{name} refuses {data!r}, of which we take {read}")
                self.assertEqual(read, without_hosts(theirs[number], read), f"{name} reads {data!r} otherwise")
