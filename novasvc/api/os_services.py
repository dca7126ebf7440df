"""The compute services API of OpenStack: ``/v2.1/os-services``, and ``/v2`` for old clients."""

import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import attrs
from twisted.internet.defer import CancelledError, Deferred

from novasvc.api.access import CANCELLED_CHANGE, Access, Caller, audit
from novasvc.api.backend import Backend
from novasvc.api.changes import NEW_CHANGE, OLD_CHANGE, describe_changes, read_body, read_new, read_old
from novasvc.api.errors import APIError
from novasvc.api.faults import FAULT, fault_response
from novasvc.api.listing import LIST_PARAMETERS, LIST_RESPONSE, UUIDS, Listing, ListQuery, make_item, read_list_query
from novasvc.api.microversion import LOWEST, VERSION_PARAMETER, Microversion, requested_version, set_version_headers
from novasvc.api.openapi import Operation, content, object_schema, operation, operations_of
from novasvc.api.responses import begin_request, json_response, make_app
from novasvc.api.tokens import ADMIN
from novasvc.api.versions import VERSION, base_url, version_document
from novasvc.http.fast_path import FastRequest, Handler
from novasvc.http.head import Head
from novasvc.reactor.coalesce import CoalescedReads
from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.record import ServiceChanges, ServiceRecord

_INTEGER = re.compile(r"-?[0-9]+")
_MAX_SHOWN = 300

_SERVICE = "/<any('v2', 'v2.1'):path>/os-services/<name>"
_SERVICE_OF_PROJECT = "/<any('v2', 'v2.1'):path>/<project>/os-services/<name>"
"""The project is ignored: services belong to no project."""
_LIST = re.compile(r"/v2(?:\.1)?/(?:[^/]+/)?os-services")
"""The list, too, with or without a project; see :meth:`OSServices.fast_handler`."""
_LIST_PATH = "/v2.1/os-services"
_SERVICE_PATH = f"{_LIST_PATH}/{{name}}"
_NAME = {"name": "A uuid since 2.53; before, a number, or the action of a PUT."}


