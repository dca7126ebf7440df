"""HTTP errors of the server itself: what it rejects before any application sees it, and the responses to that."""

import json
from http import HTTPStatus

import attrs

FAILED = "the request failed on this server, and its log says why"
"""The message of a 500: the reason is for the log only."""


@attrs.define
class HTTPError(Exception):
    """A request that the server rejects; it responds with the error and closes the connection.

    :param status: 400 to 599.
    :param message: for the client: what is wrong, and which limit applies.
    """

    status: int
    message: str

    def __str__(self) -> str:
        return f"{self.status} {reason_phrase(self.status)}: {self.message}"


def reason_phrase(status: int) -> str:
    """Return the reason phrase of a status (RFC 9110, 15)."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def error_body(status: int, message: str) -> bytes:
    """Return the JSON body of an error response: {"error": {"code", "title", "message"}}."""
    return json.dumps({"error": {"code": status, "title": reason_phrase(status), "message": message}}).encode()


def error_head(status: int, length: int, date: bytes) -> bytes:
    """Return the head of an error response on a connection that is then closed.

    :param length: of the body, in bytes.
    :param date: value of the Date header.
    """
    return (
        b"HTTP/1.1 %d %b\r\nDate: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ) % (status, reason_phrase(status).encode(), date, length)
