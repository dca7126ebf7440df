"""Recycling: replace workers that are old, have served much, or have taken much memory, so that leaks stay small."""

import random
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.config import Settings
from novasvc.telemetry import metrics
from novasvc.workers.errors import ReloadError
from novasvc.workers.group import WorkerGroup
from novasvc.workers.process import WorkerProcess
from novasvc.workers.slot import Slot

_log = Logger()

CHECK_INTERVAL = 10.0
"""Seconds between two looks at the workers."""

RETRY_PAUSE = 60.0
"""Seconds until the next attempt after a replacement that did not become ready."""

MEMORY_PAUSE = 600.0
"""Seconds without a look at the memory after a new worker was over the limit at once."""

JITTER = 0.2
"""Each process has limits of its own, up to this part lower: workers that started together do not end together."""

_QUERY_TIMEOUT = 1.0
"""Seconds for a worker to say how much it has served; one that is late is asked again at the next look."""

_MIB = 1024 * 1024


@attrs.define(eq=False)
class Recycler:
    """Replace one worker at a time: the new one is ready before the old one drains, so that nothing is lost.

    :param groups: the groups of workers, as they are now.
    :param settings: returns the settings, which a reload changes.
    :param clock: measures ages and intervals.
    :param random_source: draws the jitter.
    """

    _groups: Iterable[WorkerGroup]
    _settings: Callable[[], Settings]
    _clock: IReactorTime
    _random_source: random.Random
    _next: float = attrs.field(default=0.0, init=False)
    _memory_from: float = attrs.field(default=0.0, init=False)
    _looking: Deferred[None] | None = attrs.field(default=None, init=False)
    _parts: WeakKeyDictionary[WorkerProcess, float] = attrs.field(factory=WeakKeyDictionary, init=False)

    def check(self) -> None:
        """Look at the workers, if it is time to. Called about once a second."""
        settings, now = self._settings(), self._clock.seconds()
        limited = settings.worker_max_age or settings.worker_max_calls or settings.worker_max_memory
        if not limited or self._looking is not None or now < self._next:
            return
        self._next = now + CHECK_INTERVAL
        looking = self._looking = Deferred.fromCoroutine(self._recycle_one(settings))
        looking.addBoth(self._looked)

    def cancel(self) -> None:
        """Give up a replacement under way: the old worker stays. Called before a reload and a drain."""
        if self._looking is not None:
            self._looking.cancel()

    def _looked(self, outcome: Failure | None) -> None:
        self._looking = None
        if isinstance(outcome, Failure) and not outcome.check(CancelledError):
            _log.failure("recycling workers failed", outcome)

    async def _recycle_one(self, settings: Settings) -> None:
        for group in self._groups:
            for slot in list(group.slots):
                reason = await self._reason(slot, settings)
                if reason and slot in group.slots and slot.state == "ready":
                    await self._replace(group, slot, reason)
                    return

    async def _reason(self, slot: Slot, settings: Settings) -> str:
        """Return why a worker has to be replaced; "" if it has not."""
        process = slot.process
        if slot.state != "ready" or process is None:
            return ""
        if process not in self._parts:
            self._parts[process] = self._random_source.uniform(1 - JITTER, 1)
        part = self._parts[process]
        age = slot.seconds_in_state
        if settings.worker_max_age and age >= part * settings.worker_max_age:
            return f"it is {age:.0f} s old (worker_max_age {settings.worker_max_age:g} s)"
        if settings.worker_max_memory and self._clock.seconds() >= self._memory_from:
            memory = _memory_of(slot)
            if memory >= part * settings.worker_max_memory:
                return f"it has {memory:.0f} MiB of memory (worker_max_memory {settings.worker_max_memory:g} MiB)"
        if settings.worker_max_calls:
            served = await process.query("served", _QUERY_TIMEOUT)
            if isinstance(served, int) and served >= part * settings.worker_max_calls:
                return f"it has served {served} calls and requests (worker_max_calls {settings.worker_max_calls})"
        return ""

    async def _replace(self, group: WorkerGroup, slot: Slot, reason: str) -> None:
        _log.info("recycling {worker}: {reason}", worker=slot, reason=reason)
        try:
            await group.replace(slot)
        except ReloadError as error:
            _log.error("{worker} was not recycled, and keeps running: {problem}", worker=slot, problem=error.problem)
            self._next = self._clock.seconds() + RETRY_PAUSE
            return
        metrics.worker_recycled.at(slot.name).value += 1
        self._check_limit(group, slot.number)
        await slot.reaches("ended")  # one at a time: two old ones that drain would take their memory together

    def _check_limit(self, group: WorkerGroup, number: int) -> None:
        """Pause if the new worker is over the limit already: workers would start one after the other for ever."""
        limit = self._settings().worker_max_memory
        if not limit:
            return
        for slot in (slot for slot in group.slots if slot.number == number):
            memory = _memory_of(slot)
            if memory >= limit * (1 - JITTER):
                self._memory_from = self._clock.seconds() + MEMORY_PAUSE
                _log.error(
                    "{worker} is new and has {memory:.0f} MiB of memory: worker_max_memory, {limit:g} MiB, is too low; "
                    "no worker is recycled for its memory for {pause:g} s",
                    worker=slot,
                    memory=memory,
                    limit=limit,
                    pause=MEMORY_PAUSE,
                )


def _memory_of(slot: Slot) -> float:
    """Return the private memory of a worker in MiB; 0 if its process is gone."""
    return 0.0 if slot.process is None else (slot.process.memory or 0) / _MIB
