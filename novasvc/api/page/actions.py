"""Actions on a service: each asks for confirmation, in a form that works without JavaScript."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.api.access import Access, audit
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.openapi import FORM_RESPONSES, PAGE_RESPONSES, operation
from novasvc.api.page.calls import call_node, ping_node
from novasvc.api.page.pages import Pages, make_page_app
from novasvc.api.responses import api_error
from novasvc.api.tokens import ADMIN
from novasvc.api.watch import Watch
from novasvc.registry.record import ServiceChanges, ServiceRecord

_log = Logger()

MAX_FIELDS = {"reason": 255, "task": 200}
"""Characters of form fields."""
MAX_CSRF_TOKEN = 200
_MILLISECONDS = re.compile(r"[0-9]{1,6}\.[0-9]")

Fields = Mapping[str, str]
"""Form fields by name: reason, task."""
Outcome = Mapping[str, str]
"""Query parameters of the page that is shown afterwards."""
Perform = Callable[[Backend, ServiceRecord, Fields], Awaitable[Outcome]]


@attrs.frozen
class Action:
    """An action on a service.

    :param name: its name in URLs.
    :param label: text of its button.
    :param question: title of the confirmation; a format of the service's name.
    :param meaning: what it does, and what it does not.
    :param done: message that is shown afterwards.
    :param perform: coroutine function that performs it.
    :param destructive: whether its button is styled as a warning.
    :param fields: names of the fields in its form.
    :param many: ``meaning`` for many services.
    """

    name: str
    label: str
    question: str
    meaning: str
    done: str
    perform: Perform
    destructive: bool = False
    fields: tuple[str, ...] = ()
    many: str = ""


def _change(changes: ServiceChanges) -> Perform:
    async def change(backend: Backend, record: ServiceRecord, _fields: Fields) -> Outcome:
        await backend.registry.update(record.id, changes)
        return {}

    return change


async def _disable(backend: Backend, record: ServiceRecord, fields: Fields) -> Outcome:
    await backend.registry.update(record.id, ServiceChanges(disabled=True, disabled_reason=fields["reason"] or None))
    return {}


async def _drain(backend: Backend, record: ServiceRecord, _fields: Fields) -> Outcome:
    await call_node(backend, record, "drain")
    return {}


async def _ping(backend: Backend, record: ServiceRecord, _fields: Fields) -> Outcome:
    return {"ms": f"{await ping_node(backend, record) * 1000:.1f}"}


async def _run_task(backend: Backend, record: ServiceRecord, fields: Fields) -> Outcome:
    await call_node(backend, record, "run_task", name=fields["task"])
    return {}


ACTIONS = {
    action.name: action
    for action in (
        Action(
            "enable", "Enable", "Enable {name}?", "It gets new work again, and the reason is cleared.",
            "It is enabled.", _change(ServiceChanges(disabled=False)),
            many="They get new work again, and their reasons are cleared.",
        ),
        Action(
            "disable", "Disable", "Disable {name}?", "It keeps running and finishes its work; new work goes elsewhere.",
            "It is disabled.", _disable, fields=("reason",),
            many="They keep running and finish their work; new work goes elsewhere.",
        ),
        Action(
            "force-down", "Force down", "Force {name} down?",
            "It is reported as down, whatever its heartbeats say. Do this when its host is known to be off.",
            "It is forced down.", _change(ServiceChanges(forced_down=True)), destructive=True,
            many="They are reported as down, whatever their heartbeats say. Do this when their hosts are off.",
        ),
        Action(
            "let-up", "Unset forced down", "Unset forced down for {name}?", "Its heartbeats count again.",
            "Its heartbeats count again.", _change(ServiceChanges(forced_down=False)),
            many="Their heartbeats count again.",
        ),
        Action(
            "ping", "Ping", "Ping {name}?", "It is called, and its response time is measured.",
            "It responded.", _ping,
        ),
        Action(
            "drain", "Drain", "Drain {name}?",
            "It accepts no new work, finishes what it has begun, and exits, with everything in its process or under "
            "its supervisor: this page as well, if it is served there. Whatever started it may start it again.",
            "It is draining, and exits when its work is finished.", _drain, destructive=True,
        ),
        Action(
            "run-task", "Run now", "Run the task {task} of {name} now?",
            "The schedule of its other runs does not change.", "The task was started.", _run_task, fields=("task",),
        ),
    )
}  # fmt: skip


def done_message(args: Mapping[bytes, Sequence[bytes]]) -> str:
    """Return the message that is shown after an action; "" if there was none.

    The URL only selects the message, so that a forged link cannot make the page show a text of its own.

    :param args: query parameters.
    """
    action = ACTIONS.get(args.get(b"done", [b""])[0].decode("latin-1"))
    if action is None:
        return ""
    took = args.get(b"ms", [b""])[0].decode("latin-1")
    return f"It responded within {took} ms." if action.name == "ping" and _MILLISECONDS.fullmatch(took) else action.done


_PATH_PARAMETERS = {"verb": f"One of {', '.join(ACTIONS)}.", "uuid": "Of the service."}


class ActionPages:
    """Serves ``/action/VERB/UUID``: asks for confirmation, and performs the action.

    :param access: authorization.
    :param watch: the watch to refresh after an action.
    """

    app = make_page_app()

    def __init__(self, backend: Backend, access: Access, watch: Watch, pages: Pages) -> None:
        self._backend = backend
        self._access = access
        self._watch = watch
        self.pages = pages

    @app.route("/action/<verb>/<uuid>", methods=["GET"])
    @operation("Ask for confirmation of an action", PAGE_RESPONSES, path_parameters=_PATH_PARAMETERS)
    async def ask(self, request: Any, verb: str, uuid: str) -> bytes:
        """Show the confirmation."""
        caller = self._access.require(request, ADMIN)
        action = _action(verb)
        record = await self._backend.registry.get(uuid)
        fields = {"task": read_field(request, "task", MAX_FIELDS["task"])}
        names = {"name": record.name, "task": fields["task"]}
        question = action.question.format(**names)
        return self.pages.page(
            request, "confirm.html", caller, action=action, record=record, fields=fields, question=question
        )

    @app.route("/action/<verb>/<uuid>", methods=["POST"])
    @operation("Perform an action: a form of the page", FORM_RESPONSES, path_parameters=_PATH_PARAMETERS)
    async def act(self, request: Any, verb: str, uuid: str) -> bytes:
        """Perform the action, and redirect to the page of the service."""
        caller = self._access.require(request)
        action, target = _action(verb), uuid
        try:
            self._access.require(request, ADMIN)
            self._access.check_csrf_token(caller, read_field(request, "mark", MAX_CSRF_TOKEN))
            fields = {name: read_field(request, name, longest) for name, longest in MAX_FIELDS.items()}
            record = await self._backend.registry.get(uuid)
            target = " ".join([record.name, *([fields["task"]] if "task" in action.fields else [])])
            outcome = await action.perform(self._backend, record, fields)
        except Exception:
            audit(request, caller, action.name, target, api_error(request, Failure()).message)
            raise
        audit(request, caller, action.name, target)
        await self._watch.reread()
        request.setResponseCode(303)
        query = urlencode({"done": action.name, **outcome})
        request.setHeader(b"location", f"/node/{quote(record.uuid, safe='')}?{query}".encode())
        return b""


def _action(name: str) -> Action:
    action = ACTIONS.get(name)
    if action is None:
        raise APIError(404, f"unknown action {name[:50]!r}; the actions are {', '.join(ACTIONS)}")
    return action


def read_field(request: Any, name: str, longest: int) -> str:
    """Return a form field as one line.

    :param longest: characters.
    :raises APIError: 400, it is not valid UTF-8, contains a NUL, or is too long.
    """
    try:
        text: str = " ".join(request.args.get(name.encode(), [b""])[0].decode().split())
    except UnicodeDecodeError:
        raise APIError(400, f"the {name} is not valid UTF-8") from None
    if "\0" in text:  # PostgreSQL cannot store it
        raise APIError(400, f"the {name} contains a NUL")
    if len(text) > longest:
        raise APIError(400, f"the {name} has {len(text)} characters; the maximum is {longest}")
    return text
