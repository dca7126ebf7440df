"""What the resources of the API share: the registry, an RPC client, and the other services of the process."""

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
from novasvc.errors import NovasvcError
from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.registry.errors import DatabaseError
from novasvc.registry.lookup import ServiceLookup
from novasvc.registry.outages import VerdictRule
from novasvc.registry.targets import TargetLiveness
from novasvc.rpc import Client
from novasvc.rpc.errors import TransportClosedError
from novasvc.transport.errors import BrokerUnavailableError

_log = Logger()

FIRST_ATTEMPT = 3.0
"""Seconds that the start waits for the first attempts to connect."""
CONNECTING = "not connected yet"
_T = TypeVar("_T")


def _nothing() -> Iterable[IService]:
    return ()


@attrs.define(eq=False)
class Backend:
    """Connects to the broker and the registry. While one is unavailable, requests that need it get a 503 naming it.

    :param runtime: settings, reactor, and the connections to the broker and the database.
    :param local_services: function that returns the services of this process, for health and metrics.
    """

    runtime: Runtime
    local_services: Callable[[], Iterable[IService]] = _nothing
    errors: dict[str, NovasvcError] = attrs.field(factory=dict, init=False)
    """Name of a connection ("database" or "conductor", "broker") -> why it cannot be made."""
    _registry: IServiceRegistry | None = attrs.field(default=None, init=False)
    _transport: ITransport | None = attrs.field(default=None, init=False)
    _client: Client | None = attrs.field(default=None, init=False)
    _connecting: list[Deferred[None]] = attrs.field(factory=list, init=False)
    _first_attempts: Deferred[None] | None = attrs.field(default=None, init=False)
    _services: list[IService] = attrs.field(factory=list, init=False)

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.runtime.settings

    @property
    def reactor(self) -> Any:
        """The reactor, and the clock."""
        return self.runtime.reactor

    @property
    def registry(self) -> IServiceRegistry:
        """The ``services`` table.

        :raises APIError: 503, it is not connected.
        """
        if self._registry is None:
            raise self._unavailable(self.registry_name)
        return self._registry

    @property
    def client(self) -> Client:
        """The RPC client.

        :raises APIError: 503, the broker is not connected.
        """
        if self._client is None:
            raise self._unavailable("broker")
        return self._client

    @property
    def registry_name(self) -> str:
        """How the registry is reached: "database" or "conductor"."""
        return self._registry_connection.name

    @property
    def registry_or_none(self) -> IServiceRegistry | None:
        """The registry; None while it is not connected."""
        return self._registry

    def broker_problem(self) -> str | None:
        """Return why no messages can be sent now; None if they can."""
        if self._transport is None:
            return self.problem("broker")
        problem: str | None = self._transport.problem()
        return problem

    def problem(self, name: str) -> str:
        """Return why a connection is not made.

        :param name: "broker", "database" or "conductor".
        """
        return str(self.errors.get(name, CONNECTING))

    @property
    def _registry_connection(self) -> SharedConnection[IServiceRegistry]:
        return self.runtime.database if self.settings.db_allowed else self.runtime.conductor

    def _unavailable(self, name: str) -> APIError:
        return APIError(503, f"the {name} is unavailable: {self.problem(name)}", {"Retry-After": "5"})

    def add_service(self, service: IService) -> None:
        """Run a service of a resource from now, or from :meth:`open`, until :meth:`stop_services`."""
        self._services.append(service)
        if self._connecting:
            service.startService()

    async def stop_services(self) -> None:
        """Stop these services. Event streams are among them, and the server waits for their end when it stops."""
        services, self._services = self._services, []
        for service in reversed(services):
            await maybeDeferred(service.stopService)

    def open(self) -> Deferred[None]:
        """Begin to connect, and retry until it succeeds.

        :return: Deferred[None], fired when each connection is made or has failed once, or after FIRST_ATTEMPT seconds.
        """
        for service in self._services:
            service.startService()

        async def connect_registry() -> None:
            self._registry = await self._connect(self.registry_name, self._registry_connection.acquire)
            self._check_first_attempts()

        async def connect_broker() -> None:
            transport = self._transport = await self._connect("broker", self.runtime.broker.acquire)
            explain = ServiceLookup(lambda: self._registry, self.reactor, self.settings.service_down_time)
            liveness = TargetLiveness(lambda: self._registry, self.reactor, VerdictRule.of(self.settings))
            self._client = Client(
                transport,
                clock=self.reactor,
                timeout=self.settings.rpc_response_timeout,
                explain=explain,
                liveness=liveness,
                middleware=self.runtime.middleware,
                signer=self.runtime.signer,
            )
            self._check_first_attempts()

        for connect in (connect_registry, connect_broker):
            connecting = Deferred.fromCoroutine(connect())
            # close() cancels it; a transport that is cancelled while it opens may say that it is closed.
            connecting.addErrback(lambda failure: failure.trap(CancelledError, TransportClosedError) and None)
            connecting.addErrback(lambda failure: _log.failure("connecting the API failed; it is not retried", failure))
            self._connecting.append(connecting)
        first_attempts: Deferred[None] = Deferred()
        self._first_attempts = first_attempts
        self._check_first_attempts()
        return first_attempts.addTimeout(FIRST_ATTEMPT, self.reactor, lambda _, _seconds: None)

    def _check_first_attempts(self) -> None:
        connected = (self._registry is not None) + (self._client is not None)
        if self._first_attempts is not None and connected + len(self.errors) == len(self._connecting):
            first_attempts, self._first_attempts = self._first_attempts, None
            first_attempts.callback(None)

    async def _connect(self, name: str, attempt: Callable[[], Awaitable[_T]]) -> _T:
        for failures in count(1):
            try:
                connection = await attempt()
            except (BrokerUnavailableError, DatabaseError) as error:
                if name not in self.errors:
                    _log.error("the API cannot connect to the {name}; retrying: {error}", name=name, error=error)
                self.errors[name] = error
                self._check_first_attempts()
            else:
                self.errors.pop(name, None)
                return connection
            await deferLater(self.reactor, self.runtime.retry(failures), lambda: None)
        raise AssertionError  # count() does not end

    async def close(self) -> None:
        """Close or give up the connections."""
        connecting, self._connecting = self._connecting, []
        for each in connecting:
            each.cancel()
        await DeferredList(connecting, consumeErrors=True)
        client, self._client = self._client, None
        registry, self._registry, self._transport = self._registry, None, None
        try:
            if client is not None:
                await client.close()
                await self.runtime.broker.release()
            if registry is not None:
                await self._registry_connection.release()
        except NovasvcError as error:
            _log.error("the API could not close its connections: {error}", error=error)
