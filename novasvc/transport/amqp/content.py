"""The properties of our messages: those that come with each call compiled, all others by the spec."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from novasvc.transport.amqp.codec import decode_properties, encode_properties

# content type, content encoding, headers (an empty table), delivery mode, priority; see docs/protocol.md.
_USUAL = b"\x10application/json\x05utf-8\x00\x00\x00\x00\x02\x00"
PLAIN = b"\xf8\x00" + _USUAL
"""The properties of a message that does not expire."""
_EXPIRING = b"\xf9\x00" + _USUAL
_EXPIRATION_AT = len(_EXPIRING) + 1
_TOO_MANY_DIGITS = 16
_LONGEST_TTL = 2**32 - 1
"""Milliseconds; the broker takes no more."""

DELIVERIES = "x-novasvc-deliveries"
"""Header of a message that was given back: how often it had been delivered."""
DEATHS = "x-novasvc-deaths"
"""Header of a message that was given back or held: processes that died holding it."""
EXPIRES_IN = "x-novasvc-expires-in"
"""Header of a message that is held: milliseconds that its sender still waited when it was sent."""
RUNNING = "_running_"
UNCLAIMED = "_unclaimed"
"""Parts of names of queues, see :func:`novasvc.transport.amqp.topology.declare_running_queues`."""
_DEAD_LETTERS = "x-death"
RETURNS = "x-delivery-count", "x-acquired-count"
"""Headers of a quorum queue's message: how often it came back; from RabbitMQ 4.0 on the larger one counts."""
PROBE = "x-novasvc-probe"
"""Header of a message that a listener sends to itself: the queue where it waits for it."""
_COMPRESSED = frozenset({"application/x-gzip", "application/zlib", "gzip", "zlib"})


class Properties(NamedTuple):
    """What we read of a message's properties.

    :param expires_in: seconds that it had when it was sent, or None.
    :param deliveries: how often it was delivered, as its headers say.
    :param compressed: its body is a zlib stream.
    :param deaths: processes that died holding it before it was sent, as its headers say.
    :param unclaimed: a process that held it did not claim it in time: the broker moved it from that process's
        queue to the one that it came from.
    :param returns: how often it came back to its quorum queue, as the broker says.
    :param probe: the queue of the listener that sent it to itself; None of all other messages.
    """

    expires_in: float | None = None
    deliveries: int = 0
    compressed: bool = False
    deaths: int = 0
    unclaimed: bool = False
    returns: int = 0
    probe: str | None = None


_NOTHING = Properties()


def write_properties(ttl: float | None, headers: Mapping[str, Any] | None = None) -> bytes:
    """Write flags and values.

    :param ttl: seconds after which the broker drops the message, or None.
    """
    if headers:
        values: dict[str, Any] = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "headers": headers,
            "delivery_mode": 2,
            "priority": 0,
        }
        if ttl is not None:
            values["expiration"] = str(max(1, int(min(ttl * 1000, _LONGEST_TTL))))
        return encode_properties(values)
    if ttl is None:
        return PLAIN
    expiration = b"%d" % max(1, int(min(ttl * 1000, _LONGEST_TTL)))
    return b"".join((_EXPIRING, bytes((len(expiration),)), expiration))


def read_properties(data: bytes) -> Properties:
    """Read flags and values.

    :raises CodecError: they are malformed.
    """
    if data == PLAIN:
        return _NOTHING
    digits = len(data) - _EXPIRATION_AT
    if 0 < digits < _TOO_MANY_DIGITS and data.startswith(_EXPIRING) and data[_EXPIRATION_AT - 1] == digits:
        expiration = data[_EXPIRATION_AT:]
        if expiration.isdigit():
            return Properties(int(expiration) / 1000)
    values = decode_properties(data)
    headers = values.get("headers") or {}
    expires_in = _seconds(str(values.get("expiration", "")).encode())
    if expires_in is None and EXPIRES_IN in headers:
        expires_in = _count(headers[EXPIRES_IN], _LONGEST_TTL) / 1000
    probe = headers.get(PROBE)
    return Properties(
        expires_in,
        _count(headers.get(DELIVERIES)),
        str(headers.get("compression")) in _COMPRESSED,
        _count(headers.get(DEATHS)),
        _unclaimed(headers.get(_DEAD_LETTERS)),
        max(_count(headers.get(name)) for name in RETURNS),
        probe if isinstance(probe, str) else None,
    )


def _unclaimed(dead_letters: object) -> bool:
    """Read what the broker writes on dead letters: the queues that they passed, and why they left them."""
    for entry in dead_letters if isinstance(dead_letters, list) else ():
        if isinstance(entry, dict) and entry.get("reason") == "expired":
            queue = str(entry.get("queue"))
            if RUNNING in queue and queue.endswith(UNCLAIMED):
                return True
    return False


def read_content(body: bytes | None, properties: bytes, limit: int) -> tuple[bytes, Properties]:
    """Return a message's body as its sender meant it, and what its properties say.

    :param body: None if it was over the limit.
    :param limit: bytes, for a body that has to be inflated.
    :raises ValueError: it cannot be read.
    """
    if body is None:
        raise ValueError(f"it is longer than {limit} bytes")
    if properties == PLAIN:
        return body, _NOTHING
    read = read_properties(properties)
    return (_inflate(body, limit) if read.compressed else body), read


def _inflate(body: bytes, limit: int) -> bytes:
    """Undo a peer's compression."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise ValueError("it says that it is compressed, and is not") from error
    if len(plain) > limit or not stream.eof:
        raise ValueError(f"uncompressed it is longer than {limit} bytes, or cut short")
    return plain


def _seconds(expiration: bytes) -> float | None:
    return int(expiration) / 1000 if expiration.isdigit() and len(expiration) < _TOO_MANY_DIGITS else None


def _count(value: object, limit: int = 2**31 - 1) -> int:
    return value if isinstance(value, int) and 0 < value <= limit else 0
