"""Retries of calls that are declared idempotent."""

import random
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc import errors
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.rpc.errors import (
    RPCTimeoutError,
    ServiceDrainingError,
    TransportClosedError,
    TransportFullError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.rpc.failures.origin import add_note
from novasvc.telemetry import metrics

_log = Logger()


_FINAL = (CancelledError, TransportClosedError)
"""Errors after which no further attempt is wanted, or can succeed, even if every Exception is to be repeated."""


def _transient() -> tuple[type[Exception], ...]:
    # Through novasvc.errors, because the transports are on a layer above this one.
    broker = errors.BrokerUnavailableError, errors.BrokerBlockedError
    return (RPCTimeoutError, UndeliverableError, UnconfirmedError, ServiceDrainingError, TransportFullError, *broker)


def _attempts_valid(_: object, __: object, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"attempts is {value!r}; give a whole number of at least 1")


def _timeout_valid(_: object, __: object, value: Any) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"timeout is {value!r}; give seconds above 0 for each attempt, or None")


def _on_valid(_: object, __: object, value: Any) -> None:
    given = value if isinstance(value, tuple) else ()
    if not given or not all(isinstance(each, type) and issubclass(each, Exception) for each in given):
        raise ValueError(f"on is {value!r}; give a tuple of exception classes")


@attrs.frozen(kw_only=True)
class Retry:
    """When and how often a call is repeated; see ``retry`` of :meth:`novasvc.rpc.Client.prepare`.

    The client's timeout, and the deadline of the context, hold for all attempts and pauses together. Each attempt is a
    new message.

    :param attempts: the most attempts, >= 1.
    :param timeout: seconds for each attempt, > 0. None lets an attempt wait as long as the call may, so that a call
        without a reply is not repeated.
    :param on: the errors after which a call is repeated; every other error is raised at once. By default those of a
        service or a broker that is away for a moment, and missing replies. A call that was cancelled, or whose client
        is closed, is never repeated.
    :param random_source: draws the jitter of the default backoff; tests pass a seeded one.
    :param backoff: takes the number of failed attempts, returns the seconds to wait. By default exponential with
        jitter, from 0.1 s to 10 s.
    :raises ValueError: a parameter is not valid.
    """

    attempts: int = attrs.field(default=3, validator=_attempts_valid)
    timeout: float | None = attrs.field(default=None, validator=_timeout_valid)
    on: tuple[type[Exception], ...] = attrs.field(factory=_transient, validator=_on_valid)
    random_source: random.Random | None = None
    backoff: RetryPolicy = attrs.field()

    @backoff.default
    def _exponential(self) -> RetryPolicy:
        return jittered_backoff(first=0.1, longest=10.0, random_source=self.random_source)


async def call_with_retries(
    retry: Retry,
    clock: IReactorTime,
    seconds: float | None,
    call: Callable[[float | None], Deferred[Any]],
    named: tuple[str, str],
) -> Any:
    """Call until an attempt succeeds, or fails with an error that is final.

    :param seconds: for everything; None for no limit.
    :param call: makes an attempt that may take this many seconds; None for no limit.
    :param named: topic and method, for log and metrics.
    :raises Exception: the last attempt's error, with a note that says how many there were.
    """
    until = None if seconds is None else clock.seconds() + seconds
    attempt = 0
    while True:
        attempt += 1
        left = None if until is None else until - clock.seconds()
        limits = [limit for limit in (left, retry.timeout) if limit is not None]
        try:
            return await call(min(limits, default=None))
        except _FINAL:
            raise
        except retry.on as error:
            wait = retry.backoff(attempt)
            why = "" if attempt < retry.attempts else f"attempt {attempt} of {retry.attempts}"
            if not why and until is not None and clock.seconds() + wait >= until:
                why = f"attempt {attempt} of {retry.attempts}; no time is left for another one"
            if why:
                add_note(error, why)
                raise
            metrics.retried.at(*named).value += 1
            _log.info(
                "{topic} {method} failed (attempt {attempt} of {attempts}), trying again in {wait:.2f} s: {error}",
                topic=named[0],
                method=named[1],
                attempt=attempt,
                attempts=retry.attempts,
                wait=wait,
                error=error,
            )
            await deferLater(clock, wait)
