"""What an administrator does to a service: each asks first, and is a form that works without a script."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import attrs
from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.api.access import Access, audit
from novasvc.api.answers import api_error
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.page.calls import call_node, ping_node
from novasvc.api.page.frame import Frame
from novasvc.api.tokens import ADMIN
from novasvc.api.watch import Watch
from novasvc.registry.record import ServiceChanges, ServiceRecord

_log = Logger()

_LONGEST = {"reason": 255, "task": 200}
"""Characters of the fields of a form."""
_LONGEST_MARK = 200
_NUMBER = re.compile(r"[0-9]{1,6}\.[0-9]")

Fields = Mapping[str, str]
"""What a form says: reason, task."""
Outcome = Mapping[str, str]
"""What the address of the next page says of it."""
Act = Callable[[Backend, ServiceRecord, Fields], Awaitable[Outcome]]


@attrs.frozen
class Verb:
    """Something that can be done to a service.

    :param name: of the address.
    :param label: of the button that leads to it.
    :param question: asked before it is done.
    :param meaning: what it does, and what it does not.
    :param done: said afterwards.
    :param act: does it; returns what the address says of the outcome.
    :param grave: whether it takes something away.
    :param fields: of its form.
    """

    name: str
    label: str
    question: str
    meaning: str
    done: str
    act: Act
    grave: bool = False
    fields: tuple[str, ...] = ()


def _change(changes: ServiceChanges) -> Act:
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


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "enable", "Enable", "Enable {name}?", "It is given new work again, and the reason is cleared.",
            "It is enabled.", _change(ServiceChanges(disabled=False)),
        ),
        Verb(
            "disable", "Disable", "Disable {name}?", "It runs on, and finishes what it has; new work goes elsewhere.",
            "It is disabled.", _disable, fields=("reason",),
        ),
        Verb(
            "force-down", "Force down", "Force {name} down?",
            "Everybody is told that it is down, whatever it says itself. Do that when its host is known to be off.",
            "It is forced down.", _change(ServiceChanges(forced_down=True)), grave=True,
        ),
        Verb(
            "let-up", "Let up", "Let {name} be up again?", "Its own heartbeats count again.",
            "Its heartbeats count again.", _change(ServiceChanges(forced_down=False)),
        ),
        Verb(
            "ping", "Ping", "Ping {name}?", "It is called, and the time that the answer takes is measured.",
            "It answered.", _ping,
        ),
        Verb(
            "drain", "Drain", "Drain {name}?",
            "It takes in nothing new, finishes what it has begun, and ends. All that runs in its process, or under its "
            "supervisor, does so, too: this page as well, if it is served there. What started it may start it again.",
            "It drains, and ends when all that it had begun is finished.", _drain, grave=True,
        ),
        Verb(
            "run-task", "Run now", "Run the task {task} of {name} now?", "The rhythm of its other runs stays as it is.",
            "The task was begun.", _run_task, fields=("task",),
        ),
    )
}  # fmt: skip


def done_message(args: Mapping[bytes, Sequence[bytes]]) -> str:
    """Return what is said after something was done; "" if nothing was. The words are ours, whatever the address says.

    :param args: of the request.
    """
    verb = VERBS.get(args.get(b"done", [b""])[0].decode("latin-1"))
    if verb is None:
        return ""
    took = args.get(b"ms", [b""])[0].decode("latin-1")
    return f"It answered within {took} ms." if verb.name == "ping" and _NUMBER.fullmatch(took) else verb.done


class Actions:
    """Serves ``/action/VERB/UUID``: asks, and does it.

    :param access: who may.
    :param watch: is to see it at once.
    """

    app = Klein()

    def __init__(self, backend: Backend, access: Access, watch: Watch, frame: Frame) -> None:
        self._backend = backend
        self._access = access
        self._watch = watch
        self._frame = frame

    @app.route("/action/<verb>/<uuid>", methods=["GET"])
    async def ask(self, request: Any, verb: str, uuid: str) -> bytes:
        """Ask whether it is really to be done."""
        caller = self._access.require(request, ADMIN)
        what = _verb(verb)
        record = await self._backend.registry.get(uuid)
        fields = {"task": _field(request, "task", _LONGEST["task"])}
        words = {"name": _name(record), "task": fields["task"]}
        question = what.question.format(**words)
        return self._frame.page(
            request, "confirm.html", caller, verb=what, record=record, fields=fields, question=question
        )

    @app.route("/action/<verb>/<uuid>", methods=["POST"])
    async def act(self, request: Any, verb: str, uuid: str) -> bytes:
        """Do it, and lead to the page of the service."""
        caller = self._access.require(request)
        what, target = _verb(verb), uuid
        try:
            self._access.require(request, ADMIN)
            self._access.check_form(caller, _field(request, "mark", _LONGEST_MARK))
            fields = {name: _field(request, name, longest) for name, longest in _LONGEST.items()}
            record = await self._backend.registry.get(uuid)
            target = " ".join([_name(record), *([fields["task"]] if "task" in what.fields else [])])
            outcome = await what.act(self._backend, record, fields)
        except Exception:
            audit(request, caller, what.name, target, api_error(request, Failure()).message)
            raise
        audit(request, caller, what.name, target)
        await self._watch.again()
        request.setResponseCode(303)
        query = urlencode({"done": what.name, **outcome})
        request.setHeader(b"location", f"/node/{quote(record.uuid, safe='')}?{query}".encode())
        return b""

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return self._frame.refuse(request, failure)


def _name(record: ServiceRecord) -> str:
    return f"{record.binary}@{record.host}"


def _verb(name: str) -> Verb:
    verb = VERBS.get(name)
    if verb is None:
        raise APIError(404, f"nobody can {name[:50]} a service; there are: {', '.join(VERBS)}")
    return verb


def _field(request: Any, name: str, longest: int) -> str:
    """Return what a form says, in one line.

    :raises APIError: 400, it is no text, or too long.
    """
    try:
        text: str = " ".join(request.args.get(name.encode(), [b""])[0].decode().split())
    except UnicodeDecodeError:
        raise APIError(400, f"the {name} is no text in UTF-8") from None
    if len(text) > longest:
        raise APIError(400, f"the {name} has {len(text)} characters; at most {longest} fit")
    return text
