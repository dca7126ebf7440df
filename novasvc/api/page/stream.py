"""News of the fleet, as server-sent events, or for who asks again and again."""

import json
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.errors import APIError
from novasvc.api.page.query import Query
from novasvc.api.page.rendering import Renderer
from novasvc.api.page.view import View, Views
from novasvc.api.watch import Watch

_log = Logger()

VIEWERS = 64
"""Streams that are open at a time in a process."""
RETRY = 2.0
"""Seconds after which a browser comes back."""
QUIET = 4.0
"""Seconds without news after which a stream says that it lives."""
PATIENCE = 20.0
"""Seconds that a viewer may take nothing, until it is let go."""
_TURN = 0.01
"""Seconds for which viewers are told in one turn of the reactor."""
_SHOWN = 30
"""Entries of the timeline that are told at most."""

# Note [News of a fleet]
#
# A message tells what differs from a version of the watch that the viewer has: its id. So a viewer
# that was away, or did not listen for a while, is told in one message, and nothing is kept for it; one that
# has another epoch's id, of a process that is gone, is told everything. "layout" is a digest of what
# cells there are, in which order: where it is not the page's, the page loads the grid again.
# "alive" is a message and not a comment, as a page does not see comments, and has to know when the server is silent.


def make_news(watch: Watch, view: View, since: int, last_entry: int, renderer: Renderer) -> dict[str, Any]:
    """Return what is new for a viewer. See Note [News of a fleet].

    :param view: what the viewer looks at.
    :param since: the version that it knows; 0 is nothing.
    :param last_entry: the newest entry of the timeline that it has.
    :return: JSON: {"id": str, "old": seconds or None, "trouble": str, "totals": {name: int}, "layout": str,
        "cells": [[id, state, disabled, age], ...], "entry": int, "entries": HTML of those that are new, newest first}.
    """
    fresh = [*islice(watch.timeline.after(last_entry), _SHOWN)] if since else []
    return {
        "id": version_id(watch),
        "old": round(watch.age, 1) if watch.version else None,
        "trouble": watch.trouble,
        "totals": attrs.asdict(watch.totals),
        "layout": view.layout,
        "cells": [
            [sight.record.id, sight.state, sight.record.disabled, round(watch.age_of(sight), 1)]
            for sight in view.sights
            if sight.changed > since
        ],
        "entry": watch.timeline.newest,
        "entries": renderer.text("entries.html", entries=fresh) if fresh else "",
    }


def version_id(watch: Watch) -> str:
    """Return what a viewer knows, for it to say later."""
    return f"{watch.epoch}-{watch.version}-{watch.timeline.newest}"


def read_id(watch: Watch, text: str) -> tuple[int, int]:
    """Return the version and the newest entry that a viewer says it knows; 0 and 0 if that is nothing of ours."""
    epoch, _, rest = text.partition("-")
    version, _, entry = rest.partition("-")
    if epoch != watch.epoch or not all(part.isascii() and part.isdecimal() for part in (version, entry)):
        return 0, 0
    known, newest = int(version[:18]), int(entry[:18])
    return (known, newest) if known <= watch.version else (0, 0)


@implementer(IPushProducer)
@attrs.define(eq=False)
class Viewer:
    """An open stream.

    :param request: of twisted.web; nothing was written yet.
    :param query: what it looks at.
    :param known: version and newest entry that it has.
    :param session: whose it is.
    """

    request: Any
    query: Query
    known: tuple[int, int]
    session: str
    _clock: IReactorTime
    over: Deferred[bytes] = attrs.field(factory=Deferred, init=False)
    told_at: float = attrs.field(default=0.0, init=False)
    paused_at: float | None = attrs.field(default=None, init=False)

    def pauseProducing(self) -> None:
        """Write no more: what was written is not taken."""
        self.paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        """Go on."""
        self.paused_at = None

    def stopProducing(self) -> None:
        """Do nothing: the request says itself that it is over."""

    def tell(self, event: str, data: str, number: str = "") -> None:
        """Write one message.

        :param data: one line.
        """
        head = f"id: {number}\n" if number else ""
        self.request.write(f"{head}event: {event}\ndata: {data}\n\n".encode("utf-8", "replace"))
        self.told_at = self._clock.seconds()


