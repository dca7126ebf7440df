"""What services that listen for HTTP have in common: their sockets, their start and their stop."""

from collections.abc import Sequence
from socket import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from zope.interface import implementer

from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IInterruptible, IPreloading, IReplaceable
from novasvc.node.errors import StartError
from novasvc.node.lifecycle import Lifecycle
from novasvc.node.lifecycle_service import LifecycleService
from novasvc.node.runtime import Runtime

_log = Logger()

_BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""


@implementer(IReplaceable, IInterruptible, IPreloading)
class HTTPService(LifecycleService):
    """The base class of services with one HTTP server.

    A subclass calls :meth:`_listen_on` in its constructor, and defines ``_begin``, ``_end`` and ``_make_factory``.

    :ivar runtime: settings, and the reactor.
    :ivar server: the :class:`~novasvc.node.stream_server.StreamServer`; it listens when ``_begin`` starts it.
    """

    runtime: Runtime
    server: Any
    replaceable = True
    preload: Sequence[str] = ()
    _title: str

    def _listen_on(self, title: str, address: str, port: int) -> None:
        """Make the server and the state machine; nothing is bound yet.

        :param title: of the service, in log lines and errors: "the API metadata".
        """
        # Twisted's endpoints import TLS, 12 MiB that nodes do not need, and they import the module of WSGIService.
        from novasvc.node.stream_server import StreamServer  # noqa: PLC0415

        settings = self.runtime.settings
        interface = address.replace(":", r"\:")  # of IPv6; a colon separates the arguments of an endpoint
        self._title = title
        self.server = StreamServer(
            f"tcp:{port}:interface={interface}:backlog={_BACKLOG}",
            self._make_factory,
            self.runtime.reactor,
            settings.graceful_shutdown_timeout,
            settings.tcp_keepidle,
        )
        self._lifecycle = Lifecycle(title, self._begin, self._end, self._entered)

    @property
    def port(self) -> int | None:
        """The port, as soon as it is bound."""
        port: int | None = self.server.port
        return port

    # -- preforked -----------------------------------------------------------------------------

    def open_sockets(self, held: Sequence[socket]) -> Sequence[socket]:
        """Bind the port; see :class:`~novasvc.interfaces.IPreforkable`."""
        sockets: Sequence[socket] = self.server.open_sockets(held)
        return sockets

    def adopt_sockets(self, sockets: Sequence[socket]) -> None:
        """Use the sockets of the supervisor; see :class:`~novasvc.interfaces.IPreforkable`."""
        self.server.adopt_sockets(sockets)

    def duplicate_sockets(self) -> Sequence[socket]:
        """Return duplicates of its sockets; see :class:`~novasvc.interfaces.IReplaceable`."""
        sockets: Sequence[socket] = self.server.duplicate_sockets()
        return sockets

    def superseded(self) -> None:
        """Note that a successor listens on the port; see :class:`~novasvc.interfaces.IReplaceable`."""
        self.server.superseded()

    # -- start and stop ------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Bind the port."""
        self.server.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Accept no more connections, and finish the requests in progress, up to graceful_shutdown_timeout.

        :return: Deferred[None], fired when it has stopped.
        """
        # The port may be bound even if the start has not begun.
        return super().stopService().addCallback(lambda _: self.server.stopService())

    def hurry(self) -> None:
        """Abort the remaining connections. Called while it stops."""
        self.server.hurry()

    def _start_error(self, step: str, error: BaseException) -> StartError:
        """Log why the start fails, and return the error to raise.

        :param step: what was tried: "listen".
        """
        known = isinstance(error, NovasvcError)
        failed = StartError(self._title, step, str(error) if known else describe(error))
        _log.critical("{error}", error=failed)
        if not known:
            _log.failure("traceback of the failed start", level=LogLevel.debug)
        return failed

    def _with_tls(self, site: Any, tls: Any) -> Any:
        """Return a factory, with TLS if there is a context for it."""
        if tls is None:
            return site
        from novasvc.http.tls import wrap  # noqa: PLC0415 - imports OpenSSL

        return wrap(site, tls, self.runtime.reactor)

    async def _begin(self) -> None:
        raise NotImplementedError

    async def _end(self) -> None:
        raise NotImplementedError

    def _entered(self, state: str) -> None:
        raise NotImplementedError

    def _make_factory(self) -> Any:
        raise NotImplementedError
