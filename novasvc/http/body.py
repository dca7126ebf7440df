"""The body of a request: received within limits, kept in memory or in a temporary file."""

import tempfile
from contextlib import suppress
from io import BytesIO
from typing import IO

from novasvc.http.errors import HTTPError
from novasvc.http.grammar import CHUNK_LINE
from novasvc.http.head import check_trailer_field
from novasvc.http.limits import Limits

_BREAK = b"\r\n"
_MAX_LINE = 1024
"""Bytes of a chunk-size line."""
_MAX_EXTENSIONS = 16384
"""Bytes of all chunk extensions of a body; they are ignored."""
_MAX_TRAILER = 16384
"""Bytes of the trailer section; its fields are ignored."""


class Body:
    """A body that is being received.

    :param length: bytes, from Content-Length; None if it is chunked.
    :raises HTTPError: it is longer than max_body.
    :ivar received: bytes of the body so far.
    :ivar file: the body so far; its position is its end.
    """

    # ``_step`` is the state of a chunked body:
    #
    #   size --chunk-size line--> data --all of the chunk--> break --CRLF--> size
    #   size --size 0--> trailer --empty line--> complete

    def __init__(self, length: int | None, limits: Limits) -> None:
        self._limits = limits
        self.received = 0
        self.file: IO[bytes] = BytesIO()
        self._in_memory = True
        self._remaining = length or 0
        self._chunked = length is None
        self._step = "size"
        self._extensions = self._trailer = 0
        if length is not None:
            self._check_size(length)

    def take(self, data: bytes) -> tuple[bool, bytes]:
        """Take input.

        :return: whether the body is complete, and the rest of the input: the start of the next request, or an
            incomplete line, which is to be passed again together with the input that follows.
        :raises HTTPError: it is malformed, exceeds a limit, or cannot be stored.
        """
        if self._chunked:
            return self._take_chunks(data)
        part = data[: self._remaining]
        self._remaining -= len(part)
        self._keep(part)
        return self._remaining == 0, data[len(part) :]

    def close(self) -> None:
        """Discard the body."""
        with suppress(OSError):  # closing flushes what could not be written before
            self.file.close()

    def _take_chunks(self, data: bytes) -> tuple[bool, bytes]:
        at = 0
        while at < len(data):
            if self._step == "data":
                part = data[at : at + self._remaining]
                self._keep(part)
                at += len(part)
                self._remaining -= len(part)
                if not self._remaining:
                    self._step = "break"
                continue
            if self._step == "break":
                found = data[at : at + 2]
                if not _BREAK.startswith(found):
                    raise HTTPError(400, "a chunk is longer than its size")
                if found != _BREAK:
                    break
                at += 2
                self._step = "size"
                continue
            # A line: bounded even while it is incomplete.
            longest = _MAX_LINE if self._step == "size" else _MAX_TRAILER
            end = data.find(b"\n", at, at + longest)
            if end < 0:
                if len(data) - at >= longest:
                    raise self._too_long()
                break
            line = data[at : end + 1]
            at = end + 1
            if self._read_line(line):
                return True, data[at:]
        return False, data[at:]

    def _read_line(self, line: bytes) -> bool:
        """Parse a chunk-size line, or a line of the trailer section; return whether the body ends with it."""
        if not line.endswith(_BREAK):
            raise HTTPError(400, "each line between chunks must end in CRLF")
        if self._step == "size":
            found = CHUNK_LINE.fullmatch(line)
            if found is None:
                raise HTTPError(400, "a chunk must begin with its size in hexadecimal, and optional extensions")
            self._extensions += len(found[2])
            if self._extensions > _MAX_EXTENSIONS:
                raise self._too_long()
            self._remaining = int(found[1], 16)
            self._check_size(self.received + self._remaining)
            self._step = "data" if self._remaining else "trailer"
        elif line == _BREAK:
            return True
        else:
            self._trailer += len(line)
            if self._trailer > _MAX_TRAILER:
                raise self._too_long()
            check_trailer_field(line)
        return False

    def _too_long(self) -> HTTPError:
        if self._step == "trailer":
            return HTTPError(431, f"the trailer section is longer than {_MAX_TRAILER} bytes")
        if self._extensions > _MAX_EXTENSIONS:
            return HTTPError(400, f"the chunk extensions are longer than {_MAX_EXTENSIONS} bytes in total")
        return HTTPError(400, f"a line between chunks is longer than {_MAX_LINE} bytes")

    def _check_size(self, size: int) -> None:
        if self._limits.max_body and size > self._limits.max_body:
            raise HTTPError(413, f"the body is longer than {self._limits.max_body} bytes")

    def _keep(self, data: bytes) -> None:
        self.received += len(data)
        try:
            if self._in_memory and self.received > self._limits.spool:
                self._in_memory = False
                kept = self.file
                self.file = tempfile.TemporaryFile(dir=self._limits.tempdir)  # noqa: SIM115 - closed with the request
                self.file.write(kept.getvalue())  # type: ignore[attr-defined]
            self.file.write(data)
            if not self._in_memory:
                self.file.flush()  # a full disk must fail here, and not in the application that reads the body
        except OSError as error:
            raise HTTPError(507, "this server has no disk space for the request body") from error
