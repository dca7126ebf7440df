"""Signatures of requests: which identity sent this message, to whom, and when.

The envelope of a signed request has a third field, which oslo.messaging ignores::

    {"oslo.version": "2.0", "oslo.message": TEXT, "novasvc.signature": {"key": its id, "time": seconds since the
     epoch, "topic": str, "server": str or null, "fanout": bool, "value": base64}}

The value is an Ed25519 signature of a prefix, the other fields as JSON, and TEXT. TEXT is what the receiver runs:
method, arguments, context and message id are all signed as they are, and need no canonical form.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from novasvc.rpc.identity.keys import CallerKey, SigningKey
from novasvc.rpc.message import split_envelope
from novasvc.rpc.target import Target

_PREFIX = b"novasvc request 1\n"
"""Keeps a signature from being valid for anything else that is ever signed with the same key."""


class SignatureError(Exception):
    """A request is not signed, or its signature does not hold; the text is the rest of a sentence about it."""


@attrs.frozen(eq=False)
class Signer:
    """Signs the requests of one process.

    :param time: returns the seconds since the epoch.
    """

    key: SigningKey
    _time: Callable[[], float]

    def sign(self, target: Target, text: str) -> dict[str, Any]:
        """Return the signature of a request's text, for its envelope."""
        server = None if target.fanout else target.server
        fields = [self.key.key_id, round(self._time(), 3), target.topic, server, target.fanout]
        value = self.key.private.sign(_signed(fields, text))
        return {**dict(zip(_FIELDS, fields, strict=True)), "value": b64encode(value).decode("ascii")}


_FIELDS = ("key", "time", "topic", "server", "fanout")


def _signed(fields: list[Any], text: str) -> bytes:
    return _PREFIX + json.dumps(fields).encode() + b"\n" + text.encode()


@attrs.frozen(eq=False)
class Verifier:
    """Verifies the requests that one server receives.

    :param callers: the known keys by id.
    :param max_age: seconds, > 0: how old a signature may be, and how far ahead of this host's clock.
    :param time: returns the seconds since the epoch.
    """

    callers: Mapping[str, CallerKey]
    max_age: float
    _time: Callable[[], float]

    def verify(self, message: bytes, target: Target, sent_to: str) -> str:
        """Return the identity that has signed a request.

        :param message: as it was delivered.
        :param target: what the server serves.
        :param sent_to: how the message reached it; see :class:`novasvc.interfaces.IDelivery`.
        :raises SignatureError: it is not signed, by no known key, for another receiver, too long ago, or was changed.
        """
        text, signature = split_envelope(message)
        if signature is None:
            raise SignatureError("it is not signed")
        fields = [signature.get(name) for name in _FIELDS]
        key_id, when, topic, server, fanout = fields
        caller = self.callers.get(key_id) if isinstance(key_id, str) else None
        if caller is None:
            raise SignatureError("its key is not among those of rpc_callers_file")
        try:
            value = b64decode(signature["value"], validate=True)
            caller.public.verify(value, _signed(fields, text))
        except Exception:  # noqa: BLE001 - a peer may send anything: wrong types, no base64, a value that does not fit
            raise SignatureError(f"its signature with the key {key_id} does not fit it") from None
        # From here on the fields are the signer's own, who may still have written nonsense.
        names = isinstance(topic, str) and (server is None or isinstance(server, str)) and isinstance(fanout, bool)
        if not names or not isinstance(when, int | float):
            raise SignatureError("its signature has fields of wrong types")
        asked = "fanout" if fanout else "topic" if server is None else "server"
        name = f"{topic}" if server is None else f"{topic}.{server}"
        if topic != target.topic or asked != sent_to or (asked == "server" and server != target.server):
            raise SignatureError(f"it was signed for the {asked} {name[:100]!r}")
        age = self._time() - when
        if not abs(age) <= self.max_age:  # not "age >": NaN is refused as well
            past = f"{age:.0f} s ago" if age > 0 else f"{-age:.0f} s ahead of this host's clock"
            raise SignatureError(f"it was signed {past}; the limit, rpc_signature_max_age, is {self.max_age:g} s")
        return caller.identity
