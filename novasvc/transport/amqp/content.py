"""Message properties: those of every call precompiled, all others by the spec."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from novasvc.transport.amqp.codec import decode_properties, encode_properties

# content type, content encoding, headers (an empty table), delivery mode, priority; see docs/protocol.md.
_USUAL = b"\x10application/json\x05utf-8\x00\x00\x00\x00\x02\x00"
PLAIN = b"\xf8\x00" + _USUAL
"""The encoded properties of a message without expiration."""
_EXPIRING = b"\xf9\x00" + _USUAL
_EXPIRATION_AT = len(_EXPIRING) + 1
SENT = "x-novasvc-sent"
"""Header of a message with a TTL: its sender's 8 characters, a colon, and the milliseconds on its clock
at which it was sent, in 13 digits."""
_SENDER_SIZE = 8
_SENT_SIZE = 22
_HEADER = bytes((len(SENT),)) + SENT.encode() + b"S" + _SENT_SIZE.to_bytes(4, "big")
_SENT_EXPIRING = b"".join(
    (b"\xf9\x00\x10application/json\x05utf-8", (len(_HEADER) + _SENT_SIZE).to_bytes(4, "big"), _HEADER)
)
"""As _EXPIRING, up to the value of the header SENT, which is the only one."""
_SENT_AT = len(_SENT_EXPIRING)
_SENT_END = _SENT_AT + _SENT_SIZE
_AFTER_SENT = b"\x02\x00"
_SENT_EXPIRATION_AT = _SENT_END + len(_AFTER_SENT) + 1
_TOO_MANY_DIGITS = 16
_LONGEST_TTL = 2**32 - 1
"""Largest expiration in milliseconds that the broker accepts."""

DELIVERIES = "x-novasvc-deliveries"
"""Header of a requeued copy: number of earlier deliveries."""
DEATHS = "x-novasvc-deaths"
"""Header of a requeued or held copy: number of processes that died while they held the message."""
EXPIRES_IN = "x-novasvc-expires-in"
"""Header of a held copy: remaining TTL in milliseconds when it was published."""
HOLDING = "_running_"
UNCLAIMED = "_unclaimed"
"""Parts of the names of holding queues, see :func:`novasvc.transport.amqp.topology.declare_holding_queues`."""
_DEAD_LETTERS = "x-death"
RETURNS = "x-delivery-count", "x-acquired-count"
"""Headers of a message from a quorum queue: how often it was returned; from RabbitMQ 4.0 on the larger one counts."""
PROBE = "x-novasvc-probe"
"""Header of a probe: the queue of the listener that sent it to itself."""
_COMPRESSED = frozenset({"application/x-gzip", "application/zlib", "gzip", "zlib"})


class Properties(NamedTuple):
    """The properties of a message that we use.

    :param expires_in: seconds of TTL when the message was published, or None.
    :param deliveries: number of earlier deliveries, from the headers.
    :param compressed: the body is a zlib stream.
    :param deaths: number of processes that died while they held the message, from the headers.
    :param unclaimed: the process that held it did not claim it in time, and the broker dead-lettered it from that
        process's queue to its origin.
    :param returns: how often it was returned to its quorum queue, as the broker counts.
    :param probe: the queue of the listener that sent this probe; None for any other message.
    :param sender: who sent it, of a message that says so; see :data:`SENT`. b"" for any other.
    :param sent_at: seconds on the sender's clock.
    """

    expires_in: float | None = None
    deliveries: int = 0
    compressed: bool = False
    deaths: int = 0
    unclaimed: bool = False
    returns: int = 0
    probe: str | None = None
    sender: bytes = b""
    sent_at: float = 0.0


_NOTHING = Properties()


def sent_value(sender: bytes, sent_at: float) -> bytes:
    """Return the value of the header SENT.

    :param sender: 8 characters.
    :param sent_at: seconds on the sender's clock.
    """
    return b"%b:%013d" % (sender, sent_at * 1000)


def write_properties(
    ttl: float | None, headers: Mapping[str, Any] | None = None, sender: bytes = b"", sent_at: float = 0.0
) -> bytes:
    """Encode flags and values.

    :param ttl: seconds after which the broker drops the message, or None. Clamped to 1 ms and 2**32 - 1 ms.
    :param headers: the field table of headers.
    :param sender: 8 characters for a message with a TTL; b"" to leave out who sent it when.
    :param sent_at: seconds on the sender's clock.
    :raises CodecError: a header cannot be encoded.
    """
    if headers:
        if sender and ttl is not None:
            headers = {**headers, SENT: sent_value(sender, sent_at).decode()}
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
    if sender:
        # As sent_value() writes it. Inlined: every call passes here.
        sent = b"%b:%013d" % (sender, sent_at * 1000)
        return b"".join((_SENT_EXPIRING, sent, _AFTER_SENT, bytes((len(expiration),)), expiration))
    return b"".join((_EXPIRING, bytes((len(expiration),)), expiration))


def read_properties(data: bytes) -> Properties:
    """Decode flags and values.

    :raises CodecError: they are malformed.
    """
    if data == PLAIN:
        return _NOTHING
    digits = len(data) - _SENT_EXPIRATION_AT
    if (
        0 < digits < _TOO_MANY_DIGITS
        and data.startswith(_SENT_EXPIRING)
        and data.startswith(_AFTER_SENT, _SENT_END)
        and data[_SENT_EXPIRATION_AT - 1] == digits
    ):
        expiration, milliseconds = data[_SENT_EXPIRATION_AT:], data[_SENT_AT + _SENDER_SIZE + 1 : _SENT_END]
        if expiration.isdigit() and milliseconds.isdigit():
            sender = data[_SENT_AT : _SENT_AT + _SENDER_SIZE]
            return Properties(int(expiration) / 1000, sender=sender, sent_at=int(milliseconds) / 1000)
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
    probe, (sender, sent_at) = headers.get(PROBE), _sent(headers.get(SENT))
    return Properties(
        expires_in,
        _count(headers.get(DELIVERIES)),
        str(headers.get("compression")) in _COMPRESSED,
        _count(headers.get(DEATHS)),
        _unclaimed(headers.get(_DEAD_LETTERS)),
        max(_count(headers.get(name)) for name in RETURNS),
        probe if isinstance(probe, str) else None,
        sender,
        sent_at,
    )


def _unclaimed(dead_letters: object) -> bool:
    """Return whether x-death, the broker's record of dead-lettering, names a queue of unclaimed requests."""
    for entry in dead_letters if isinstance(dead_letters, list) else ():
        if isinstance(entry, dict) and entry.get("reason") == "expired":
            queue = str(entry.get("queue"))
            if HOLDING in queue and queue.endswith(UNCLAIMED):
                return True
    return False