class OSServices:
    """Serves ``os-services``, and the documents of the two versions. Source: Nova's API reference.

    :param backend: the connection to the registry.
    :param access: authentication and authorization.
    """

    app = make_app(fault_response)

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._pages: CoalescedReads[ListQuery, bytes] = CoalescedReads(Listing(backend).read, backend.reactor)

    @app.route("/<any('v2', 'v2.1'):path>", methods=["GET"])
    @app.route("/<any('v2', 'v2.1'):path>/", methods=["GET"])
    @operation(
        "One version of the compute API; /v2/ is the other one",
        {200: content("The version.", json=object_schema({"version": VERSION}))},
        public=True,
        path="/v2.1/",
    )
    def version(self, request: Any, path: str) -> bytes:
        """Describe one version; needs no token."""
        return json_response(request, version_document(request, path))

    @classmethod
    def operations(cls) -> Iterator[tuple[str, str, Operation]]:
        """Yield (path, method, operation) of the routes, and of the list, which has no route."""
        listing: Any = cls.list
        yield _LIST_PATH, "get", listing.operation
        yield from operations_of(cls.app)

    def fast_handler(self, head: Head) -> Handler | None:
        """Claim requests for the list; see :class:`novasvc.http.fast_path.IFastPath`."""
        if head.method not in {b"GET", b"HEAD"}:
            return None
        path = head.path
        try:
            found = _LIST.fullmatch((unquote_to_bytes(path) if b"%" in path else path).decode())
        except UnicodeDecodeError:
            return None  # APIRoot rejects it
        return None if found is None else self.list

    @operation(
        "List services. The same is at /v2.1/{project_id}/os-services, and under /v2",
        {200: LIST_RESPONSE},
        *(400, 401, 403, 404, 406, 500, 503),
        error=FAULT,
        parameters=[VERSION_PARAMETER, *LIST_PARAMETERS],
        path=_LIST_PATH,
    )
    def list(self, request: FastRequest) -> Deferred[bytes]:
        """List services."""
        begin_request(request)
        listing: Deferred[bytes] = Deferred.fromCoroutine(self._list(request))
        return listing.addErrback(lambda failure: fault_response(self, request, failure))

    async def _list(self, request: FastRequest) -> bytes:
        path = "v2.1" if request.path.startswith(b"/v2.1/") else "v2"
        request.route = f"/{path}/os-services"
        self._access.require(request)
        version = _negotiate(request, path)
        query = read_list_query(request.uri.partition(b"?")[2], version)
        if query.limit is not None:
            query = attrs.evolve(query, url=f"{base_url(request)}{request.path.decode('latin-1')}")
        body = await self._pages.get(query)
        request.setHeader(b"content-type", b"application/json")
        return body

    @app.route(_SERVICE, methods=["PUT"])
    @app.route(_SERVICE_OF_PROJECT, methods=["PUT"])
    @operation(
        "Enable, disable, or force a service down or up",
        {200: content("The updated service.", json=object_schema({"service": {"type": "object"}}))},
        *(400, 401, 403, 404, 406, 415, 500, 503),
        error=FAULT,
        parameters=[VERSION_PARAMETER],
        path_parameters=_NAME,
        body={"anyOf": [NEW_CHANGE, OLD_CHANGE]},
        path=_SERVICE_PATH,
    )
    async def update(self, request: Any, path: str, name: str, project: str = "") -> bytes:
        """Enable, disable or force down a service.

        :param name: its uuid since 2.53; before, an action, with host and binary in the body.
        """
        caller = self._require_admin(request, "update", name)
        version = _negotiate(request, path)
        # Microversion 2.53 replaced the actions enable, disable, disable-log-reason and force-down by PUT of a uuid.
        if version < UUIDS:
            return await self._act(request, caller, name, version, lenient=path == "v2")
        change = read_new(read_body(request))
        record = await self._find_uuid(name, "Service {} could not be found.")
        updated = await self._change(request, caller, record, change.changes)
        query = ListQuery(uuids=True, forced_down=True)
        return json_response(request, {"service": make_item(updated, query, self._backend.settings.service_down_time)})

    @app.route(_SERVICE, methods=["DELETE"])
    @app.route(_SERVICE_OF_PROJECT, methods=["DELETE"])
    @operation(
        "Delete a service's row",
        {204: {"description": "Deleted."}},
        *(400, 401, 403, 404, 406, 500, 503),
        error=FAULT,
        parameters=[VERSION_PARAMETER],
        path_parameters=_NAME,
        path=_SERVICE_PATH,
    )
    async def delete(self, request: Any, path: str, name: str, project: str = "") -> bytes:
        """Delete the row of a service.

        :param name: its uuid since 2.53; before, its number.
        """
        caller = self._require_admin(request, "delete", name)
        missing = "Service {} not found."
        if _negotiate(request, path) >= UUIDS:
            record = await self._find_uuid(name, missing)
        elif _INTEGER.fullmatch(name):
            record = await self._find(name, missing)
        else:
            raise APIError(400, "Invalid input received: id must be an integer")

        async def delete() -> None:
            try:
                await self._backend.registry.delete(record.id)
            except ServiceNotFoundError:
                raise APIError(404, missing.format(name)) from None

        await _audited(request, caller, "delete", record.name, delete)
        request.setResponseCode(204)
        return b""

    # -- changes ---------------------------------------------------------------------------------

    async def _act(self, request: Any, caller: Caller, action: str, version: Microversion, *, lenient: bool) -> bytes:
        change = read_old(action, read_body(request), version, lenient=lenient)
        found = await self._backend.registry.list(change.host, None, None)
        if not found:
            raise APIError(404, f"Host '{change.host}' is not mapped to any cell")
        record = next((row for row in found if row.binary == change.binary), None)
        if record is None:
            raise APIError(404, f"Could not find binary {change.binary[:_MAX_SHOWN]} on host {change.host}.")
        await self._change(request, caller, record, lambda: change.changes)
        return json_response(request, {"service": {"host": change.host, "binary": change.binary, **change.shown}})

    async def _change(
        self, request: Any, caller: Caller, record: ServiceRecord, changes: Callable[[], ServiceChanges]
    ) -> ServiceRecord:
        requested = changes()

        async def update() -> ServiceRecord:
            try:
                updated: ServiceRecord = await self._backend.registry.update(record.id, requested)
            except ServiceNotFoundError:  # deleted in the meantime
                raise APIError(404, f"Service {record.uuid} could not be found.") from None
            return updated

        updated: ServiceRecord = await _audited(request, caller, describe_changes(requested), record.name, update)
        return updated

    async def _find_uuid(self, name: str, missing: str) -> ServiceRecord:
        try:
            uuid.UUID(name)
        except ValueError:
            raise APIError(400, f"Invalid uuid {name[:_MAX_SHOWN]}") from None
        return await self._find(name, missing)

    async def _find(self, name: str, missing: str) -> ServiceRecord:
        try:
            record: ServiceRecord = await self._backend.registry.get(name)
        except ServiceNotFoundError:
            raise APIError(404, missing.format(name[:_MAX_SHOWN])) from None
        return record

    def _require_admin(self, request: Any, action: str, target: str) -> Caller:
        """Return the caller if it has the scope admin; audit it if not.

        :raises APIError: 401 or 403.
        """
        caller = self._access.require(request)
        if caller.scope != ADMIN:
            audit(request, caller, action, _service_in_body(request) or target, "the scope admin is required")
            raise APIError(403, f"Policy doesn't allow os_compute_api:os-services:{action} to be performed.")
        return caller


def _service_in_body(request: Any) -> str:
    """Return "binary@host" from the body of an action (before 2.53); "" if the body has no such fields."""
    try:
        body = json.loads(request.content.read())
        return f"{body['binary']}@{body['host']}"
    except (ValueError, RecursionError, TypeError, KeyError):
        return ""


async def _audited(request: Any, caller: Caller, action: str, target: str, change: Callable[[], Awaitable[Any]]) -> Any:
    try:
        done = await change()
    except CancelledError:
        audit(request, caller, action, target, CANCELLED_CHANGE)
        raise
    except Exception as error:
        audit(request, caller, action, target, str(error))
        raise
    audit(request, caller, action, target)
    return done


def _negotiate(request: Any, path: str) -> Microversion:
    """Return the microversion of the response, and set its headers. ``/v2`` has no microversions: it is always 2.1."""
    request.route = f"/{path}/os-services"
    request.setHeader(b"x-compute-request-id", request.request_id.encode())
    if path == "v2":
        return LOWEST
    version = requested_version(request)
    set_version_headers(request, version)
    return version
