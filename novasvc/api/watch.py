"""The fleet as it was last seen: one read of the registry feeds all who look, and what changed is remembered."""

import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from novasvc.api.errors import APIError
from novasvc.api.sight import Sight, Totals, count, state_of, what_shows
from novasvc.api.timeline import Event, Timeline, events_of
from novasvc.errors import NovasvcError
from novasvc.registry.record import ServiceRecord

_log = Logger()

WATCHED = 2.0
"""Seconds from read to read while somebody looks."""
UNWATCHED = 10.0
"""Seconds from read to read while nobody does."""

_SHARE = 10
"""A read that takes long is followed by a pause of so many times as much: a big fleet is no load."""
_POLLER = 15.0
"""Seconds for which somebody who asked for a moment's state counts as looking."""


class Watch(Service):
    """Reads the registry again and again, and tells what is different.

    :param source: returns all rows, or raises a NovasvcError; it has a deadline of its own.
    :param clock: its seconds are since 1970.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    """

    def __init__(
        self, source: Callable[[], Awaitable[list[ServiceRecord]]], clock: IReactorTime, service_down_time: float
    ) -> None:
        self._source = source
        self._clock = clock
        self._down_time = service_down_time
        self.epoch = secrets.token_hex(4)
        """Of this watch: versions of another, or of another process, mean nothing here."""
        self.version = 0
        """Counts the reads that succeeded."""
        self.totals = Totals()
        self.trouble = "the registry was not read yet"
        """Why what is known is old; "" if it is not."""
        self.timeline = Timeline()
        self.began = clock.seconds()
        """When this began to watch, in seconds since 1970."""
        self._sights: dict[int, Sight] = {}
        self._read_at = 0.0
        self._asked_at = float("-inf")
        self._listeners: list[Callable[[], None]] = []
        self._next: IDelayedCall | None = None
        self._reading: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []

    # -- who looks -------------------------------------------------------------------------------

    @property
    def sights(self) -> Mapping[int, Sight]:
        """What is known, by id."""
        return self._sights

    @property
    def age(self) -> float:
        """Seconds since the last read that succeeded; infinite before the first."""
        return self._clock.seconds() - self._read_at if self.version else float("inf")

    @property
    def seen_at(self) -> float:
        """When the last read succeeded, in seconds since 1970."""
        return self._read_at

    def age_of(self, sight: Sight) -> float:
        """Return the seconds since a service's last heartbeat."""
        return sight.record.age + self.age

    def find(self, uuid: str) -> Sight | None:
        """Return a service by its uuid."""
        return next((sight for sight in self._sights.values() if sight.record.uuid == uuid), None)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called after each read, whether it succeeded or not; it looks for itself.

        :return: ends it.
        """
        self._listeners.append(listener)
        self._hurry()
        return lambda: self._listeners.remove(listener)

    async def fresh(self, patience: float = 1.0) -> None:
        """Wait for what is no older than somebody who looks would see; not for long, and it may be older then.

        :param patience: seconds.
        """
        self._asked_at = self._clock.seconds()
        if not self.running or (self.age <= WATCHED and not self.trouble):
            return
        self._hurry()
        await self._next_read(patience)

    async def again(self, patience: float = 1.0) -> None:
        """Read now, as something was just changed, and wait for it; not for long."""
        if self.running and self._reading is not None:
            await self._next_read(patience)  # one that began before the change
        if self.running:
            self._schedule(0.0)
            await self._next_read(patience)

    async def _next_read(self, patience: float) -> None:
        waiting: Deferred[None] = Deferred()

        def give_up() -> None:
            self._waiting.remove(waiting)
            waiting.callback(None)

        self._waiting.append(waiting)
        timer = self._clock.callLater(patience, give_up)
        try:
            await waiting
        finally:
            if waiting in self._waiting:  # whoever waited is gone
                self._waiting.remove(waiting)
            if timer.active():
                timer.cancel()

    # -- reading ---------------------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to read."""
        super().startService()
        self._schedule(0.0)

    def stopService(self) -> None:
        """Read no more; a read that is under way is cancelled."""
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._reading is not None:
            self._reading.cancel()
        self._answer_waiting()

    def _hurry(self) -> None:
        """See that the next read is as soon as it is to be while somebody looks."""
        if self._next is not None:
            due = max(0.0, self._read_at + WATCHED - self._clock.seconds())
            if due < self._next.getTime() - self._clock.seconds():
                self._schedule(due)

    def _schedule(self, after: float) -> None:
        if self._next is not None:
            self._next.cancel()
        if self._reading is None:
            self._next = self._clock.callLater(after, self._begin)

    def _begin(self) -> None:
        self._next = None
        began = self._clock.seconds()
        self._reading = Deferred.fromCoroutine(self._read())

        def ended(_: object) -> None:
            self._reading = None
            if self.running:
                looked_at = self._listeners or self._clock.seconds() - self._asked_at < _POLLER
                pause = WATCHED if looked_at or self.trouble else UNWATCHED
                self._schedule(max(pause, _SHARE * (self._clock.seconds() - began)))
            self._answer_waiting()

        self._reading.addBoth(ended)

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(None)

    async def _read(self) -> None:
        try:
            records = await self._source()
            self._take(records)
        except CancelledError:
            return
        except NovasvcError as error:
            self._stumble(error.message if isinstance(error, APIError) else str(error))
        except Exception:  # noqa: BLE001 - whatever it is, the next read is tried
            _log.failure("the registry was not read, for a reason that nobody expected")
            self._stumble("a bug; the log has the details")
        else:
            if self.trouble and self.version > 1:
                _log.info("the fleet is seen again; before: {trouble}", trouble=self.trouble)
            self.trouble = ""
        for listener in [*self._listeners]:
            try:
                listener()
            except Exception:  # noqa: BLE001 - the others are to hear of it all the same
                _log.failure("somebody who watches the fleet failed")

    def _stumble(self, trouble: str) -> None:
        """Say once what is wrong."""
        if trouble != self.trouble and self.version:  # before, whoever reaches the registry tells of it
            _log.warn("the fleet is not seen, and what is shown of it grows old: {trouble}", trouble=trouble)
        self.trouble = trouble

    # -- what is different -------------------------------------------------------------------------

    def _take(self, records: Iterable[ServiceRecord]) -> None:
        self.version += 1
        self._read_at = self._clock.seconds()
        before, after = self._sights, {}
        events: list[Event] = []
        for record in records:
            seen = before.get(record.id)
            state = state_of(record, self._down_time)
            if seen is not None and seen.state == state and what_shows(seen.record) == what_shows(record):
                after[record.id] = Sight(record, state, seen.changed)
                continue
            after[record.id] = sight = Sight(record, state, self.version)
            events += ((kind, sight, why) for kind, why in events_of(seen, sight))
        for number in before.keys() - after.keys():
            events.append(("deleted", before[number], ""))
        self._sights = after
        self.totals = count(after.values())
        if self.version > 1:  # what was there when we came is no news
            self.timeline.add(self._read_at, events)