def read_content(body: bytes | None, properties: bytes, limit: int) -> tuple[bytes, Properties]:
    """Return a message's uncompressed body and its properties.

    :param body: None if it was over the limit.
    :param limit: largest uncompressed body in bytes.
    :raises ValueError: it is too long, malformed or cut short; a CodecError is a ValueError.
    """
    if body is None:
        raise ValueError(f"the body exceeds {limit} bytes")
    if properties == PLAIN:
        return body, _NOTHING
    read = read_properties(properties)
    return (_inflate(body, limit) if read.compressed else body), read


def _inflate(body: bytes, limit: int) -> bytes:
    """Decompress a zlib body, within the limit."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise ValueError("the body is not a valid zlib stream") from error
    if len(plain) > limit or not stream.eof:
        raise ValueError(f"the uncompressed body exceeds {limit} bytes, or the zlib stream is truncated")
    return plain


def _seconds(expiration: bytes) -> float | None:
    return int(expiration) / 1000 if expiration.isdigit() and len(expiration) < _TOO_MANY_DIGITS else None


def _sent(value: object) -> tuple[bytes, float]:
    """Return sender and seconds of the header SENT; b"" and 0 if it is missing or malformed."""
    sent = value.encode() if isinstance(value, str) else b""
    sender, _, milliseconds = sent.partition(b":")
    if len(sent) != _SENT_SIZE or len(sender) != _SENDER_SIZE or not milliseconds.isdigit():
        return b"", 0.0
    return sender, int(milliseconds) / 1000


def _count(value: object, limit: int = 2**31 - 1) -> int:
    return value if isinstance(value, int) and 0 < value <= limit else 0
