"""Retries of replies whose callers were not reached, until the caller counts as gone."""

from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.backoff import jittered_backoff
from novasvc.rpc.errors import TransportClosedError, UnconfirmedError, UndeliverableError
from novasvc.transport.amqp.publisher import Message, Publisher

_log = Logger()

MAX_ATTEMPTS = 5
"""Attempts for a caller whose reply queue does not exist: the queue may return with the caller's connection."""
RETRIES_BOUND = 1000
"""Bound on the callers remembered as gone, and on the replies that wait for a retry."""
GONE_TTL = 60.0
"""Seconds for which a reply to a caller that is gone is published once, and not retried."""
RECONNECT_GRACE = 15.0
"""Seconds after our reconnect in which no caller counts as gone: its connection may come back after ours."""

_backoff = jittered_backoff(first=0.25, longest=2.0)


@attrs.define(eq=False)
class ReplyRetries:
    """Retries undeliverable replies with exponential backoff, and remembers which callers are gone.

    :param clock: measures pauses and deadlines.
    :param publisher: publishes the replies.
    :ivar gone: when a caller was found to be gone, in seconds on the clock, by reply address.
    :ivar dropped: number of replies that were dropped.
    """

    _clock: IReactorTime
    _publisher: Publisher
    gone: dict[str, float] = attrs.field(factory=dict, init=False)
    dropped: int = attrs.field(default=0, init=False)
    _pending: set[Deferred[None]] = attrs.field(factory=set, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def caller_reached(self, _result: None, address: str) -> None:
        """Forget that a caller was gone: a reply to it was delivered."""
        self.gone.pop(address, None)

    def retry(self, failure: Failure, address: str, body: bytes, until: float, attempt: int = 1) -> Any:
        """Publish a reply again after a backoff, or give it up; an errback of the publish.

        Other failures than UndeliverableError and UnconfirmedError pass through.

        :param until: seconds on the clock at which the caller stops waiting.
        :param attempt: number of attempts made.
        :return: Deferred of the next attempt; None if the reply is dropped; the failure if it is not to be retried.
        """
        if self._closed:
            return Failure(TransportClosedError("replying")) if failure.check(CancelledError) else failure
        failure.trap(UndeliverableError, UnconfirmedError)
        gone_before = failure.check(UndeliverableError) and self._is_gone(address)
        pause = _backoff(attempt)
        late = self._clock.seconds() + pause >= until  # the caller has timed out by then
        returning = failure.check(UndeliverableError) and self._publisher.seconds_since_reconnect < RECONNECT_GRACE
        given_up = late or (not returning and (gone_before or attempt >= MAX_ATTEMPTS))
        if given_up or len(self._pending) >= RETRIES_BOUND:
            if failure.check(UnconfirmedError):
                return failure
            self.dropped += 1
            if not late and not self._is_gone(address):
                self._mark_gone(address)
                _log.info("reply queue {address} does not exist; dropping replies to this caller", address=address)
            return None
        again: Deferred[None] = deferLater(self._clock, pause)
        again.addCallback(lambda _: self._send(address, body, until))
        again.addErrback(self.retry, address, body, until, attempt + 1)
        self._pending.add(again)
        return again.addBoth(self._ended, again)

    def close(self) -> None:
        """Stop retrying: failures from now on are final. Called before the publisher is closed."""
        self._closed = True

    def cancel(self) -> None:
        """Cancel the retries that wait for their backoff. Called after :meth:`close`."""
        for again in list(self._pending):
            again.cancel()

    def _send(self, address: str, body: bytes, until: float) -> Deferred[None]:
        max_wait = max(0.0, until - self._clock.seconds())
        message = Message("", address, body, None, mandatory=True, target=address, max_wait=max_wait)
        return self._publisher.publish(message)

    def _ended(self, result: Any, again: Deferred[None]) -> Any:
        self._pending.discard(again)
        return result

    def _is_gone(self, address: str) -> bool:
        since = self.gone.get(address)
        return since is not None and self._clock.seconds() - since < GONE_TTL

    def _mark_gone(self, address: str) -> None:
        self.gone.pop(address, None)
        self.gone[address] = self._clock.seconds()
        if len(self.gone) > RETRIES_BOUND:
            del self.gone[next(iter(self.gone))]
