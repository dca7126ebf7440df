"""The root resource of the API: dispatches by the whole path, or by its first segment."""

from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.python.failure import Failure
from twisted.web.resource import IResource
from werkzeug.exceptions import BadHost
from zope.interface import implementer

from novasvc.api.access import Access
from novasvc.api.asyncapi import AsyncAPI
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.gateway import Gateway
from novasvc.api.health import HealthResource
from novasvc.api.leases import Leases
from novasvc.api.metrics import MetricsResource
from novasvc.api.openapi import OpenAPI, Operation, operations_of
from novasvc.api.os_services import OSServices
from novasvc.api.page.resources import PAGE_APPS, make_page_resources
from novasvc.api.responses import begin_request, json_error_response
from novasvc.api.verdicts import Verdicts
from novasvc.api.versions import Index
from novasvc.http.fast_path import Handler, IFastPath
from novasvc.http.head import Head


@implementer(IResource, IFastPath)
class APIRoot:
    """Dispatches each request by its whole path, or by the first segment of its path.

    :param resources: whole path without the leading slash, or first segment -> resource.
    :param fast_handlers: segment -> function that may claim a request, see
        :meth:`novasvc.http.fast_path.IFastPath.fast_handler`.
    """

    isLeaf = True

    def __init__(
        self,
        resources: Mapping[bytes, Any],
        fast_handlers: Mapping[bytes, Callable[[Head], Handler | None]] | None = None,
    ) -> None:
        self.resources = resources
        self._fast_handlers = fast_handlers or {}

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """Not called: a leaf has no children."""
        raise NotImplementedError

    def putChild(self, path: bytes, child: Any) -> None:
        """Not called: a leaf has no children."""
        raise NotImplementedError

    def render(self, request: Any) -> Any:
        """Render the resource of the first segment, with the request's id in all that it logs."""
        return copy_context().run(self._render, request)

    def _render(self, request: Any) -> Any:
        begin_request(request)
        try:
            path = unquote_to_bytes(request.path).decode()
        except UnicodeDecodeError:  # Klein would respond with HTML, and log it as a failure of ours
            return json_error_response(self, request, Failure(APIError(400, "the path is not valid UTF-8")))
        if "\0" in path:  # PostgreSQL has no such text, and fails if it is asked for one
            return json_error_response(self, request, Failure(APIError(400, "the path contains a NUL")))
        segment = request.path.split(b"/", 2)[1] if request.path.startswith(b"/") else b""
        resource = self.resources.get(request.path[1:]) or self.resources.get(segment)
        if resource is None:
            path = request.path.decode("latin-1")[:200]
            error = APIError(404, f"there is nothing at {path}; /openapi.json lists all paths")
            return json_error_response(self, request, Failure(error))
        request.route = f"/{segment.decode()}"  # the label in the metrics; a resource may be more precise
        try:
            return resource.render(request)
        except BadHost:  # of Klein's routing, before its own error handling
            error = APIError(400, "the name in the Host header is not a valid host name")
            return json_error_response(self, request, Failure(error))

    def fast_handler(self, head: Head) -> Handler | None:
        """Ask the resource of the first segment whether it claims the request; see IFastPath."""
        claim = self._fast_handlers.get(head.path[1:].partition(b"/")[0])
        return None if claim is None else claim(head)


def make_api_root(backend: Backend, access: Access) -> APIRoot:
    """Make all resources of the API."""
    health = HealthResource(backend, access).app.resource()
    resources: dict[bytes, Any] = {
        b"healthz": health,
        b"readyz": health,
        b"metrics": MetricsResource(backend, access).app.resource(),
        b"v1": Gateway(backend, access).app.resource(),
        b"v1/leases": Leases(backend, access).app.resource(),
        b"v1/verdicts": Verdicts(backend, access).app.resource(),
        b"openapi.json": OpenAPI(_operations()).app.resource(),
        b"asyncapi.json": AsyncAPI(backend, access).app.resource(),
    }
    resources |= make_page_resources(backend, access)
    resources[b""] = Index(resources[b""])
    os_services = OSServices(backend, access)
    resources[b"v2"] = resources[b"v2.1"] = os_services.app.resource()
    return APIRoot(resources, dict.fromkeys((b"v2", b"v2.1"), os_services.fast_handler))


def _operations() -> Iterator[tuple[str, str, Operation]]:
    yield from OSServices.operations()
    for app in (
        Gateway.app,
        Leases.app,
        Verdicts.app,
        HealthResource.app,
        MetricsResource.app,
        AsyncAPI.app,
        *PAGE_APPS,
    ):
        yield from operations_of(app)
