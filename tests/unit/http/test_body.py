"""Tests for novasvc.http.body."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.body import Body
from novasvc.http.errors import HTTPError
from novasvc.http.limits import Limits


def content(body: Body) -> bytes:
    body.file.seek(0)
    return body.file.read()


class BodyTests(SynchronousTestCase):
    def test_length(self) -> None:
        """A body ends at its length; the rest of the input is returned."""
        body = Body(5, Limits())
        self.assertEqual(body.take(b"abc"), (False, b""))
        self.assertEqual(body.take(b"deGET"), (True, b"GET"))
        self.assertEqual(content(body), b"abcde")

    def test_chunks(self) -> None:
        """Chunks are joined; extensions and trailer fields are ignored."""
        data = b'3;a;b=c;d="e;\\" =f"\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-A: \te\xe4\r\nX-B:\r\n\r\nGET'
        body = Body(None, Limits())
        self.assertEqual(body.take(data), (True, b"GET"))
        self.assertEqual(content(body), b"abc0123456789")

    @given(st.lists(st.integers(1, 70), max_size=20))
    def test_pieces(self, cuts: list[int]) -> None:
        """A chunked body may be split anywhere by the network."""
        data = b"3\r\nabc\r\n0a\r\n0123456789\r\n000\r\n\r\nNEXT"
        body = Body(None, Limits())
        rest, complete = b"", False
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            if complete:
                rest += data[start:end]
            else:
                complete, rest = body.take(rest + data[start:end])
        self.assertEqual((complete, rest, content(body)), (True, b"NEXT", b"abc0123456789"))

    def test_malformed(self) -> None:
        """Malformed chunks are rejected."""
        for data in (
            b"x\r\n",
            b"\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b"1 1\r\n",
            b"1\n",
            b"1\r\nab\r\n",
            b"1\r\na\n",
            b"1\r\naX",
            b"1\r\na\rX",
            b" 1\r\n",
            b"1 \r\n",
            b"1\t\r\n",
            b"0 \r\n",
            b"+1\r\n",
            b"1_0\r\n",
            b"1\r\r\n",
            b"f" * 17 + b"\r\n",
            b"1" * 2000,
            b"1;" + b"a" * 2000 + b"\r\n",
        ):
            self.refused(400, data)

    def refused(self, status: int, data: bytes) -> str:
        error = self.assertRaises(HTTPError, Body(None, Limits()).take, data)
        self.assertEqual(error.status, status, data)
        return error.message

    def test_extensions(self) -> None:
        """Chunk extensions are names with optional tokens or quoted strings, without whitespace."""
        for extension in (
            b";",
            b";;a",
            b";=a",
            b";a=",
            b";a b",
            b" ;a",
            b"; a",
            b";a =b",
            b";a= b",
            b";a=b ",
            b';a="b',
            b';a=b"',
            b';a="b"c',
            b';a="\x01"',
            b';a="\x7f"',
            b';a="b\r"',
            b';a="\\\r\n"',
            b";\x00",
            b";\xe4",
            b",a",
        ):
            self.refused(400, b"1" + extension + b"\r\na\r\n0\r\n\r\n")
        data = (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 17
        self.assertIn("extensions", self.refused(400, data))

    def test_trailers(self) -> None:
        """Trailer fields follow the grammar of header fields, and must not affect framing or routing."""
        for line in (
            b"junk",
            b"X: \x00",
            b"X: a\rb",
            b"X: \x7f",
            b" X: y",
            b"\tX",
            b"X : y",
            b": y",
            b"X\xe4: y",
            b"X: y\r\n folded",
            b"Content-Length: 5",
            b"transfer-encoding: chunked",
            b"Host: x",
            b"Connection: close",
        ):
            self.refused(400, b"0\r\n" + line + b"\r\n\r\n")
        self.refused(400, b"0\r\nX: y\n\r\n")
        self.refused(400, b"0\r\nX: y\r\n\n")
        self.refused(431, b"0\r\n" + b"A: bcdefgh\r\n" * 2000)
        self.refused(431, b"0\r\nA: " + b"b" * 20000)

    def test_too_long(self) -> None:
        """A body over the limit is rejected as soon as its length is known."""
        limits = Limits(max_body=10)
        self.assertIn("10 bytes", str(self.assertRaises(HTTPError, Body, 11, limits)))
        Body(10, limits)
        body = Body(None, limits)
        body.take(b"6\r\nabcdef\r\n")
        self.assertEqual(self.assertRaises(HTTPError, body.take, b"5\r\n").status, 413)
        Body(10**15, Limits(max_body=0))

    def test_spooled(self) -> None:
        """A large body is kept in a temporary file, which is deleted with it; a small one stays in memory."""
        folder = Path(self.mktemp())
        folder.mkdir()
        body = Body(100, Limits(spool=10, tempdir=folder))
        body.take(b"a" * 10)
        self.assertFalse(hasattr(body.file, "fileno") and not hasattr(body.file, "getvalue"))
        body.take(b"b" * 90)
        self.assertFalse(hasattr(body.file, "getvalue"))
        self.assertEqual(content(body), b"a" * 10 + b"b" * 90)
        body.close()

    def test_no_room(self) -> None:
        """A full disk is a 507."""
        body = Body(100, Limits(spool=10, tempdir=Path(self.mktemp())))
        self.assertEqual(self.assertRaises(HTTPError, body.take, b"a" * 11).status, 507)

    def test_full_disk(self) -> None:
        """A full disk is noticed at the first write, however small, and closing the body afterwards raises nothing."""
        self.patch(tempfile, "TemporaryFile", lambda dir: Path("/dev/full").open("wb"))  # noqa: A006, SIM115 - as it is
        for pieces in ([b"a" * 11], [b"a" * 10, b"b"]):
            body = Body(100, Limits(spool=10))
            for piece in pieces[:-1]:
                body.take(piece)
            self.assertEqual(self.assertRaises(HTTPError, body.take, pieces[-1]).status, 507)
            body.close()
