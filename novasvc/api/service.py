"""The API as a Twisted service."""

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.health import APIHealth
from novasvc.api.login_links import LoginLinks, login_url, page_url
from novasvc.api.sessions import Sessions, session_key
from novasvc.api.site import make_api_root
from novasvc.api.tokens import Token, read_tokens
from novasvc.config import Settings
from novasvc.http import AccessLog, make_site
from novasvc.http.limits import limits_from_settings
from novasvc.interfaces import IHealthy, ISpecified, IWebPage
from novasvc.node.http_service import HTTPService
from novasvc.node.runtime import Runtime
from novasvc.telemetry import flight
from novasvc.workers.specification import ServiceSpecification

_log = Logger()


@implementer(IHealthy, ISpecified, IWebPage)
class APIService(HTTPService):
    """Serves the API of ``twistd novasvc --api``, in one process, or in several workers that share the port.

    :param runtime: settings, reactor, and the connections to the broker and the database.
    :param local_services: returns the services of this process, for health and metrics.
    :param credentials: tokens and TLS certificate; None reads their files.
    :raises SettingError: a file of tokens or of TLS cannot be used.
    """

    name = "api"
    preload = ("novasvc.http", "werkzeug.routing", "jinja2", "prometheus_client")  # not klein: it imports the reactor

    def __init__(
        self,
        runtime: Runtime,
        local_services: Callable[[], Iterable[IService]] = tuple,
        credentials: "Credentials | None" = None,
    ) -> None:
        settings = runtime.settings
        self.runtime = runtime
        self._credentials = credentials or read_credentials(settings)
        self.backend = Backend(runtime, local_services)
        self._health = APIHealth(self.backend)
        self.login_links = LoginLinks.of(settings)
        self._listen_on("the API", settings.api_listen, settings.api_listen_port)

    def specification(self) -> ServiceSpecification:
        """Return what a worker makes the API of; see :class:`~novasvc.interfaces.ISpecified`."""
        return ServiceSpecification(APIService, (self.runtime, tuple, self._credentials))  # no other services there

    @property
    def url(self) -> str:
        """The URL of the page, for a browser on this host."""
        return page_url(self.runtime.settings, self.port)

    @property
    def login_url(self) -> str:
        """A link that logs one browser in, once; the URL of the page if authentication is disabled."""
        return login_url(self.runtime.settings, self.login_links, self.port) if self._credentials.tokens else self.url

    def _entered(self, state: str) -> None:
        flight.note("api", state)
        _log.info("the API is {state}", state=state)

    async def _begin(self) -> None:
        # Clients that connect meanwhile wait in the kernel, and do not get a 503 for a connection that is made a
        # moment later.
        await self.backend.open()
        try:
            self.server.startService()
        except Exception as error:
            raise self._start_error("listen", error) from error

    async def _end(self) -> None:
        try:
            await self.backend.stop_services()
            await self.server.stopService()
        finally:
            await self.backend.close()

    def health(self) -> Deferred[dict[str, Any]]:
        """Return the health of the API; see :class:`~novasvc.interfaces.IHealthy`."""
        return Deferred.fromCoroutine(self._health.report())

    def _make_factory(self) -> Any:
        settings, reactor = self.runtime.settings, self.runtime.reactor
        sessions = Sessions(session_key(settings.state_dir), reactor.seconds)
        allowed_hosts = frozenset({"localhost", "127.0.0.1", "::1", settings.api_listen.lower()})
        access = Access(
            self._credentials.tokens,
            sessions,
            self.login_links,
            allowed_hosts if settings.api_is_local else frozenset(),
        )
        site = make_site(
            make_api_root(self.backend, access),
            limits=limits_from_settings(settings),
            reactor=reactor,
            log=AccessLog(settings.wsgi_log_format) if settings.wsgi_log_format else None,
            name=self.name,
            middleware=self.runtime.middleware,
        )
        return self._with_tls(site, self._credentials.tls)


@attrs.frozen
class Credentials:
    """The contents of the files of tokens and TLS. They are read once, and pickled, so that all workers have the same.

    :param tokens: those that are accepted; empty disables authentication.
    :param tls: the certificate, or None.
    """

    tokens: list[Token]
    tls: Any


def read_credentials(settings: Settings) -> Credentials:
    """Read the files of tokens and TLS.

    :raises SettingError: one of them cannot be used.
    """
    tokens = [] if settings.api_token_file is None else read_tokens(settings.api_token_file)
    if not settings.api_use_ssl:
        return Credentials(tokens, None)
    from novasvc.http.tls import make_tls  # noqa: PLC0415 - imports OpenSSL

    return Credentials(tokens, make_tls(settings.ssl_cert_file, settings.ssl_key_file, settings.ssl_ca_file))
