"""WSGIService: serves a WSGI application of a paste configuration over HTTP."""

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, maybeDeferred
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.config.errors import SettingError
from novasvc.interfaces import IExitRequester, IRebuildable, IServiceRegistry, ISpecified, ITransport
from novasvc.manager import make_manager
from novasvc.node.http_service import HTTPService
from novasvc.node.manager_resources import attach_resources, make_client, make_emitter, make_tasks
from novasvc.node.outages import WaitingService, retry_outages
from novasvc.node.paste import Loader
from novasvc.node.runtime import Runtime, process_runtime
from novasvc.node.signature import hides
from novasvc.node.specification import NodeSpecification
from novasvc.rpc import Client, EventEmitter
from novasvc.rpc.blocking import BlockingClient
from novasvc.telemetry.flight import note
from novasvc.telemetry.logs import pluralize
from novasvc.workers.specification import check_constructor

_log = Logger()

RPC = "novasvc.rpc"
"""Key of the environ: a :class:`novasvc.blocking.Client`. It connects to the broker at its first call."""


@implementer(IExitRequester, IRebuildable, ISpecified)
class WSGIService(WaitingService, HTTPService):
    """Serves an application of WSGI, in one process, or in as many workers as share its port.

    Its settings are named after it: ``<name>_listen``, ``<name>_listen_port``, ``<name>_workers``, and
    ``<name>_manager``, whose hooks are called around the start. Each worker loads the application when
    it starts. A subclass with a constructor of its own overrides :meth:`specification`.

    :param name: the application's name in the paste configuration.
    :param loader: has a method ``load_app(name)``; None loads from api_paste_config.
    :param use_ssl: serve TLS with ssl_cert_file and ssl_key_file; with ssl_ca_file, clients need certificates.
    :param max_url_len: bytes; longer URLs get 414. None is 8192.
    :param runtime: the runtime it uses; None is that of this process.
    :param tls: the context of TLS, if its files have been read; None reads them.
    :ivar workers: the number of processes that are to serve it.
    :ivar server: the listening server, with ``host`` and ``port`` as soon as the address is bound.
    :raises AppError: there is no such application.
    :raises SettingError: a setting, or a file for TLS, is invalid.
    Source: nova.service.WSGIService.
    """

    name: str
    preload = ("novasvc.node.wsgi", "novasvc.http.wsgi")

    @hides("runtime", "tls")
    def __init__(
        self,
        name: str,
        loader: Any = None,
        use_ssl: bool = False,
        max_url_len: int | None = None,
        *,
        runtime: Runtime | None = None,
        tls: Any = None,
    ) -> None:
        self.by_environment = runtime is None
        self._given_loader = loader
        self._tls = tls
        self.runtime = runtime or process_runtime()
        settings = self.runtime.settings
        self.name = name
        self.use_ssl = use_ssl
        api = settings.api_named(name)
        self.host = api.listen
        self.workers: int = _workers(name, api.workers)
        self.loader = loader or Loader(settings.api_paste_config)
        if loader is None:
            self.loader.check(name)
        self.max_url_len = max_url_len
        if use_ssl and tls is None:
            from novasvc.http.tls import make_tls  # noqa: PLC0415 - imports OpenSSL

            self._tls = make_tls(settings.ssl_cert_file, settings.ssl_key_file, settings.ssl_ca_file)
        self.app: Any = None
        self._site: Any = None
        self._transport: ITransport | None = None
        self._registry: IServiceRegistry | None = None
        self._client: Client | None = None
        self._connecting = DeferredLock()
        self._blocking: BlockingClient | None = None
        self._step = ""
        self.leaving: SystemExit | None = None
        """The SystemExit of cleanup_host: the exit status that the manager wants for its process."""
        self._listen_on(f"the API {name}", api.listen, api.listen_port)

    @cached_property
    def manager(self) -> Any:
        """The manager, or None. Made on first access, in the serving process, because it is the user's code.

        :raises ManagerError: the manager cannot be made.
        """
        settings = self.runtime.settings
        return (
            make_manager(settings.managers[self.name], host=settings.host) if self.name in settings.managers else None
        )

    def specification(self) -> "WSGISpecification":
        """Return what a worker makes the service of; see :class:`~novasvc.interfaces.ISpecified`.

        The worker loads the application itself. It does not read the files of TLS: they may have changed.
        """
        check_constructor(self, WSGIService)
        arguments = self.name, self._given_loader, self.use_ssl, self.max_url_len
        options = {"runtime": None if self.by_environment else self.runtime, "tls": self._tls}
        environment = process_runtime() if self.by_environment else None
        return WSGISpecification(type(self), arguments, options, None, environment)

    def rebuild(self) -> "WSGIService":
        """Make a new service; files are read again. See :class:`~novasvc.interfaces.IRebuildable`."""
        check_constructor(self, WSGIService)
        runtime = None if self.by_environment else self.runtime
        return type(self)(self.name, self._given_loader, self.use_ssl, self.max_url_len, runtime=runtime)

    # -- the way up, and down ------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """Load the application, and serve it.

        :return: Deferred[None], fired when it accepts connections; fails with StartError.
        """
        return self._lifecycle.start()

    def stop(self) -> Deferred[None]:
        """Stop, as :meth:`stopService` does.

        :return: Deferred[None], fired when it has stopped.
        """
        return self.stopService()

    def wait(self) -> Deferred[None]:
        """Wait until it has stopped, or its start has failed.

        :return: Deferred[None].
        """
        return self._lifecycle.when_ended()

    def reset(self) -> None:
        """Apply the setting wsgi_default_pool_size to the thread pool.

        Source: nova.service.WSGIService.reset.
        """
        if self._site is not None:
            self._site.pool.max_threads = self.runtime.settings.wsgi_default_pool_size

    def _entered(self, state: str) -> None:
        note("api", f"{self.name} is {state}")
        _log.info("the API {name} is {state}", name=self.name, state=state)

    async def _begin(self) -> None:
        try:
            await self._start_parts()
        except CancelledError:
            raise
        except (Exception, SystemExit) as error:  # a hook that would end the process ends the start
            raise self._start_error(self._step, error) from error

    async def _start_parts(self) -> None:
        # Not in the constructor: twistd forks between the two.
        self._blocking = BlockingClient(
            self._connected_client, reactor=self.runtime.reactor, events=self._connected_emitter
        )
        self._step = "application"
        self.app = self.loader.load_app(self.name)
        self._step = "manager"
        if self.manager is not None:
            await self._attach(self.manager)
            await self._hook("init_host")
            await self._hook("pre_start_hook")
        self._step = "listen"
        self.server.startService()
        if self.manager is not None:
            await self._hook("post_start_hook")

    async def _attach(self, manager: Any) -> None:
        runtime = self.runtime
        self._step = "transport"
        client = await retry_outages(self, runtime.broker.name, self._connected_client, lambda: self.running)
        self._step = "registry"
        connection = self._registry_connection
        registry = await retry_outages(self, connection.name, connection.acquire, lambda: self.running)
        self._registry = registry
        delay, interval = runtime.settings.periodic_fuzzy_delay, runtime.settings.periodic_interval_max
        tasks = make_tasks(manager, runtime, fuzzy_delay=delay, interval_max=interval)
        events = await self._connected_emitter()
        attach_resources(manager, runtime, client, registry, tasks, events)

    async def _connected_client(self) -> Client:
        """Return the RPC client; connect to the broker on the first call, as an application may never use it.

        :raises BrokerError: the broker cannot be used; the next call tries again.
        """
        await self._connecting.acquire()
        try:
            if self._client is None:
                if self._transport is None:  # it may be there, if no client could be made: the stop releases it once
                    self._transport = await self.runtime.broker.acquire()
                self._client = make_client(self.runtime, self._transport, lambda: self._registry)
            return self._client
        finally:
            self._connecting.release()

    async def _connected_emitter(self) -> EventEmitter:
        """Return what publishes events, with the connection of the client."""
        await self._connected_client()
        assert self._transport is not None
        return make_emitter(self.runtime, self._transport, f"{self.name}.{self.runtime.settings.host}")

    @property
    def _registry_connection(self) -> Any:
        return self.runtime.database if self.runtime.settings.db_allowed else self.runtime.conductor

    async def _hook(self, name: str) -> None:
        self._step = name
        await maybeDeferred(getattr(self.manager, name))

    async def _end(self) -> None:
        self.waiting_for = None
        await self._stop_step("stop serving", self.server.stopService)
        if self._site is not None:
            if self._site.pool.busy:
                left = pluralize(self._site.pool.busy, "request")
                _log.warn("{name} has stopped with {left} still running in threads", name=self.name, left=left)
            self._site.pool.close()
        # Requests had their time: those that still run in threads must not wait for a reply any more.
        if self._blocking is not None:
            self._blocking.close()
        if self._registry is not None and self.manager is not None:
            await self._stop_step("cleanup_host", self.manager.cleanup_host)
        if self._client is not None:
            await self._stop_step("close the RPC client", self._client.close)
        if self._registry is not None:
            await self._stop_step(
                "disconnect from the registry", lambda: Deferred.fromCoroutine(self._registry_connection.release())
            )
        if self._transport is not None:
            await self._stop_step("close the transport", lambda: Deferred.fromCoroutine(self.runtime.broker.release()))
        self._site = self._client = self._registry = self._transport = None

    async def _stop_step(self, what: str, step: Callable[[], Any]) -> None:
        try:
            await maybeDeferred(step)
        except SystemExit as error:
            _log.warn("{what} of the API {name} ended with {error!r}", what=what, name=self.name, error=error)
            self.leaving = self.leaving or error
        except Exception:  # noqa: BLE001 - the other steps of the stop still run
            _log.failure("{what} of the API {name} failed; the stop continues", what=what, name=self.name)

    def _make_factory(self) -> Any:
        # Imported late: a process that serves nothing, such as a supervisor, does not load them.
        from novasvc.http import AccessLog  # noqa: PLC0415
        from novasvc.http.limits import limits_from_settings  # noqa: PLC0415
        from novasvc.http.wsgi import WSGISite  # noqa: PLC0415

        settings, reactor = self.runtime.settings, self.runtime.reactor
        self._site = WSGISite(
            self.app,
            limits=limits_from_settings(settings, self.max_url_len),
            reactor=reactor,
            log=AccessLog(settings.wsgi_log_format) if settings.wsgi_log_format else None,
            name=self.name,
            threads=settings.wsgi_default_pool_size,
            multiprocess=self.runtime.worker is not None,
            # A prepared one, which the application cannot close.
            environ={} if self._blocking is None else {RPC: self._blocking.prepare()},
            middleware=self.runtime.middleware,
        )
        return self._with_tls(self._site, self._tls)


def _workers(name: str, given: int | None) -> int:
    if given is None:
        return os.cpu_count() or 1
    if given < 1:
        remedy = "give 1 or more, or omit it for one per processor"
        raise SettingError(f"{name}_workers", str(given), "the settings", "is too small", remedy)
    return given


@attrs.frozen
class WSGISpecification(NodeSpecification):
    """A :class:`WSGIService` as the arguments of its constructor."""

    def build(self, reactor: Any) -> Any:
        """Make the service, with its manager."""
        service = super().build(reactor)
        service.manager  # noqa: B018 - fail here, for good, if the worker's manager cannot be made
        return service
