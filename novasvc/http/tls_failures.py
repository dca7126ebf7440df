"""The log of failed TLS handshakes."""

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()

_INTERVAL = 1.0
"""Seconds between two log lines; failures in between are counted."""


class TLSFailureLog:
    """Logs why TLS connections failed: no client certificate, one of an unknown CA, an old version of TLS.

    Anybody can make handshakes fail, as often as they like: so there is one line a second at most.

    :param name: of the server.
    :param clock: measures the interval.
    """

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self._name = name
        self._clock = clock
        self._count = 0
        self._logged_at = float("-inf")

    def add(self, peer: Any, reason: Failure) -> None:
        """Log a failure, or count it.

        :param peer: the client's address.
        """
        self._count += 1
        now = self._clock.seconds()
        if now < self._logged_at + _INTERVAL:
            return
        _log.info(
            "{site}: TLS with {peer} failed: {why}{more}",
            site=self._name,
            peer=getattr(peer, "host", peer),
            why=_explain(reason),
            more=f" ({self._count - 1} more failed before)" if self._count > 1 else "",
        )
        self._logged_at, self._count = now, 0


def _explain(reason: Failure) -> str:
    error: Any = reason.value
    # An OpenSSL error has a list of entries, the last field of each being the text.
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(entry[-1] for entry in entries) or reason.getErrorMessage()
