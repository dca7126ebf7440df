"""The prefetch of a topic's queue, which shrinks while requests are held."""

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.transport.amqp.channel import AMQPClosedError

_RESIZE_DELAY = 0.2
"""Seconds between a change of the number of held requests and the resize, so that several changes share one."""

# Note [Topic prefetch and held requests]
#
# A held request no longer counts for the prefetch of the queue that it came from, but it still
# occupies a place in this process. Other servers may have free places for the requests that would
# wait here instead. So the prefetch of the topic's queue shrinks by the number of held requests,
# to nothing if need be. Nobody else serves our own queues, so their prefetch stays.


@attrs.define(eq=False)
class TopicPrefetch:
    """Resizes the prefetch after the number of held requests has changed; see Note [Topic prefetch and held requests].

    :param clock: measures the delay.
    :param held: returns how many requests are held.
    :param resize: takes that number, and replaces the consumer; None if there is no consumer now.
    """

    _clock: IReactorTime
    _held: Callable[[], int]
    _resize: Callable[[int], Deferred[None] | None]
    _delayed: IDelayedCall | None = attrs.field(default=None, init=False)
    _resizing: bool = attrs.field(default=False, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    def held_changed(self) -> None:
        """Schedule a resize, unless one is scheduled or under way."""
        if self._delayed is None and not self._resizing and not self._stopped:
            self._delayed = self._clock.callLater(_RESIZE_DELAY, self._start)

    def stop(self) -> None:
        """Resize no more: the consumer of the topic is cancelled."""
        self._stopped = True
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None

    def _start(self) -> None:
        self._delayed = None
        held = self._held()
        resizing = self._resize(held)
        if resizing is not None:
            self._resizing = True
            resizing.addErrback(lambda failure: failure.trap(AMQPClosedError) and None)
            resizing.addBoth(self._resized, held)

    def _resized(self, _: object, held: int) -> None:
        self._resizing = False
        if held != self._held():
            self.held_changed()
