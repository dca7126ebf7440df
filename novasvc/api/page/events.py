"""``/events``: updates of the page."""

from typing import Any

from novasvc.api.access import Access
from novasvc.api.openapi import STRING, content, operation, parameter
from novasvc.api.page.query import Query
from novasvc.api.page.stream import EventStreams
from novasvc.api.responses import json_response, make_app
from novasvc.api.watch import Watch


class Events:
    """Serves ``/events``.

    :param access: authorization.
    :param watch: the state of the fleet.
    :param streams: the open streams.
    """

    app = make_app()

    def __init__(self, access: Access, watch: Watch, streams: EventStreams) -> None:
        self._access = access
        self._watch = watch
        self._streams = streams

    @app.route("/events", methods=["GET"])
    @operation(
        "Updates for the page, as server-sent events",
        {
            200: content(
                "The format is internal to the page, and may change.", event_stream=STRING, json={"type": "object"}
            )
        },
        *(400, 401, 403, 503),
        parameters=[parameter("poll", "query", '"1" returns one update as JSON.')],
    )
    async def events(self, request: Any) -> bytes:
        """Send updates as server-sent events, or one update as JSON with ``poll=1``.

        The other query parameters are those of the page.
        """
        caller = self._access.require(request)
        query = Query.read(request.args)
        since = request.getHeader(b"last-event-id") or request.args.get(b"since", [b""])[0]
        known = since.decode("latin-1")[:100]
        if request.args.get(b"poll"):
            await self._watch.wait_fresh()
            return json_response(request, self._streams.update(query, known))
        if request.method == b"HEAD":
            return b""  # the stream would have no body, but stay open
        return await self._streams.open(request, query, known, caller.session)