class Streams(Service):
    """The streams that are open.

    :param watch: what there is to tell.
    :param views: the ways to look at it.
    :param access: sees that a viewer may still look.
    """

    def __init__(self, watch: Watch, views: Views, access: Access, renderer: Renderer, clock: IReactorTime) -> None:
        self._watch = watch
        self._views = views
        self._access = access
        self._renderer = renderer
        self._clock = clock
        self._viewers: list[Viewer] = []
        self._ignore: Callable[[], None] | None = None
        self._look: IDelayedCall | None = None
        self._untold: deque[Viewer] = deque()
        self._told: dict[tuple[Query, tuple[int, int]], str] = {}
        self._telling: IDelayedCall | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._viewers)

    def news(self, query: Query, since: str) -> dict[str, Any]:
        """Return what is new, for who asks again and again."""
        return make_news(self._watch, self._views.look(query), *read_id(self._watch, since), self._renderer)

    def open(self, request: Any, query: Query, since: str, session: str) -> Deferred[bytes]:
        """Begin to tell somebody, until they go, or are not let in any more.

        :param since: the id that they know.
        :return: fired with nothing when it is over; cancelled when they are gone.
        :raises APIError: 503, there are too many, or the API stops.
        """
        if len(self._viewers) >= VIEWERS or not self.running:
            problem = f"{VIEWERS} pages are live already" if self.running else "the API stops"
            raise APIError(503, f"{problem}; ask with poll=1", {"Retry-After": "10"})
        viewer = Viewer(request, query, read_id(self._watch, since), session, self._clock)
        viewer.over = Deferred(lambda _: self._forget(viewer))
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        request.setHeader(b"x-accel-buffering", b"no")  # a proxy is not to collect what should be seen at once
        request.registerProducer(viewer, True)
        request.write(f"retry: {RETRY * 1000:.0f}\n\n".encode())
        self._viewers.append(viewer)
        if self._ignore is None:
            self._ignore = self._watch.listen(self._tell_all)
            self._look = self._clock.callLater(QUIET / 2, self._look_after)
        over = viewer.over
        self._tell(viewer, {})
        return over

    def end(self, session: str) -> None:
        """End the streams of a session."""
        for viewer in [viewer for viewer in self._viewers if viewer.session == session]:
            self._finish(viewer)

    def stopService(self) -> None:
        """End all streams: whoever stops a server waits for them."""
        super().stopService()
        for viewer in [*self._viewers]:
            self._finish(viewer)

    def _tell_all(self) -> None:
        self._untold = deque(self._viewers)
        self._told.clear()
        if self._telling is None:
            self._tell_some()

    def _tell_some(self) -> None:
        """Tell viewers for a moment; others, who look in other ways, when the reactor has done something else."""
        self._telling = None
        ends = self._clock.seconds() + _TURN
        while self._untold and self._clock.seconds() <= ends:
            viewer = self._untold.popleft()
            if viewer in self._viewers:
                self._tell(viewer, self._told)
        if self._untold:
            self._telling = self._clock.callLater(0, self._tell_some)

    def _tell(self, viewer: Viewer, cache: dict[tuple[Query, tuple[int, int]], str]) -> None:
        if viewer.paused_at is not None:
            return  # it hears all at once, when it listens again
        if not self._may_look(viewer):
            viewer.tell("bye", "{}")
            self._finish(viewer)
            return
        key = viewer.query, viewer.known
        if key not in cache:
            view = self._views.look(viewer.query)
            cache[key] = json.dumps(make_news(self._watch, view, *viewer.known, self._renderer))
        viewer.tell("news", cache[key], version_id(self._watch))
        viewer.known = self._watch.version, self._watch.timeline.newest

    def _may_look(self, viewer: Viewer) -> bool:
        try:
            self._access.require(viewer.request)
        except APIError:
            return False
        return True

    def _look_after(self) -> None:
        """Say to the quiet ones that we live, and let go of those who take nothing."""
        now = self._clock.seconds()
        self._look = self._clock.callLater(QUIET / 2, self._look_after)
        for viewer in [*self._viewers]:
            if viewer.paused_at is None:
                if now - viewer.told_at >= QUIET:
                    viewer.tell("alive", json.dumps({"old": round(self._watch.age, 1)}))
            elif now - viewer.paused_at >= PATIENCE:
                _log.info("a page that takes no news is let go: {client}", client=viewer.request.getClientAddress())
                self._forget(viewer)
                viewer.request.transport.abortConnection()

    def _finish(self, viewer: Viewer) -> None:
        self._forget(viewer)
        viewer.request.unregisterProducer()
        viewer.over.callback(b"")

    def _forget(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
        if not self._viewers and self._ignore is not None and self._look is not None:
            self._ignore()
            self._ignore = None
            self._look.cancel()
            self._look = None
        if not self._viewers:
            self._untold.clear()
            if self._telling is not None:
                self._telling.cancel()
                self._telling = None
