"""Actions on many services at once: one confirmation, one reason, and a result for each service."""

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults

from novasvc.api.access import CANCELLED_CHANGE, Access, Caller, audit
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError, as_api_error
from novasvc.api.openapi import FORM_RESPONSES, PAGE_RESPONSES, operation
from novasvc.api.page.actions import ACTIONS, MAX_CSRF_TOKEN, MAX_FIELDS, Action, read_field
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.api.page.query import Query
from novasvc.api.page.view import Views
from novasvc.api.service_status import ServiceStatus
from novasvc.api.tokens import ADMIN
from novasvc.api.watch import Watch
from novasvc.errors import NovasvcError

BULK_ACTIONS = ("disable", "enable", "force-down", "let-up")
"""Actions that many services can have at once: each is one change of a row."""
MAX_SERVICES = 1000
"""Services of one action."""
_AT_ONCE = 10
"""Changes under way at a time."""
_SHOWN = 20
"""Services that the confirmation, and the result, name."""
_MAX_NUMBERS = 20 * MAX_SERVICES
"""Characters of the numbers of the services."""

_PATH_PARAMETERS = {"verb": f"One of {', '.join(BULK_ACTIONS)}."}


class BulkPages:
    """Serves ``/bulk/VERB``: asks for one confirmation for many services, and performs the action on each.

    :param access: authorization.
    :param watch: the state of the fleet.
    :param views: the services of each query.
    """

    app = make_page_app()

    def __init__(self, backend: Backend, access: Access, watch: Watch, views: Views, pages: Pages) -> None:
        self._backend = backend
        self._access = access
        self._watch = watch
        self._views = views
        self.pages = pages

    @app.route("/bulk/<verb>", methods=["GET"])
    @operation("Ask for confirmation of an action on many services", PAGE_RESPONSES, path_parameters=_PATH_PARAMETERS)
    async def ask(self, request: Any, verb: str) -> bytes:
        """Show the confirmation.

        The services are those of the parameters ``id``, or with ``all`` those that match the page's other parameters.
        They are fixed here: those who match later are not changed.
        """
        caller = self._access.require(request, ADMIN)
        action = _action(verb)
        await self._watch.wait_fresh()
        query = Query.read(request.args)
        if request.args.get(b"all"):
            chosen = [*self._views.view(query).matching]
        else:
            chosen = self._find(text.decode("latin-1") for text in request.args.get(b"id", []))
        if not chosen:
            self._check_known()
            raise APIError(400, "no service is selected; select some in the list, or all that match")
        if len(chosen) > MAX_SERVICES:
            problem = f"{len(chosen):,} services are selected; at most {MAX_SERVICES:,} can be changed at once"
            raise APIError(400, f"{problem}. Use a filter, or novasvc on the command line")
        return self._page(request, "bulk.html", caller, action, chosen, back=query.url)

    @app.route("/bulk/<verb>", methods=["POST"])
    @operation("Perform an action on many services", FORM_RESPONSES, path_parameters=_PATH_PARAMETERS)
    async def act(self, request: Any, verb: str) -> bytes:
        """Perform the action on each service, and show the outcome."""
        caller = self._access.require(request)
        action = _action(verb)
        numbers = read_field(request, "ids", _MAX_NUMBERS).split(",")
        try:
            self._access.require(request, ADMIN)
            self._access.check_csrf_token(caller, read_field(request, "mark", MAX_CSRF_TOKEN))
            fields = {"reason": read_field(request, "reason", MAX_FIELDS["reason"])}
            await self._watch.wait_fresh()
            chosen = self._find(numbers[:MAX_SERVICES])
            gone = len(numbers) - len(chosen)
            if gone:
                self._check_known()
        except APIError as error:
            audit(request, caller, action.name, f"{len(numbers)} services", error.message)
            raise
        problems = await self._act_on_all(request, caller, action, chosen, fields)
        await self._watch.reread()
        failed = [(service, problem) for service, problem in zip(chosen, problems, strict=True) if problem]
        back = Query.read(request.args).url
        return self._page(request, "bulk_done.html", caller, action, chosen, failed=failed, gone=gone, back=back)

    async def _act_on_all(
        self, request: Any, caller: Caller, action: Action, services: Sequence[ServiceStatus], fields: dict[str, str]
    ) -> list[str]:
        """Perform the action on each service, some at a time; return why each failed, or ""."""
        problems: dict[int, str] = {}
        waiting = iter(services)

        async def act() -> None:
            for service in waiting:
                problems[service.record.id] = await self._act_on(request, caller, action, service, fields)

        acting = [Deferred.fromCoroutine(act()) for _ in range(_AT_ONCE)]
        try:
            await gatherResults(acting, consumeErrors=True)
        except FirstError as first:
            # The client has disconnected, or there is a bug. What was begun has audit lines of its own.
            failure = first.subFailure
            if left := len([*waiting]):
                why = f"not begun: {str(failure.value) or 'cancelled by the client'}"
                audit(request, caller, action.name, f"{left} other services", why)
            failure.raiseException()
        return [problems[service.record.id] for service in services]

    async def _act_on(
        self, request: Any, caller: Caller, action: Action, service: ServiceStatus, fields: dict[str, str]
    ) -> str:
        """Perform the action on a service; return why it failed, or ""."""
        problem = ""
        try:
            await action.perform(self._backend, service.record, fields)
        except CancelledError:
            audit(request, caller, action.name, service.name, CANCELLED_CHANGE)
            raise
        except NovasvcError as error:
            known = as_api_error(error)
            problem = str(error) if known is None else known.message
        audit(request, caller, action.name, service.name, *([problem] if problem else []))
        return problem

    def _check_known(self) -> None:
        """Reject a request for services that are missing because the fleet could not be read.

        :raises APIError: 503.
        """
        if self._watch.trouble:
            raise APIError(503, f"the services are not known now: {self._watch.trouble}", {"Retry-After": "5"})

    def _find(self, numbers: Any) -> list[ServiceStatus]:
        """Return the services with these numbers; others are left out."""
        known = self._watch.services
        found = dict.fromkeys(int(text) for text in numbers if text.isascii() and text.isdecimal() and len(text) <= 18)  # noqa: PLR2004 - digits of a 64-bit number
        return [known[number] for number in found if number in known]

    def _page(
        self, request: Any, template: str, caller: Caller, action: Action, chosen: Sequence[ServiceStatus], **names: Any
    ) -> bytes:
        numbers = ",".join(str(service.record.id) for service in chosen)
        return self.pages.page(
            request, template, caller, action=action, chosen=chosen, numbers=numbers, shown=_SHOWN, **names
        )


def _action(verb: str) -> Action:
    if verb not in BULK_ACTIONS:
        raise APIError(404, f"unknown action {verb[:50]!r}; the actions on many are {', '.join(BULK_ACTIONS)}")
    return ACTIONS[verb]
