"""What the rooms of the API stand on: the registry, the way to nodes, and the processes beside this one."""

from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Any, TypeVar

import attrs
from twisted.application.service import IService
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc.api.errors import APIError
from novasvc.config import Settings
from novasvc.errors import BrokerUnavailableError, DatabaseError, NovasvcError, TransportClosedError
from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.registry.lookup import ServiceLookup
from novasvc.rpc import Client

_log = Logger()

FIRST_TRY = 3.0
"""Seconds that the first requests wait at the most for what they will need."""
_T = TypeVar("_T")


def _nothing() -> Iterable[IService]:
    return ()


@attrs.define(eq=False)
class Backend:
    """The legs that the API stands on. It answers without them, too: with 503, and which one is missing.

    :param runtime: settings, reactor, and the ways to the broker and the database.
    :param beside: returns the services of this process, for their health and their metrics.
    """

    runtime: Runtime
    beside: Callable[[], Iterable[IService]] = _nothing
    missing: dict[str, str] = attrs.field(factory=dict, init=False)
    """Why a leg is not there, by its name: "database" or "conductor", "broker"."""
    obstacles: dict[str, NovasvcError] = attrs.field(factory=dict, init=False)
    """The same, as errors."""
    _registry: IServiceRegistry | None = attrs.field(default=None, init=False)
    _transport: ITransport | None = attrs.field(default=None, init=False)
    _client: Client | None = attrs.field(default=None, init=False)
    _reaching: list[Deferred[None]] = attrs.field(factory=list, init=False)
    _tried: Deferred[None] | None = attrs.field(default=None, init=False)
    _attendants: list[IService] = attrs.field(factory=list, init=False)

    @property
    def settings(self) -> Settings:
        """The configuration."""
        return self.runtime.settings

    @property
    def reactor(self) -> Any:
        """The clock and event loop."""
        return self.runtime.reactor

    @property
    def registry(self) -> IServiceRegistry:
        """The ``services`` table.

        :raises APIError: 503, it is not reached yet.
        """
        if self._registry is None:
            raise self._unavailable(self._registry_connection.name)
        return self._registry

    @property
    def client(self) -> Client:
        """Calls nodes.

        :raises APIError: 503, the broker is not reached yet.
        """
        if self._client is None:
            raise self._unavailable("broker")
        return self._client

    @property
    def registry_name(self) -> str:
        """The leg by which the registry is reached: "database" or "conductor"."""
        return self._registry_connection.name

    @property
    def registry_if_there(self) -> IServiceRegistry | None:
        """The registry; None while it is not reached."""
        return self._registry

    def broker_problem(self) -> str | None:
        """Say why messages do not move now; None if they do."""
        if self._transport is None:
            return self.missing.get("broker", "it is being reached")
        problem: str | None = self._transport.problem()
        return problem

    @property
    def _registry_connection(self) -> SharedConnection[IServiceRegistry]:
        return self.runtime.database if self.settings.db_allowed else self.runtime.conductor

    def _unavailable(self, leg: str) -> APIError:
        why = self.missing.get(leg, "it is being reached")
        return APIError(503, f"the {leg} is not there: {why}", {"Retry-After": "5"})

    def attend(self, part: IService) -> None:
        """Run a part of a room as long as the API runs: from now, or from :meth:`open` on, to :meth:`dismiss`."""
        self._attendants.append(part)
        if self._reaching:
            part.startService()

    async def dismiss(self) -> None:
        """Stop those parts: streams above all, as whoever stops the server waits for their end."""
        attendants, self._attendants = self._attendants, []
        for part in reversed(attendants):
            await maybeDeferred(part.stopService)

    def open(self) -> Deferred[None]:
        """Begin to reach the legs, until they are there; the log tells when.

        :return: Deferred[None], fired when each of them was reached, or once could not be, or FIRST_TRY seconds
            from now.
        """
        for part in self._attendants:
            part.startService()

        async def reach_registry() -> None:
            self._registry = await self._reach(self._registry_connection.name, self._registry_connection.acquire)
            self._see_tried()

        async def reach_broker() -> None:
            transport = self._transport = await self._reach("broker", self.runtime.broker.acquire)
            explain = ServiceLookup(lambda: self._registry, self.reactor, self.settings.service_down_time)
            self._client = Client(
                transport, clock=self.reactor, timeout=self.settings.rpc_response_timeout, explain=explain
            )
            self._see_tried()

        for leg in (reach_registry, reach_broker):
            reaching = Deferred.fromCoroutine(leg())
            # What close() cancels amid its opening may say that it is closed.
            reaching.addErrback(lambda failure: failure.trap(CancelledError, TransportClosedError) and None)
            reaching.addErrback(lambda failure: _log.failure("a leg of the API is given up", failure))
            self._reaching.append(reaching)
        tried: Deferred[None] = Deferred()
        self._tried = tried
        self._see_tried()
        return tried.addTimeout(FIRST_TRY, self.reactor, lambda _, _seconds: None)

    def _see_tried(self) -> None:
        """Tell who waits for it that each leg has been tried."""
        reached = (self._registry is not None) + (self._client is not None)
        if self._tried is not None and reached + len(self.missing) == len(self._reaching):
            tried, self._tried = self._tried, None
            tried.callback(None)

    async def _reach(self, leg: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
        for failures in count(1):
            try:
                reached = await attempt()
            except (BrokerUnavailableError, DatabaseError) as error:
                if leg not in self.missing:
                    _log.error("the API has no {leg}, and tries until it is there: {error}", leg=leg, error=error)
                self.missing[leg], self.obstacles[leg] = str(error), error
                self._see_tried()
            else:
                self.missing.pop(leg, None)
                self.obstacles.pop(leg, None)
                return reached
            await deferLater(self.reactor, self.runtime.retry(failures), lambda: None)
        raise AssertionError  # count() does not end

    async def close(self) -> None:
        """Let go of the legs."""
        reaching, self._reaching = self._reaching, []
        for leg in reaching:
            leg.cancel()
        await DeferredList(reaching, consumeErrors=True)
        client, self._client = self._client, None
        registry, self._registry, self._transport = self._registry, None, None
        try:
            if client is not None:
                await client.close()
                await self.runtime.broker.release()
            if registry is not None:
                await self._registry_connection.release()
        except NovasvcError as error:
            _log.error("the API did not let go of all that it stood on: {error}", error=error)
