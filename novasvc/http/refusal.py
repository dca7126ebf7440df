"""Requests that a server does not take, and how it says so."""

import json
from http import HTTPStatus

import attrs


@attrs.define
class RefusedError(Exception):
    """A request that is not taken; its connection is closed.

    :param status: of the answer, 400 to 599.
    :param message: what is wrong, and the limit, for the client.
    """

    status: int
    message: str

    def __str__(self) -> str:
        return f"{self.status} {title(self.status)}: {self.message}"


def title(status: int) -> str:
    """Return the words that belong to a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def error_body(status: int, message: str) -> bytes:
    """Return the JSON that answers of errors carry: {"error": {"code", "title", "message"}}."""
    return json.dumps({"error": {"code": status, "title": title(status), "message": message}}).encode()


def error_head(status: int, length: int, date: bytes) -> bytes:
    """Return status line and headers for such a body, on a connection that closes then.

    :param length: of the body, in bytes.
    :param date: for the Date header.
    """
    return (
        b"HTTP/1.1 %d %b\r\nDate: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ) % (status, title(status).encode(), date, length)
