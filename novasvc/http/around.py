"""Middleware around HTTP requests, from the complete request to the end of its response."""

from collections.abc import Iterable
from typing import IO, Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.http.errors import FAILED, HTTPError, reason_phrase
from novasvc.middleware import Chain, Invocation, load_middleware
from novasvc.middleware.invocation import HTTP

_log = Logger()

_ERRORS = range(400, 600)
"""Statuses with which a middleware may answer in place of the application."""


@attrs.define(eq=False)
class _Wrapped:
    """A request within the chain.

    :ivar ended: fires with the status at the end of the response; 0 if the client has disconnected.
    :ivar begun: whether the request has reached the application.
    :ivar gone: whether the response, or the connection, has ended.
    """

    ended: Deferred[int] = attrs.field(factory=Deferred, init=False)
    begun: bool = attrs.field(default=False, init=False)
    gone: bool = attrs.field(default=False, init=False)
    running: Deferred[Any] | None = attrs.field(default=None, init=False)


class AroundRequests:
    """Passes the requests of one server through its middleware.

    :param chain: the middleware.
    :param name: of the server.
    """

    def __init__(self, chain: Chain, name: str) -> None:
        self._chain = chain
        self._name = name
        self._wrapped: dict[Any, _Wrapped] = {}

    @classmethod
    def of(cls, middleware: Iterable[Any], name: str) -> "AroundRequests | None":
        """Return None if no middleware wraps requests.

        :raises MiddlewareError: a middleware cannot be used.
        """
        chain = Chain.of(load_middleware(middleware), HTTP)
        return None if chain is None else cls(chain, name)

    def serve(self, channel: Any, request: Any, content: IO[bytes] | None) -> None:
        """Pass a complete request through the chain.

        :param channel: of the request; rejects the request if a middleware fails before the application begins.
        """
        wrapped = self._wrapped[request] = _Wrapped()

        def begin(_: Invocation) -> Deferred[int]:
            if wrapped.gone:  # a middleware that goes on after its cancellation
                raise CancelledError
            wrapped.begun = True
            request.received(content)
            return wrapped.ended

        def end(result: Any) -> None:
            self._wrapped.pop(request, None)
            if not wrapped.begun and content is not None:
                content.close()
            if isinstance(result, Failure):
                self._failed(channel, wrapped, result)
            elif not wrapped.begun and not wrapped.gone:
                known = isinstance(result, int) and result in _ERRORS
                error = HTTPError(result, reason_phrase(result).lower()) if known else HTTPError(500, FAILED)
                if not known:
                    _log.error(
                        "{app}: a middleware answered a request with {answer!r}; the status of an error is needed",
                        app=self._name,
                        answer=result,
                    )
                channel.reject_received(error)

        wrapped.running = self._chain.run(self._invocation(request), begin)
        wrapped.running.addBoth(end)

    def ended(self, request: Any, status: int) -> None:
        """Note the end of a response, or of the connection before that: of each request, once.

        :param status: 0 if the client disconnected before the response.
        """
        wrapped = self._wrapped.pop(request, None)
        if wrapped is None:
            return
        wrapped.gone = True
        if wrapped.begun:
            wrapped.ended.callback(status)
        elif wrapped.running is not None:
            wrapped.running.cancel()

    def _failed(self, channel: Any, wrapped: _Wrapped, failure: Failure) -> None:
        if wrapped.gone and failure.check(CancelledError):
            return
        _log.failure("{app}: the middleware around a request failed", failure, app=self._name)
        if not wrapped.begun and not wrapped.gone:
            channel.reject_received(HTTPError(500, FAILED))

    def _invocation(self, request: Any) -> Invocation:
        head = request.head
        headers: dict[str, str] = {}
        for name, value in head.headers:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        args = {"path": head.path.decode("latin-1"), "query": head.query.decode("latin-1"), "server": self._name}
        return Invocation(kind=HTTP, name=head.method.decode("ascii"), args=args, headers=headers)
