"""Event streams: the updates of the page, as server-sent events."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.errors import APIError
from novasvc.api.page.overview import Overview
from novasvc.api.page.query import Query
from novasvc.api.page.rendering import Renderer
from novasvc.api.page.updates import make_update, read_id, version_id
from novasvc.api.page.view import Views
from novasvc.api.watch import Watch

_log = Logger()

MAX_VIEWERS = 64
"""Open streams in a process; more get 503, and poll."""
RETRY = 2.0
"""Seconds after which a browser reconnects."""
KEEPALIVE = 4.0
"""Seconds without an update after which a stream sends a keepalive message."""
STALLED = 20.0
"""Seconds after which a viewer that does not read is disconnected."""
_TURN = 0.01
"""Seconds of sending updates in one turn of the reactor."""


@implementer(IPushProducer)
@attrs.define(eq=False)
class Viewer:
    """An open stream.

    :param request: a twisted.web request whose response has not begun.
    :param query: the query of its page.
    :param known: the version and the number of the newest timeline entry that the viewer has.
    :param session: session id.
    :ivar ended: fires when the stream ends.
    """

    request: Any
    query: Query
    known: tuple[int, int]
    session: str
    _clock: IReactorTime
    ended: Deferred[bytes] = attrs.field(factory=Deferred, init=False)
    sent_at: float = attrs.field(default=0.0, init=False)
    paused_at: float | None = attrs.field(default=None, init=False)

    def pauseProducing(self) -> None:
        """Stop writing: the client does not read."""
        self.paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        """Write again, from the next update on."""
        self.paused_at = None

    def stopProducing(self) -> None:
        """Do nothing: the request notices the end of the connection itself."""

    def send(self, event: str, data: str, message_id: str = "") -> None:
        """Send one message.

        :param data: text without line breaks, which end a field of an event stream.
        """
        head = f"id: {message_id}\n" if message_id else ""
        self.request.write(f"{head}event: {event}\ndata: {data}\n\n".encode("utf-8", "replace"))
        self.sent_at = self._clock.seconds()


class EventStreams(Service):
    """The open streams.

    :param watch: the state of the fleet.
    :param views: the services of each query.
    :param overview: what is wrong.
    :param access: authorization, which is checked again before each update.
    """

    def __init__(
        self,
        watch: Watch,
        views: Views,
        overview: Overview,
        access: Access,
        renderer: Renderer,
        clock: IReactorTime,
    ) -> None:
        self._watch = watch
        self._views = views
        self._overview = overview
        self._access = access
        self._renderer = renderer
        self._clock = clock
        self._viewers: list[Viewer] = []
        self._unsubscribe: Callable[[], None] | None = None
        self._check: IDelayedCall | None = None
        self._pending: deque[Viewer] = deque()
        self._updates: dict[tuple[Query, tuple[int, int]], str] = {}
        self._sending: IDelayedCall | None = None

    def __len__(self) -> int:
        """Return the number of streams."""
        return len(self._viewers)

    def update(self, query: Query, since: str) -> dict[str, Any]:
        """Return the update for a client that polls."""
        return self._make(query, *read_id(self._watch, since))

    def open(self, request: Any, query: Query, since: str, session: str) -> Deferred[bytes]:
        """Open a stream, until the client disconnects or is not authorized any more.

        :param since: the id of the last message that the client has.
        :return: Deferred firing with b"" when the stream ends; twisted.web cancels it when the client disconnects.
        :raises APIError: 503, too many are open, or the API is stopping.
        """
        if len(self._viewers) >= MAX_VIEWERS or not self.running:
            problem = f"{MAX_VIEWERS} streams are open already" if self.running else "the API is stopping"
            raise APIError(503, f"{problem}; use poll=1", {"Retry-After": "10"})
        viewer = Viewer(request, query, read_id(self._watch, since), session, self._clock)
        viewer.ended = Deferred(lambda _: self._forget(viewer))
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        request.setHeader(b"x-accel-buffering", b"no")  # a proxy must not buffer the stream
        request.registerProducer(viewer, True)
        request.write(f"retry: {RETRY * 1000:.0f}\n\n".encode())
        self._viewers.append(viewer)
        if self._unsubscribe is None:
            self._unsubscribe = self._watch.subscribe(self._publish)
            self._check = self._clock.callLater(KEEPALIVE / 2, self._check_viewers)
        ended = viewer.ended
        self._send(viewer, {})
        return ended

    def end(self, session: str) -> None:
        """End the streams of a session."""
        for viewer in [viewer for viewer in self._viewers if viewer.session == session]:
            self._finish(viewer)

    def stopService(self) -> None:
        """End all streams: a server that stops waits for their end."""
        super().stopService()
        for viewer in [*self._viewers]:
            self._finish(viewer)

    def _publish(self) -> None:
        self._pending = deque(self._viewers)
        self._updates.clear()
        if self._sending is None:
            self._send_some()

    def _send_some(self) -> None:
        """Send updates for _TURN seconds, and the rest in the next turn of the reactor.

        Viewers with the same query and version share an update, so that only different ones take time.
        """
        self._sending = None
        ends = self._clock.seconds() + _TURN
        while self._pending and self._clock.seconds() <= ends:
            viewer = self._pending.popleft()
            if viewer in self._viewers:
                self._send(viewer, self._updates)
        if self._pending:
            self._sending = self._clock.callLater(0, self._send_some)

    def _send(self, viewer: Viewer, cache: dict[tuple[Query, tuple[int, int]], str]) -> None:
        if viewer.paused_at is not None:
            return  # it catches up with the first update after it resumes
        if not self._is_authorized(viewer):
            viewer.send("bye", "{}")
            self._finish(viewer)
            return
        key = viewer.query, viewer.known
        if key not in cache:
            cache[key] = json.dumps(self._make(viewer.query, *viewer.known))
        viewer.send("news", cache[key], version_id(self._watch))
        viewer.known = self._watch.version, self._watch.timeline.newest

    def _make(self, query: Query, since: int, last_entry: int) -> dict[str, Any]:
        view = self._views.view(query)
        return make_update(self._watch, view, self._overview, since, last_entry, self._renderer)

    def _is_authorized(self, viewer: Viewer) -> bool:
        try:
            self._access.require(viewer.request)
        except APIError:
            return False
        return True

    def _check_viewers(self) -> None:
        """Send keepalives, and disconnect viewers that do not read."""
        now = self._clock.seconds()
        self._check = self._clock.callLater(KEEPALIVE / 2, self._check_viewers)
        for viewer in [*self._viewers]:
            if viewer.paused_at is None:
                # A message, and not a comment of the protocol: scripts do not see comments, and the page has to notice
                # a silent server.
                if now - viewer.sent_at >= KEEPALIVE:
                    viewer.send("alive", json.dumps({"old": round(self._watch.age, 1)}))
            elif now - viewer.paused_at >= STALLED:
                _log.info(
                    "closing the event stream of {client}: the client has stopped reading",
                    client=viewer.request.getClientAddress(),
                )
                self._forget(viewer)
                viewer.request.transport.abortConnection()

    def _finish(self, viewer: Viewer) -> None:
        self._forget(viewer)
        viewer.request.unregisterProducer()
        viewer.ended.callback(b"")

    def _forget(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
        if not self._viewers and self._unsubscribe is not None and self._check is not None:
            self._unsubscribe()
            self._unsubscribe = None
            self._check.cancel()
            self._check = None
        if not self._viewers:
            self._pending.clear()
            if self._sending is not None:
                self._sending.cancel()
                self._sending = None
