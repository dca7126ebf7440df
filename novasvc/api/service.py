"""The API as a service: it listens, and stands on the legs of its process."""

from collections.abc import Callable, Iterable, Sequence
from socket import socket
from typing import Any

import attrs
from twisted.application import service
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.health import OwnHealth
from novasvc.api.logins import Logins, login_url, page_url
from novasvc.api.sessions import Sessions, session_key
from novasvc.api.site import make_doors
from novasvc.api.tokens import Token, read_tokens
from novasvc.config import Settings
from novasvc.errors import NovasvcError, StartError, describe
from novasvc.http import AccessLog, make_site
from novasvc.http.limits import limits_of
from novasvc.interfaces import IHealthy, IReplaceable, IStartable
from novasvc.node.lifecycle import Lifecycle
from novasvc.node.runtime import Runtime
from novasvc.node.stream_server import StreamServer
from novasvc.telemetry import flight

_log = Logger()

_BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted."""


@implementer(IStartable, IReplaceable, IHealthy)
class APIService(service.Service):
    """Serves the API of ``twistd novasvc --api``, in one process, or in as many workers as share its port.

    :param runtime: settings, reactor, and the ways to the broker and the database.
    :param beside: returns the services of this process, for health and metrics.
    :param keys: what was read of tokens and TLS; None reads it.
    :raises SettingError: its tokens cannot be read, or not what it needs for TLS.
    """

    name = "api"
    replaceable = True
    preload = ("novasvc.http", "werkzeug.routing", "jinja2", "prometheus_client")  # not klein: it wants a reactor

    def __init__(
        self,
        runtime: Runtime,
        beside: Callable[[], Iterable[IService]] = tuple,
        keys: "Keys | None" = None,
    ) -> None:
        settings = runtime.settings
        self.runtime = runtime
        self._keys = keys or read_keys(settings)
        self.backend = Backend(runtime, beside)
        self._health = OwnHealth(self.backend)
        self.logins = Logins.of(settings)
        host = settings.api_listen.replace(":", r"\:")
        self._server = StreamServer(
            f"tcp:{settings.api_listen_port}:interface={host}:backlog={_BACKLOG}",
            self._make_factory,
            runtime.reactor,
            settings.graceful_shutdown_timeout,
            settings.tcp_keepidle,
        )
        self._lifecycle = Lifecycle("the API", self._begin, self._end, self._entered)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled as what it is made of; in a worker there is nothing beside it."""
        return APIService, (self.runtime, tuple, self._keys)

    @property
    def port(self) -> int | None:
        """The port that it listens on, as soon as it is bound."""
        return self._server.port

    @property
    def url(self) -> str:
        """Where a browser on this host finds it."""
        return page_url(self.runtime.settings, self.port)

    @property
    def login_url(self) -> str:
        """A link that logs one browser in, once; where everybody is let in, the page itself."""
        return login_url(self.runtime.settings, self.logins, self.port) if self._keys.tokens else self.url

    def open_sockets(self, held: Sequence[socket]) -> Sequence[socket]:
        """Listen; see :class:`~novasvc.interfaces.IPreforkable`."""
        return self._server.open_sockets(held)

    def adopt_sockets(self, sockets: Sequence[socket]) -> None:
        """Take the sockets of the supervisor; see :class:`~novasvc.interfaces.IPreforkable`."""
        self._server.adopt_sockets(sockets)

    def duplicate_sockets(self) -> Sequence[socket]:
        """Return copies of its sockets; see :class:`~novasvc.interfaces.IReplaceable`."""
        return self._server.duplicate_sockets()

    def superseded(self) -> None:
        """See that another listens here; see :class:`~novasvc.interfaces.IReplaceable`."""
        self._server.superseded()

    def privilegedStartService(self) -> None:
        """Bind the port."""
        super().privilegedStartService()
        self._server.privilegedStartService()

    def startService(self) -> None:
        """Begin to start; :meth:`when_started` tells the outcome, and so does the log."""
        super().startService()
        self._lifecycle.start().addErrback(lambda _: None)

    def when_started(self) -> Deferred[None]:
        """Wait until it listens; see :class:`~novasvc.interfaces.IStartable`."""
        return self._lifecycle.when_started()

    def stopService(self) -> Deferred[None]:
        """Finish the requests under way, and let go of broker and database.

        :return: Deferred[None], fired when that is done.
        """
        super().stopService()
        # One that has not begun to start may be bound already, too.
        return self._lifecycle.stop().addCallback(lambda _: self._server.stopService())

    def _entered(self, state: str) -> None:
        flight.note("api", state)
        _log.info("the API is {state}", state=state)

    async def _begin(self) -> None:
        # Who connects meanwhile waits in the kernel, and is not refused for what is there a moment later.
        await self.backend.open()
        try:
            self._server.startService()
        except Exception as error:
            known = isinstance(error, NovasvcError)
            failed = StartError("the API", "listen", str(error) if known else describe(error))
            _log.critical("{error}", error=failed)
            if not known:
                _log.failure("where it was raised", level=LogLevel.debug)
            raise failed from error

    async def _end(self) -> None:
        try:
            await self.backend.dismiss()
            await self._server.stopService()
        finally:
            await self.backend.close()

    def health(self) -> Deferred[dict[str, Any]]:
        """Tell how the API does; see :class:`~novasvc.interfaces.IHealthy`."""
        return Deferred.fromCoroutine(self._health.tell())

    def hurry(self) -> None:
        """Cut the connections that are left. Called when it was told to stop."""
        self._server.hurry()

    def _make_factory(self) -> Any:
        settings, reactor = self.runtime.settings, self.runtime.reactor
        sessions = Sessions(session_key(settings.state_dir), reactor.seconds)
        names = frozenset({"localhost", "127.0.0.1", "::1", settings.api_listen.lower()})
        access = Access(self._keys.tokens, sessions, self.logins, names if settings.api_is_local else frozenset())
        site = make_site(
            make_doors(self.backend, access),
            limits=limits_of(settings),
            reactor=reactor,
            log=AccessLog(settings.wsgi_log_format) if settings.wsgi_log_format else None,
            name=self.name,
        )
        if self._keys.tls is None:
            return site
        from novasvc.http.tls import wrap  # noqa: PLC0415 - imports OpenSSL

        return wrap(site, self._keys.tls, reactor)


@attrs.frozen
class Keys:
    """What is read when the API is made. All its workers get it by pickle, and so answer alike.

    :param tokens: who may ask; nobody needs one if there are none.
    :param tls: the certificate, or None.
    """

    tokens: list[Token]
    tls: Any


def read_keys(settings: Settings) -> Keys:
    """Read tokens and certificate.

    :raises SettingError: they cannot be read.
    """
    tokens = [] if settings.api_token_file is None else read_tokens(settings.api_token_file)
    if not settings.api_use_ssl:
        return Keys(tokens, None)
    from novasvc.http.tls import make_tls  # noqa: PLC0415 - imports OpenSSL

    return Keys(tokens, make_tls(settings.ssl_cert_file, settings.ssl_key_file, settings.ssl_ca_file))
