"""``/asyncapi.json``: the AsyncAPI 3 description of the services' methods, as live nodes describe them."""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.openapi import content, operation
from novasvc.api.responses import json_response, make_app
from novasvc.context import RequestContext
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.rpc.contracts.asyncapi import make_asyncapi

_TIMEOUT = 3.0
"""Seconds in which a node has to answer."""
_TTL = 10.0
"""Seconds for which a document is cached."""
_MAX_TOPICS = 200
"""Topics of a document; they are asked at the same time."""
_MAX_TEXT = 500
"""Characters of an error in a document."""

# Note [Who may read it]
#
# /openapi.json is public: it is the same for everybody who has novasvc. This document has what the users' own services
# offer, as their pages have, so it needs the scope that the pages need. Each topic that the registry knows is asked,
# any node of it, within a few seconds; a topic that does not answer is named. Concurrent requests share one document.


class AsyncAPI:
    """Serves ``/asyncapi.json``, for callers with the scope read. See Note [Who may read it]."""

    app = make_app()

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._cache = CoalescingCache(
            lambda: Deferred.fromCoroutine(self._make()), backend.reactor, ttl=lambda _document: _TTL
        )

    @app.route("/asyncapi.json", methods=["GET", "HEAD"])
    @operation(
        "The RPC methods of all services",
        {200: content("AsyncAPI 3.0; x-novasvc-unanswered names what is missing.", json={"type": "object"})},
        *(401, 403, 500, 503),
    )
    async def document(self, request: Any) -> bytes:
        """Return the document."""
        self._access.require(request)
        return json_response(request, await self._cache.get())

    async def _make(self) -> dict[str, Any]:
        records = await self._backend.registry.list(None, None, None)
        topics = sorted({record.topic for record in records if record.topic})
        unanswered = dict.fromkeys(topics[_MAX_TOPICS:], f"a document has at most {_MAX_TOPICS} topics")
        asked = topics[:_MAX_TOPICS]
        client = self._backend.client.prepare(
            topic="any", namespace="node", version="1.1", timeout=_TIMEOUT, idempotent=True
        )
        asking = [client.prepare(topic=topic).call(RequestContext.admin(), "interface") for topic in asked]
        results = await gatherResults([each.addErrback(_as_text) for each in asking])
        answers = []
        for topic, result in zip(asked, results, strict=True):
            if isinstance(result, dict):
                # The topic of the registry, not that of the answer, which may be anything.
                answers.append({**result, "topic": topic})
            else:
                unanswered[topic] = result if isinstance(result, str) else "it describes itself wrongly"
        return make_asyncapi(answers, unanswered=unanswered, exchange=self._backend.settings.control_exchange)


def _as_text(failure: Any) -> str:
    failure.trap(Exception)
    if failure.check(CancelledError):
        failure.raiseException()
    return failure.getErrorMessage()[:_MAX_TEXT] or failure.type.__name__  # type: ignore[no-any-return]
