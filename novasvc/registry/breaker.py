"""A circuit breaker: requests are refused at once while the database does not answer."""

from collections.abc import Callable
from typing import TypeGuard, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.registry.errors import (
    CircuitOpenError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseServerReadOnlyError,
    DatabaseUnavailableError,
)

_log = Logger()
_T = TypeVar("_T")

_FROM_HERE = (CancelledError, DatabaseBusyError)
"""Errors that arise in this process, and tell nothing of the database."""

PATIENCE = 1.0
"""Seconds that a probe may take before the breaker opens."""
PROBE_PAUSE = 1.0
"""Seconds from a probe that failed to the next one."""


@attrs.define(eq=False)
class CircuitBreaker:
    """Passes requests on to the database, and refuses them while it does not answer.

    A request that fails with DatabaseUnavailableError begins a probe. The breaker opens when the probe fails as well,
    or has not ended after PATIENCE seconds. It closes when the database answers a probe, or an earlier request. A
    database that answers so slowly that requests and probes fail is one that does not answer.

    :param probe: executes a write that matches no row; returns a Deferred, with a deadline of its own.
    :param clock: measures PATIENCE, and the pauses between probes.
    :ivar problem: the latest error of a request or a probe while the breaker is open; None while it is closed.
    """

    _probe: Callable[[], Deferred[None]]
    _clock: IReactorTime
    problem: DatabaseUnavailableError | None = attrs.field(default=None, init=False)
    _error: DatabaseUnavailableError | None = attrs.field(default=None, init=False)
    # Until the breaker opens while a probe is under way, or until the next probe of an open breaker.
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _probing: Deferred[None] | None = attrs.field(default=None, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    def run(self, request: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """Make a request.

        :return: Deferred of its result.
        :raises CircuitOpenError: the breaker is open; the request was not made.
        """
        if self.problem is not None:
            return fail(
                CircuitOpenError(
                    self.problem.url, f"request refused; an earlier one failed with {self.problem.problem!r}"
                )
            )
        return request().addBoth(self._note)

    def stop(self) -> None:
        """Stop probing; requests are passed on from now on."""
        self._stopped = True
        self.problem = None
        self._end_probe()

    def _note(self, outcome: _T | Failure) -> _T | Failure:
        error = outcome.value if isinstance(outcome, Failure) else None
        if _is_silence(error):
            if self._timer is None and self._probing is None and not self._stopped:
                self._error = error
                self._begin_probe()
        elif not isinstance(error, _FROM_HERE):  # it comes from the database
            self._answered()
        return outcome

    def _begin_probe(self) -> None:
        self._timer = None if self.problem is not None else self._clock.callLater(PATIENCE, self._open)
        self._probing = maybeDeferred(self._probe)
        self._probing.addBoth(self._probed)

    def _open(self) -> None:
        self._timer = None
        self.problem = self._error
        _log.error(
            "the database does not answer in time; requests are refused until it does: {error}", error=self._error
        )

    def _probed(self, outcome: object) -> None:
        if self._probing is None:  # it was ended, see _end_probe
            return
        error = outcome.value if isinstance(outcome, Failure) else None
        if _is_silence(error):
            self._error = error
            self._end_probe()
            if self.problem is None:
                self._open()
            self.problem = error
            self._timer = self._clock.callLater(PROBE_PAUSE, self._begin_probe)
        elif isinstance(error, _FROM_HERE):  # it tells nothing; a closed breaker waits for the next request
            self._end_probe()
            if self.problem is not None:
                self._timer = self._clock.callLater(PROBE_PAUSE, self._begin_probe)
        else:
            if isinstance(outcome, Failure) and not isinstance(error, DatabaseError):
                _log.failure("a probe of the database failed", failure=outcome)
            self._answered()

    def _answered(self) -> None:
        self._end_probe()
        if self.problem is not None:
            self.problem = None
            _log.info("the database answers again")

    def _end_probe(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()


def _is_silence(error: BaseException | None) -> TypeGuard[DatabaseUnavailableError]:
    """Return whether the database did not answer. One with locked tables, or that is read-only, does answer."""
    return isinstance(error, DatabaseUnavailableError) and not isinstance(
        error, DatabaseBusyError | DatabaseLockedError | DatabaseServerReadOnlyError
    )
