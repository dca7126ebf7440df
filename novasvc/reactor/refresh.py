"""A value that is read again in the background while it is used."""

from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.context import without_deadline
from novasvc.reactor.coalesce import Waiters

_SPACING, _LONGEST_SPACING = 1.0, 30.0
"""Seconds between the begins of two reads, at the least; doubled by each failure, up to the second value."""

_Value = TypeVar("_Value")


@attrs.define(eq=False)
class RefreshedValue(Generic[_Value]):
    """Keep a value that takes long to read, for callers that must not wait long.

    A caller that uses it steadily never waits: a value that is older than ``refresh`` is read again in the background.
    Without a value, or with one that is twice as old, a caller waits for a moment, unless the last read has just
    failed.

    :param read: returns a Deferred of the value, with a deadline of its own. Never called twice at a time, nor twice
        within a second; after failures less and less often, down to every 30 s.
    :param clock: measures the age.
    :param refresh: seconds after which a caller begins a new read.
    :param keep: seconds for which a value is used if it cannot be read again. Infinity uses the last one for ever.
    :param patience: seconds that a caller waits for a value.
    :ivar value: the value as it was last read; None before that.
    :ivar fresh_until: seconds on the clock until which :meth:`get` returns it and does nothing else.
    """

    _read: Callable[[], Deferred[_Value]]
    _clock: IReactorTime
    _refresh: float
    _keep: float
    _patience: float
    value: _Value | None = attrs.field(default=None, init=False)
    fresh_until: float = attrs.field(default=-inf, init=False)
    _read_at: float = attrs.field(default=-inf, init=False)
    _not_before: float = attrs.field(default=-inf, init=False)
    _failures: int = attrs.field(default=0, init=False)
    _reading: bool = attrs.field(default=False, init=False)
    _doubted: bool = attrs.field(default=False, init=False)
    _waiters: Waiters[_Value | None] = attrs.field(factory=Waiters, init=False)

    @property
    def known(self) -> _Value | None:
        """The value as it was last read; None if that is too long ago. Begins no read."""
        return self.value if self._clock.seconds() - self._read_at < self._keep else None

    def get(self) -> _Value | Deferred[_Value | None] | None:
        """Return the value; None if it is not known; or a Deferred of one of them, if it is being read.

        The Deferred fires within ``patience``, and does not fail. Cancelling it ends the waiting only.
        """
        now = self._clock.seconds()
        if now < self.fresh_until:
            return self.value
        if not self._reading and now >= self._not_before:
            self._begin(now)
        if not self._doubted and now - self._read_at < min(self._keep, 2 * self._refresh):
            return self.value
        return self.next()

    def next(self) -> _Value | Deferred[_Value | None] | None:
        """Return what :meth:`get` does, but wait for the read that is under way even if there is a value."""
        if not self._reading:
            return self.known
        return self._waiters.wait().addTimeout(self._patience, self._clock, onTimeoutCancel=lambda *_: self.known)

    def doubt(self) -> None:
        """Have the next caller wait for a new read, because the value seems to be wrong."""
        self._doubted, self.fresh_until = True, -inf

    def _begin(self, now: float) -> None:
        self._reading, self._not_before = True, now + _SPACING
        # Others share the value, so the read must not end with the deadline of the request that came first.
        with without_deadline():
            reading = maybeDeferred(self._read)
        reading.addCallbacks(self._finish, self._fail)

    def _finish(self, value: _Value) -> None:
        self.value, self._read_at = value, self._clock.seconds()
        self.fresh_until = self._read_at + self._refresh
        self._failures, self._doubted = 0, False
        self._end()

    def _fail(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._failures += 1
        spacing = min(_LONGEST_SPACING, _SPACING * 2 ** min(self._failures, 6))
        self._not_before = self._clock.seconds() + spacing
        self._end()

    def _end(self) -> None:
        self._reading = False
        self._waiters.fire(self.known)
