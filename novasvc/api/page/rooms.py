"""The rooms of the page, and what they share."""

from typing import Any

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.page.actions import Actions
from novasvc.api.page.assets import Assets
from novasvc.api.page.calls import call_node
from novasvc.api.page.events import Events
from novasvc.api.page.fleet import Fleet
from novasvc.api.page.frame import Frame
from novasvc.api.page.login import Login
from novasvc.api.page.node import NodePage
from novasvc.api.page.portrait import Portraits
from novasvc.api.page.rendering import Renderer
from novasvc.api.page.stream import Streams
from novasvc.api.page.view import Views
from novasvc.api.watch import Watch
from novasvc.registry.record import ServiceRecord


def make_page_rooms(backend: Backend, access: Access) -> dict[bytes, Any]:
    """Make the page; what it keeps running, runs while the backend is open.

    :return: resource by the first segment of its path.
    """

    async def read() -> list[ServiceRecord]:
        return await backend.registry.list(None, None, None)

    watch = Watch(read, backend.reactor, backend.settings.service_down_time)
    assets = Assets()
    renderer = Renderer(assets)
    frame = Frame(renderer, access)
    views = Views(watch)
    streams = Streams(watch, views, access, renderer, backend.reactor)

    async def describe(record: ServiceRecord) -> Any:
        return await call_node(backend, record, "describe")

    portraits = Portraits(describe, backend.reactor)
    backend.attend(watch)
    backend.attend(streams)
    login = Login(access, streams, frame, backend.reactor).app.resource()
    return {
        b"": Fleet(access, watch, views, frame).app.resource(),
        b"action": Actions(backend, access, watch, frame).app.resource(),
        b"node": NodePage(backend, access, watch, portraits, frame).app.resource(),
        b"login": login,
        b"logout": login,
        b"events": Events(access, watch, streams).app.resource(),
        b"static": assets.app.resource(),
    }
