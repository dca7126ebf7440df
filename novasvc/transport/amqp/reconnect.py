"""When the next attempt to connect is made, and to which of the broker's hosts."""

import attrs

from novasvc.config.transport_url import Host
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.transport.errors import (
    BrokerError,
    BrokerFailedError,
    BrokerRefusedError,
    DeclarationDeniedError,
    DeclarationMismatchError,
)

_OPERATOR_ERRORS = BrokerRefusedError, DeclarationMismatchError, DeclarationDeniedError
"""Errors that only an operator can resolve, so they are retried with the slow backoff."""
_FAILED_ROUNDS = 5
"""Rounds of internal broker errors before the slow backoff applies to them, too."""


def quick_backoff() -> RetryPolicy:
    """Return the backoff for an unreachable broker: half a second to 2 s, so that a fleet is back within seconds."""
    return jittered_backoff(first=0.5, longest=2.0)


def slow_backoff() -> RetryPolicy:
    """Return the backoff for a broker that refuses us: 4 s to a minute, as only an operator can resolve that."""
    return jittered_backoff(first=4.0, longest=60.0)


@attrs.define(eq=False)
class ReconnectSchedule:
    """Tries the hosts in turn, with a backoff after each round of all hosts.

    :param hosts: at least one.
    :param backoff: takes the number of failed rounds, returns seconds.
    :param refused_backoff: the same, if the broker answered and refused us.
    :ivar attempts: attempts since the last connection was ready.
    """

    _hosts: tuple[Host, ...]
    _backoff: RetryPolicy
    _refused_backoff: RetryPolicy
    attempts: int = attrs.field(default=0, init=False)
    _refusals: int = attrs.field(default=0, init=False)

    def next_host(self) -> Host:
        """Return the host for the next attempt, and count that attempt."""
        host = self._hosts[self.attempts % len(self._hosts)]
        self.attempts += 1
        return host

    def has_tried_all(self) -> bool:
        """Return whether each host was tried since the last connection was ready."""
        return self.attempts >= len(self._hosts)

    def delay(self, error: BrokerError) -> float:
        """Return the seconds until the next attempt: 0 within a round of hosts, a backoff after it.

        :param error: why the last attempt failed, or the connection was lost.
        """
        refused, failed = isinstance(error, _OPERATOR_ERRORS), isinstance(error, BrokerFailedError)
        self._refusals = self._refusals + 1 if refused or failed else 0
        rounds, place = divmod(self.attempts, len(self._hosts))
        # Refusals have a count of their own: a broker that starts after a long outage may refuse once or twice.
        refused_rounds = self._refusals // len(self._hosts) - (_FAILED_ROUNDS if failed else 0)
        if place:
            return 0.0
        if refused or refused_rounds > 0:
            return self._refused_backoff(max(1, refused_rounds))
        return self._backoff(max(1, rounds))

    def reset(self) -> None:
        """Start anew: a connection is ready."""
        self.attempts = self._refusals = 0
