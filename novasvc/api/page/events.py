"""Where a page hears what is new."""

from typing import Any

from klein import Klein
from twisted.python.failure import Failure

from novasvc.api.access import Access
from novasvc.api.answers import answer_error, answer_json
from novasvc.api.page.query import Query
from novasvc.api.page.stream import Streams
from novasvc.api.watch import Watch


class Events:
    """Serves ``/events``.

    :param access: who may look.
    :param watch: what there is to see.
    :param streams: those who look.
    """

    app = Klein()

    def __init__(self, access: Access, watch: Watch, streams: Streams) -> None:
        self._access = access
        self._watch = watch
        self._streams = streams

    @app.route("/events", methods=["GET"])
    async def tell(self, request: Any) -> bytes:
        """Tell what is new: as a stream, or once with ``poll=1``. The query is the page's own."""
        caller = self._access.require(request)
        query = Query.read(request.args)
        since = request.getHeader(b"last-event-id") or request.args.get(b"since", [b""])[0]
        known = since.decode("latin-1")[:100]
        if request.args.get(b"poll"):
            await self._watch.fresh()
            return answer_json(request, self._streams.news(query, known))
        if request.method == b"HEAD":
            return b""  # a stream without a body would stay open for nothing
        return await self._streams.open(request, query, known, caller.session)

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return answer_error(request, failure)
