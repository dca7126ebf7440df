"""The compute services API, as Nova's clients know it: ``/v2.1`` and, for older ones, ``/v2``."""

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from novasvc.api.access import Access, Caller, audit
from novasvc.api.answers import answer_json
from novasvc.api.backend import Backend
from novasvc.api.changes import describe_changes, read_body, read_new, read_old
from novasvc.api.errors import APIError
from novasvc.api.faults import answer_fault
from novasvc.api.listing import UUIDS, Listing, Wanted, make_item, read_wanted
from novasvc.api.microversion import LOWEST, Microversion, say_version, wanted_version
from novasvc.api.tokens import ADMIN
from novasvc.api.versions import base_url, version_document
from novasvc.errors import ServiceNotFoundError
from novasvc.http.light import LightRequest
from novasvc.registry.record import ServiceChanges, ServiceRecord

_INTEGER = re.compile(r"-?[0-9]+")
_SHOWN = 300

_LIST = "/<any('v2', 'v2.1'):path>/os-services"
_OF_PROJECT = "/<any('v2', 'v2.1'):path>/<project>/os-services"
"""The project is of no account: there are services, and they are everybody's."""


class OSServices:
    """Serves ``/v2.1/os-services``, and the documents of the versions. Source: Nova's API reference.

    :param backend: has the registry.
    :param access: who may look, and who may change something.
    """

    app = Klein()

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._listing = Listing(backend)

    @app.route("/<any('v2', 'v2.1'):path>", methods=["GET"])
    @app.route("/<any('v2', 'v2.1'):path>/", methods=["GET"])
    def version(self, request: Any, path: str) -> bytes:
        """Tell of one version; needs no token."""
        return answer_json(request, version_document(request, path))

    @app.route(_LIST, methods=["GET"])
    @app.route(_OF_PROJECT, methods=["GET"])
    async def list(self, request: Any, path: str, project: str = "") -> bytes:
        """List services."""
        self._access.require(request)
        version = _version(request, path)
        url = f"{base_url(request)}{request.path.decode('latin-1')}"
        body = await self._listing.answer(read_wanted(request.uri.partition(b"?")[2], version, url))
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"content-length", b"%d" % len(body))
        return body

    def answer_light(self, request: LightRequest) -> Deferred[bytes]:
        """List services, for a request that took the shortcut."""
        listing: Deferred[bytes] = Deferred.fromCoroutine(self.list(request, "v2.1"))
        return listing.addErrback(lambda failure: answer_fault(request, failure))

    @app.route(f"{_LIST}/<name>", methods=["PUT"])
    @app.route(f"{_OF_PROJECT}/<name>", methods=["PUT"])
    async def update(self, request: Any, path: str, name: str, project: str = "") -> bytes:
        """Enable, disable, force down: by uuid since 2.53, before by an action, with host and binary in the body."""
        caller = self._admin(request, "update", name)
        version = _version(request, path)
        if version < UUIDS:
            return await self._act(request, caller, name, version, lenient=path == "v2")
        change = read_new(read_body(request))
        record = await self._find_uuid(name, "Service {} could not be found.")
        updated = await self._change(request, caller, record, change.changes)
        wanted = Wanted(uuids=True, forced_down=True, url="")
        return answer_json(request, {"service": make_item(updated, wanted, self._backend.settings.service_down_time)})

    @app.route(f"{_LIST}/<name>", methods=["DELETE"])
    @app.route(f"{_OF_PROJECT}/<name>", methods=["DELETE"])
    async def delete(self, request: Any, path: str, name: str, project: str = "") -> bytes:
        """Delete a service's row: by uuid since 2.53, before by its number."""
        caller = self._admin(request, "delete", name)
        missing = "Service {} not found."
        if _version(request, path) >= UUIDS:
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

        await _audited(request, caller, "delete", _named(record), delete)
        request.setResponseCode(204)
        return b""

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return answer_fault(request, failure)

    # -- changes ---------------------------------------------------------------------------------

    async def _act(self, request: Any, caller: Caller, action: str, version: Microversion, *, lenient: bool) -> bytes:
        change = read_old(action, read_body(request), version, lenient=lenient)
        found = await self._backend.registry.list(change.host, None, None)
        if not found:
            raise APIError(404, f"Host '{change.host}' is not mapped to any cell")
        record = next((row for row in found if row.binary == change.binary), None)
        if record is None:
            raise APIError(404, f"Could not find binary {change.binary[:_SHOWN]} on host {change.host}.")
        await self._change(request, caller, record, lambda: change.changes)
        return answer_json(request, {"service": {"host": change.host, "binary": change.binary, **change.shown}})

    async def _change(
        self, request: Any, caller: Caller, record: ServiceRecord, changes: Callable[[], ServiceChanges]
    ) -> ServiceRecord:
        wanted = changes()

        async def update() -> ServiceRecord:
            try:
                updated: ServiceRecord = await self._backend.registry.update(record.id, wanted)
            except ServiceNotFoundError:  # deleted since it was found
                raise APIError(404, f"Service {record.uuid} could not be found.") from None
            return updated

        updated: ServiceRecord = await _audited(request, caller, describe_changes(wanted), _named(record), update)
        return updated

    async def _find_uuid(self, name: str, missing: str) -> ServiceRecord:
        try:
            uuid.UUID(name)
        except ValueError:
            raise APIError(400, f"Invalid uuid {name[:_SHOWN]}") from None
        return await self._find(name, missing)

    async def _find(self, name: str, missing: str) -> ServiceRecord:
        try:
            record: ServiceRecord = await self._backend.registry.get(name)
        except ServiceNotFoundError:
            raise APIError(404, missing.format(name[:_SHOWN])) from None
        return record

    def _admin(self, request: Any, action: str, target: str) -> Caller:
        """Return who asks, if they may change something.

        :raises APIError: 401 or 403.
        """
        caller = self._access.require(request)
        if caller.scope != ADMIN:
            audit(request, caller, action, _spoken_of(request) or target, "it takes the scope admin")
            raise APIError(403, f"Policy doesn't allow os_compute_api:os-services:{action} to be performed.")
        return caller


def _spoken_of(request: Any) -> str:
    """Return the service that the body of an old action names, "binary@host"; "" if it names none."""
    try:
        body = json.loads(request.content.read())
        return f"{body['binary']}@{body['host']}"
    except (ValueError, RecursionError, TypeError, KeyError):
        return ""


async def _audited(request: Any, caller: Caller, action: str, target: str, change: Callable[[], Awaitable[Any]]) -> Any:
    try:
        done = await change()
    except CancelledError:
        audit(request, caller, action, target, "given up by who asked; it may have been done")
        raise
    except Exception as error:
        audit(request, caller, action, target, str(error))
        raise
    audit(request, caller, action, target)
    return done


def _version(request: Any, path: str) -> Microversion:
    """Return the version of the answer, and say it in the answer's headers. ``/v2`` has none: it is 2.1 for ever."""
    request.route = f"/{path}/os-services"
    request.setHeader(b"x-compute-request-id", request.request_id.encode())
    if path == "v2":
        return LOWEST
    version = wanted_version(request)
    say_version(request, version)
    return version


def _named(record: ServiceRecord) -> str:
    return f"{record.binary}@{record.host}"
