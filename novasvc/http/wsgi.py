"""The site of a WSGI application (PEP 3333)."""

from collections.abc import Iterable, Mapping
from typing import Any

from novasvc.http.access_log import AccessLog
from novasvc.http.around import AroundRequests
from novasvc.http.channel import LimitedChannel
from novasvc.http.environ import ErrorLog, server_environ
from novasvc.http.head import Head
from novasvc.http.limits import Limits
from novasvc.http.site import Site
from novasvc.http.threadpool import QUEUE, THREADS, ThreadPool
from novasvc.http.wsgi_request import App, WSGIRequest
from novasvc.telemetry import metrics


class WSGISite(Site):
    """A site with one WSGI application for all requests.

    :param app: the application.
    :param threads: requests that it answers at a time.
    :param queue: requests that may wait for a thread; more get 503.
    :param multiprocess: whether other processes serve the same application.
    :param environ: further entries of each request's environ.
    :param middleware: what :func:`novasvc.middleware.load_middleware` takes, outermost first, around requests.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        reactor: Any,
        log: AccessLog | None = None,
        name: str = "wsgi",
        threads: int = THREADS,
        queue: int = QUEUE,
        multiprocess: bool = False,
        environ: Mapping[str, Any] | None = None,
        middleware: Iterable[Any] = (),
    ) -> None:
        super().__init__(None, limits=limits, reactor=reactor, log=log, name=name)
        self.around = AroundRequests.of(middleware, name)
        self.app = app
        self.pool = ThreadPool(reactor, threads=threads, queue=queue)
        self._common = {
            **(environ or {}),
            "wsgi.multiprocess": multiprocess,
            "wsgi.errors": ErrorLog(self.pool.reactor_queue, name),
        }

    def make_request(self, channel: LimitedChannel, head: Head) -> WSGIRequest:
        """Make the request of a head; see :class:`~novasvc.http.channel.LimitedChannel`."""
        metrics.request_begins(self.name)
        if channel.common is None:
            transport = channel.transport
            common = server_environ(transport.getHost(), transport.getPeer(), secure=channel.secure)
            channel.common = common | self._common
        return WSGIRequest(self, channel, head)
