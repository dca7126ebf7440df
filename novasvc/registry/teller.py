"""Calls of the methods of an observer: a few at the same time, within a time limit, again if they fail."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc.errors import NovasvcError, describe
from novasvc.reactor.backoff import RetryPolicy
from novasvc.registry.observation import StatusChange
from novasvc.telemetry import metrics

_log = Logger()

AT_A_TIME = 10
"""Changes that are told at the same time."""

ATTEMPTS = 5
"""How often a method is called that fails."""

TIMEOUT = 60.0
"""Seconds after which a method is cancelled, and has failed."""

_METHODS = {"alive": "on_up", "suspect": "on_suspect", "down": "on_down"}


@attrs.define(eq=False)
class _Telling:
    """A change that is being told.

    :ivar done: fires when that has ended; cancel it to stop.
    :ivar outdated: the service has changed again since.
    """

    done: Deferred[None] = attrs.field(factory=Deferred)
    outdated: bool = False


@attrs.define(eq=False)
class Teller:
    """Tells an observer of changes, one at a time for each service.

    :param name: name of the observer, for the log.
    :param observer: provides :class:`novasvc.interfaces.IServiceObserver`.
    :param clock: measures the times.
    :param retry: seconds to wait after failures.
    :param timeout: seconds that a method may take.
    :param note: called when a change was handled, or given up; tried again while it fails with a NovasvcError.
    """

    _name: str
    _observer: Any
    _clock: IReactorTime
    _retry: RetryPolicy
    _timeout: float
    _note: Callable[[StatusChange], Awaitable[None]]
    _telling: dict[int, _Telling] = attrs.field(factory=dict, init=False)
    _slots: DeferredSemaphore = attrs.field(factory=lambda: DeferredSemaphore(AT_A_TIME), init=False)

    def is_busy(self, service_id: int, *, outdated: bool) -> bool:
        """Return whether a change of a service is being told.

        :param outdated: whether that is not what the service is now, so that it need not be told again if it fails.
        """
        telling = self._telling.get(service_id)
        if telling is not None:
            telling.outdated = outdated
        return telling is not None

    def tell(self, change: StatusChange) -> None:
        """Begin to tell a change; none of this service may be under way."""
        telling = self._telling[change.service_id] = _Telling()

        def ended(_: object) -> None:
            del self._telling[change.service_id]

        done = telling.done = Deferred.fromCoroutine(self._tell(change, telling))
        done.addErrback(lambda failure: failure.trap(CancelledError) and None)
        done.addErrback(lambda failure: _log.failure("telling {service} failed", failure, service=change.name))
        done.addBoth(ended)

    def cancel(self) -> None:
        """Stop telling what is being told, and note nothing of it."""
        for telling in [*self._telling.values()]:
            telling.done.cancel()

    async def stop(self) -> None:
        """Cancel, and wait until the methods have ended."""
        ends: list[Deferred[None]] = []
        for telling in self._telling.values():
            end: Deferred[None] = Deferred()
            telling.done.addBoth(end.callback)
            ends.append(end)
        self.cancel()
        await DeferredList(ends)

    async def _tell(self, change: StatusChange, telling: _Telling) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                await deferLater(self._clock, self._retry(attempt - 1), lambda: None)
                change = attrs.evolve(change, repeated=True)
            call = partial(self._call, change, telling, attempt)
            if await self._slots.run(lambda call: Deferred.fromCoroutine(call()), call):
                break
            if telling.outdated:
                return  # The next read of the registry tells what the service is now.
        for failures in count(1):
            # Until it is noted, a process that takes over would tell the change again.
            try:
                await self._note(change)
            except NovasvcError as error:
                if failures == 1:
                    _log.error(
                        "observer {name} was told of {service}, which cannot be written: {error}",
                        name=self._name,
                        service=change.name,
                        error=error,
                    )
                await deferLater(self._clock, self._retry(failures), lambda: None)
            else:
                return

    async def _call(self, change: StatusChange, telling: _Telling, attempt: int) -> bool:
        """Tell a change once, and return whether that succeeded."""
        if telling.outdated:  # while it waited for its turn
            return False
        method = _METHODS[change.verdict.status]
        try:
            calling: Deferred[Any] = maybeDeferred(getattr(self._observer, method), change)
            await calling.addTimeout(self._timeout, self._clock)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - users' code
            is_late = isinstance(error, DeferredTimeoutError)
            if not is_late:
                _log.failure("{method} of observer {name} raised this", method=method, name=self._name)
            _log.error(
                "{method} of observer {name} failed for {service} (attempt {attempt} of {attempts}): {problem}; {then}",
                method=method,
                name=self._name,
                service=change.name,
                attempt=attempt,
                attempts=ATTEMPTS,
                problem=f"no end within {self._timeout:g} s" if is_late else describe(error),
                then="it is called again" if attempt < ATTEMPTS else "it is not called again for this change",
            )
            metrics.observer_calls.at(self._name, "failed").value += 1
            return False
        metrics.observer_calls.at(self._name, "done").value += 1
        return True
