"""The resources of the page, and what they share."""

from functools import partial
from typing import Any

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.fleet_reader import FleetReader
from novasvc.api.page.actions import ActionPages
from novasvc.api.page.assets import Assets
from novasvc.api.page.bulk import BulkPages
from novasvc.api.page.calls import call_node
from novasvc.api.page.description import NodeDescriptions
from novasvc.api.page.events import Events
from novasvc.api.page.fleet import FleetPage
from novasvc.api.page.leases import LeasesPage
from novasvc.api.page.login import LoginPage
from novasvc.api.page.node import NodePage
from novasvc.api.page.overview import Overview
from novasvc.api.page.pages import Pages
from novasvc.api.page.problems import Problems, find_problems
from novasvc.api.page.query import Query
from novasvc.api.page.rendering import Renderer
from novasvc.api.page.reports import Reports
from novasvc.api.page.stream import EventStreams
from novasvc.api.page.view import Views
from novasvc.api.service_status import Assessment, assess
from novasvc.api.watch import Watch
from novasvc.registry.lease import Lease
from novasvc.registry.record import ServiceRecord

PAGE_APPS = tuple(
    resource.app for resource in (FleetPage, NodePage, LeasesPage, ActionPages, BulkPages, LoginPage, Events, Assets)
)
"""The Klein apps of the page, for its description."""


def make_page_resources(backend: Backend, access: Access) -> dict[bytes, Any]:
    """Make the resources of the page; their services run while the backend is open.

    :return: resources by the first segment of their paths.
    """
    reader = FleetReader(backend)

    def assess_row(record: ServiceRecord) -> Assessment:
        return assess(record, reader.verdict(record))

    watch = Watch(reader.read, backend.reactor, assess_row, backend.settings.api_watch_interval)
    assets = Assets()
    renderer = Renderer(assets)
    pages = Pages(renderer, access)
    views = Views(watch)

    async def ask_troubles(record: ServiceRecord) -> Any:
        return await call_node(backend, record, "troubles")

    async def read_leases() -> list[Lease]:
        return await backend.registry.list_leases()

    reports = Reports(watch, ask_troubles, read_leases, backend.reactor)

    def find() -> Problems:
        return find_problems(views.view(Query()).matching, reports.leases(), reports.nodes, reader.problems())

    overview = Overview(watch, renderer, find, backend.reactor.seconds)
    streams = EventStreams(watch, views, overview, access, renderer, backend.reactor)

    descriptions = NodeDescriptions(partial(call_node, backend), backend.reactor)
    backend.add_service(watch)
    backend.add_service(streams)
    backend.add_service(reports)
    fleet = FleetPage(access, watch, views, overview, pages).app.resource()
    login = LoginPage(access, streams, pages, backend.reactor).app.resource()
    return {
        b"": fleet,
        b"s": fleet,
        b"action": ActionPages(backend, access, watch, pages).app.resource(),
        b"bulk": BulkPages(backend, access, watch, views, pages).app.resource(),
        b"node": NodePage(backend, access, watch, assess_row, descriptions, pages).app.resource(),
        b"leases": LeasesPage(backend, access, pages).app.resource(),
        b"login": login,
        b"logout": login,
        b"events": Events(access, watch, streams).app.resource(),
        b"static": assets.app.resource(),
    }
