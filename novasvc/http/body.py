"""The body of a request: taken in within limits, kept in memory or in a temporary file."""

import re
import tempfile
from contextlib import suppress
from io import BytesIO
from typing import IO

from novasvc.http.head import TOKEN, see_trailer
from novasvc.http.limits import Limits
from novasvc.http.refusal import RefusedError

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
# RFC 9112, 7.1. It has recipients pass over blanks around ";" and "="; other servers refuse them, and so do we: who
# reads a size up to its first odd octet and who reads it up to the end of the line are not to meet.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})((?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*)\r\n")
_BREAK = b"\r\n"
_LONGEST_LINE = 1024
"""Bytes of the line before a chunk."""
_MOST_EXTENSIONS = 16384
"""Bytes of the chunk extensions of a body; they are passed over."""
_LONGEST_TRAILER = 16384
"""Bytes after the last chunk; they are passed over."""


class Body:
    """A body on its way.

    :param length: its bytes; None if it comes in chunks.
    :raises RefusedError: it is longer than may be.
    """

    def __init__(self, length: int | None, limits: Limits) -> None:
        self._limits = limits
        self.received = 0
        self.file: IO[bytes] = BytesIO()
        self._in_memory = True
        self._left = length or 0
        self._chunked = length is None
        self._step = "size"
        self._extensions = self._trailer = 0
        if length is not None:
            self._see_size(length)

    def take(self, data: bytes) -> tuple[bool, bytes]:
        """Take what has come.

        :return: whether the body is complete, and what is left: of the next request, or to come again with more.
        :raises RefusedError: it is malformed, or longer than may be, or cannot be kept.
        """
        if self._chunked:
            return self._take_chunks(data)
        part = data[: self._left]
        self._left -= len(part)
        self._keep(part)
        return self._left == 0, data[len(part) :]

    def close(self) -> None:
        """Forget it."""
        with suppress(OSError):  # what could not be written is not to be
            self.file.close()

    def _take_chunks(self, data: bytes) -> tuple[bool, bytes]:
        at = 0
        while at < len(data):
            if self._step == "data":
                part = data[at : at + self._left]
                self._keep(part)
                at += len(part)
                self._left -= len(part)
                if not self._left:
                    self._step = "break"
                continue
            if self._step == "break":
                found = data[at : at + 2]
                if not _BREAK.startswith(found):
                    raise RefusedError(400, "a chunk is longer than it says")
                if found != _BREAK:
                    break
                at += 2
                self._step = "size"
                continue
            longest = _LONGEST_LINE if self._step == "size" else _LONGEST_TRAILER
            end = data.find(b"\n", at, at + longest)
            if end < 0:
                if len(data) - at >= longest:
                    raise self._too_long()
                break
            line = data[at : end + 1]
            at = end + 1
            if self._see_line(line):
                return True, data[at:]
        return False, data[at:]

    def _see_line(self, line: bytes) -> bool:
        """Read a line before a chunk, or after the last one; return whether it is the last of all."""
        if not line.endswith(_BREAK):
            raise RefusedError(400, "lines between chunks have to end in carriage return and line feed")
        if self._step == "size":
            found = _CHUNK_LINE.fullmatch(line)
            if found is None:
                raise RefusedError(400, "a chunk does not begin with its size, a hexadecimal number, and extensions")
            self._extensions += len(found[2])
            if self._extensions > _MOST_EXTENSIONS:
                raise self._too_long()
            self._left = int(found[1], 16)
            self._see_size(self.received + self._left)
            self._step = "data" if self._left else "trailer"
        elif line == _BREAK:
            return True
        else:
            self._trailer += len(line)
            if self._trailer > _LONGEST_TRAILER:
                raise self._too_long()
            see_trailer(line)
        return False

    def _too_long(self) -> RefusedError:
        if self._step == "trailer":
            return RefusedError(431, f"the trailer section is longer than {_LONGEST_TRAILER} bytes")
        if self._extensions > _MOST_EXTENSIONS:
            return RefusedError(400, f"the chunk extensions are longer than {_MOST_EXTENSIONS} bytes together")
        return RefusedError(400, f"a line between chunks is longer than {_LONGEST_LINE} bytes")

    def _see_size(self, size: int) -> None:
        if self._limits.max_body and size > self._limits.max_body:
            raise RefusedError(413, f"the body is longer than {self._limits.max_body} bytes")

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
                self.file.flush()  # that there is no room is to be seen here, and not by who reads it
        except OSError as error:
            raise RefusedError(507, "there is no room for the body on this server") from error
