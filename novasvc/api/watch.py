"""A cached view of the fleet: one periodic read of the registry serves all viewers and feeds the timeline."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from novasvc.api.errors import APIError
from novasvc.api.service_status import Assessment, ServiceStatus, Totals, count_totals, status_of
from novasvc.api.timeline import Event, Timeline, events_of
from novasvc.errors import NovasvcError
from novasvc.reactor.turns import in_slices
from novasvc.registry.record import ServiceRecord

_log = Logger()

WATCHED = 2.0
"""Seconds between reads while there are viewers."""
_PAUSE_FACTOR = 10
"""The pause after a read is this many times its duration, which bounds the load of a big fleet."""
_LONGEST_PAUSE = 10.0
"""Seconds of such a pause at the most. A longer one would show a state that is much too old, and that of an outage long
after its end."""
SLICE = 250
"""Services that are looked at in one turn of the reactor: a few milliseconds."""
_POLLING_VIEWER = 15.0
"""Seconds for which a request for the current state counts as a viewer."""


class Watch(Service):
    """Reads the registry periodically, and notifies its subscribers.

    :param source: coroutine function that returns all rows, or raises a NovasvcError. Each of its queries has a
        deadline; all of them together have none.
    :param clock: a clock whose seconds are since 1970.
    :param assess: returns what a row of the latest read says about its service.
    :param unwatched: seconds between reads while there are no viewers; 0 reads only while there are some.
    """

    def __init__(
        self,
        source: Callable[[], Awaitable[list[ServiceRecord]]],
        clock: IReactorTime,
        assess: Callable[[ServiceRecord], Assessment],
        unwatched: float,
    ) -> None:
        self._source = source
        self._clock = clock
        self._assess = assess
        self._unwatched = unwatched
        self.epoch = secrets.token_hex(4)
        """Random id of this watch. Versions of another watch or process are not comparable."""
        self.version = 0
        """The number of successful reads."""
        self.members = 0
        """The version in which a service was added, removed, or moved to another zone last."""
        self.totals = Totals()
        self.trouble = "the registry has not been read yet"
        """Why the last read failed; "" if it succeeded."""
        self.timeline = Timeline()
        self.began = clock.seconds()
        """Since when it has known of all changes, in seconds since 1970."""
        self._services: dict[int, ServiceStatus] = {}
        self._read_at = 0.0
        self._not_before = 0.0
        """When the next read may begin: that bounds the load, whoever asks."""
        self._asked_at = float("-inf")
        self._listeners: list[Callable[[], None]] = []
        self._next: IDelayedCall | None = None
        self._reading: Deferred[None] | None = None
        self._is_baseline = True
        """Whether nobody knows what changed before the next read."""
        self._waiting: list[Deferred[None]] = []

    # -- for viewers -----------------------------------------------------------------------------

    @property
    def services(self) -> Mapping[int, ServiceStatus]:
        """The services of the last successful read, by id."""
        return self._services

    @property
    def age(self) -> float:
        """Seconds since the last successful read; infinite before the first."""
        return self._clock.seconds() - self._read_at if self.version else float("inf")

    @property
    def read_at(self) -> float:
        """When the rows of the last successful read had all arrived, in seconds since 1970."""
        return self._read_at

    @property
    def is_viewed(self) -> bool:
        """Whether somebody looks at the page."""
        return bool(self._listeners) or self._clock.seconds() - self._asked_at < _POLLING_VIEWER

    def age_of(self, service: ServiceStatus) -> float:
        """Return the seconds since a service's last heartbeat."""
        return service.record.age + self.age

    def find(self, uuid: str) -> ServiceStatus | None:
        """Return a service by its uuid."""
        return next((service for service in self._services.values() if service.record.uuid == uuid), None)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call a function without arguments after each read, successful or not.

        :return: call it to unsubscribe.
        """
        self._listeners.append(listener)
        self._read_sooner()
        return lambda: self._listeners.remove(listener)

    async def wait_fresh(self, max_wait: float = 1.0) -> None:
        """Wait until the state is no older than WATCHED seconds.

        :param max_wait: seconds; the state may be older then.
        """
        self._asked_at = self._clock.seconds()
        if not self.running or (self.age <= WATCHED and not self.trouble):
            return
        self._read_sooner()
        if self._next is None or self._next.getTime() - self._clock.seconds() <= max_wait:
            await self._next_read(max_wait)

    async def reread(self, max_wait: float = 1.0) -> None:
        """Read now, after a change, and wait for it.

        :param max_wait: seconds.
        """
        if self.running and self._reading is not None:
            await self._next_read(max_wait)  # that read began before the change
        if self.running:
            self._schedule(0.0)
            await self._next_read(max_wait)

    async def _next_read(self, max_wait: float) -> None:
        waiting: Deferred[None] = Deferred()

        def give_up() -> None:
            self._waiting.remove(waiting)
            waiting.callback(None)

        self._waiting.append(waiting)
        timer = self._clock.callLater(max_wait, give_up)
        try:
            await waiting
        finally:
            if waiting in self._waiting:  # cancelled
                self._waiting.remove(waiting)
            if timer.active():
                timer.cancel()

    # -- reading ---------------------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to read periodically."""
        super().startService()
        if self._unwatched or self.is_viewed:
            self._schedule(0.0)

    def stopService(self) -> None:
        """Stop reading; a read in progress is cancelled."""
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._reading is not None:
            self._reading.cancel()
        self._answer_waiting()

    def _read_sooner(self) -> None:
        """Move the next read forward to the pace for viewers."""
        if not self.running or self._reading is not None:
            return
        due = max(0.0, self._not_before - self._clock.seconds())
        if self._next is None or due < self._next.getTime() - self._clock.seconds():
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
            now = self._clock.seconds()
            self._not_before = now + min(max(WATCHED, _PAUSE_FACTOR * (now - began)), _LONGEST_PAUSE)
            if self.running and (self._unwatched or self.is_viewed):
                # While reads fail, the pace stays that for viewers, so that the page recovers soon after the registry.
                pause = 0.0 if self.is_viewed or self.trouble else self._unwatched
                self._schedule(max(pause, self._not_before - now))
            else:
                self._is_baseline = True
            self._answer_waiting()

        self._reading.addBoth(ended)

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(None)

    async def _read(self) -> None:
        try:
            records = await self._source()
            await self._apply(records)
        except CancelledError:
            return
        except NovasvcError as error:
            self._read_failed(error.message if isinstance(error, APIError) else str(error))
        except Exception:  # noqa: BLE001 - the next read is tried whatever happens
            _log.failure("reading the registry failed unexpectedly")
            self._read_failed("this is a bug; the log has the details")
        else:
            if self.trouble and self.version > 1:
                _log.info("reading the registry succeeds again; the problem was: {trouble}", trouble=self.trouble)
            self.trouble = ""
        for listener in [*self._listeners]:
            try:
                listener()
            except Exception:  # noqa: BLE001 - the other subscribers have to be called
                _log.failure("a subscriber of the watch failed")

    def _read_failed(self, trouble: str) -> None:
        """Log a problem once."""
        if trouble != self.trouble and self.version:  # before the first success, Backend logs it
            _log.warn("reading the registry failed, so the page shows an old state: {trouble}", trouble=trouble)
        self.trouble = trouble

    # -- changes -----------------------------------------------------------------------------------

    async def _apply(self, records: Sequence[ServiceRecord]) -> None:
        version, read_at, is_baseline = self.version + 1, self._clock.seconds(), self._is_baseline
        before, after = {} if is_baseline else self._services, {}
        events: list[Event] = []
        async for some in in_slices(records, SLICE, self._clock):
            for record in some:
                seen = before.get(record.id)
                service = status_of(record, self._assess(record), seen, read_at, version, is_baseline=is_baseline)
                after[record.id] = service
                if service.turned == version:
                    events += ((kind, service, why) for kind, why in events_of(seen, service))
        for number in before.keys() - after.keys():
            events.append(("deleted", before[number], ""))
        if before.keys() != after.keys() or any(
            before[number].zone != service.zone for number, service in after.items() if service.turned == version
        ):
            self.members = version
        self.version, self._read_at, self._services = version, read_at, after
        self._is_baseline = False
        if is_baseline:
            self.began = read_at
        self.totals = count_totals(after.values())
        if not is_baseline:
            self.timeline.add(read_at, events)
