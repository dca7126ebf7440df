"""The doors of the API: which room a path leads to, and what holds for all of them."""

from collections.abc import Mapping
from contextvars import copy_context
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.answers import answer_error
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.gateway import Gateway
from novasvc.api.health import Health
from novasvc.api.metrics import Metrics
from novasvc.api.openapi import OpenAPI
from novasvc.api.os_services import OSServices
from novasvc.api.page.rooms import make_page_rooms
from novasvc.api.versions import Front
from novasvc.context import RequestContext, current_context, new_request_id
from novasvc.http.head import Head
from novasvc.http.light import Handler, LightRequest

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Of every answer; a room may say otherwise."""


@implementer(IResource)
class Doors:
    """Leads each request to its room, by the first segment of its path.

    :param rooms: resource by segment.
    :param shortcuts: what answers GET of a path that is asked for often; see Note [Light requests].
    """

    isLeaf = True

    def __init__(self, rooms: Mapping[bytes, Any], shortcuts: Mapping[bytes, Handler] | None = None) -> None:
        self._rooms = rooms
        self._shortcuts = shortcuts or {}

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """Not called: a leaf has no children."""
        raise NotImplementedError

    def putChild(self, path: bytes, child: Any) -> None:
        """Not called: the rooms are given at once."""
        raise NotImplementedError

    def render(self, request: Any) -> Any:
        """Let a room answer, with the request's id in what it logs."""
        context = _receive(request)
        try:
            unquote_to_bytes(request.path).decode()
        except UnicodeDecodeError:  # Klein would answer in HTML, and log it as an error of ours
            return answer_error(request, Failure(APIError(400, "the path is no text in UTF-8")))
        segment = request.path.split(b"/", 2)[1] if request.path.startswith(b"/") else b""
        room = self._rooms.get(segment)
        if room is None:
            path = request.path.decode("latin-1")[:200]
            return answer_error(request, Failure(APIError(404, f"there is nothing at {path}; see /openapi.json")))

        request.route = f"/{segment.decode()}"  # in the figures of HTTP; a room may be more precise

        def render() -> Any:
            current_context.set(context)
            return room.render(request)

        return copy_context().run(render)

    def shortcut(self, head: Head) -> Handler | None:
        """Return what answers a request the short way, if anything does. Called by the site."""
        handler = self._shortcuts.get(head.path) if head.method == b"GET" else None
        if handler is None:
            return None

        def answer(request: LightRequest) -> Deferred[bytes]:
            current_context.set(_receive(request))
            return handler(request)

        return answer


def _receive(request: Any) -> RequestContext:
    """Give a request its id, and its answer the headers of all."""
    context = RequestContext(request_id=new_request_id())
    request.request_id = context.request_id
    for name, value in _HEADERS.items():
        request.setHeader(name, value)
    request.setHeader(b"x-openstack-request-id", context.request_id.encode())
    return context


def make_doors(backend: Backend, access: Access) -> Doors:
    """Make the rooms and the doors to them."""
    health = Health(backend, access).app.resource()
    rooms: dict[bytes, Any] = {
        b"healthz": health,
        b"readyz": health,
        b"metrics": Metrics(backend, access).app.resource(),
        b"v1": Gateway(backend, access).app.resource(),
        b"openapi.json": OpenAPI().app.resource(),
    }
    rooms |= make_page_rooms(backend, access)
    rooms[b""] = Front(rooms[b""])
    os_services = OSServices(backend, access)
    rooms[b"v2"] = rooms[b"v2.1"] = os_services.app.resource()
    return Doors(rooms, {b"/v2.1/os-services": os_services.answer_light})
