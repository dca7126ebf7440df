"""A circuit breaker: requests fail at once while the database does not answer."""

from collections.abc import Callable
from math import inf
from typing import TypeGuard, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.registry.errors import DatabaseLockedError, DatabaseUnavailableError

_log = Logger()
_T = TypeVar("_T")

SILENCE = 1.0
"""Seconds without an answer after which a request that fails opens the breaker."""
PROBE_PAUSE = 1.0
"""Seconds from a probe that failed to the next one."""


@attrs.define(eq=False)
class CircuitBreaker:
    """Passes requests on to the database, unless it is known not to answer.

    It opens when a request fails with DatabaseUnavailableError, and none was answered in the last SILENCE seconds: a
    database that has only too much to do still answers some. It closes when a probe succeeds.

    :param probe: writes something that changes nothing; returns a Deferred, with a deadline of its own.
    :param clock: measures SILENCE, and the pauses between probes.
    :ivar problem: why requests fail now; None while they are passed on.
    """

    _probe: Callable[[], Deferred[None]]
    _clock: IReactorTime
    problem: DatabaseUnavailableError | None = attrs.field(default=None, init=False)
    _answered_at: float = attrs.field(default=-inf, init=False)
    _pause: IDelayedCall | None = attrs.field(default=None, init=False)
    _probing: Deferred[None] | None = attrs.field(default=None, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    def run(self, request: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """Make a request.

        :return: Deferred of its result.
        :raises DatabaseUnavailableError: the database has not answered an earlier one, nor a probe since.
        """
        if self.problem is not None:
            return fail(DatabaseUnavailableError(self.problem.url, self.problem.problem))
        return request().addBoth(self._note)

    def stop(self) -> None:
        """Probe no more, and cancel the probe under way."""
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._probing is not None:
            self._probing.cancel()

    def _note(self, outcome: _T | Failure) -> _T | Failure:
        error = outcome.value if isinstance(outcome, Failure) else None
        if _is_silence(error):
            silent = self._clock.seconds() - self._answered_at >= SILENCE
            if silent and self.problem is None and not self._stopped:
                self._open(error)
        elif not isinstance(error, CancelledError):  # by the caller
            self._answered_at = self._clock.seconds()
        return outcome

    def _open(self, error: DatabaseUnavailableError) -> None:
        self.problem = error
        _log.error("the database does not answer; requests are refused until it does: {error}", error=error)
        self._begin_probe()

    def _begin_probe(self) -> None:
        self._pause = None
        self._probing = self._probe()
        self._probing.addBoth(self._probed)

    def _probed(self, outcome: object) -> None:
        self._probing = None
        if self._stopped:
            return
        if isinstance(outcome, Failure) and _is_silence(outcome.value):
            self._pause = self._clock.callLater(PROBE_PAUSE, self._begin_probe)
            return
        self.problem = None
        _log.info("the database answers again")


def _is_silence(error: BaseException | None) -> TypeGuard[DatabaseUnavailableError]:
    """Return whether the database did not answer. One whose tables another process has locked is there."""
    return isinstance(error, DatabaseUnavailableError) and not isinstance(error, DatabaseLockedError)
