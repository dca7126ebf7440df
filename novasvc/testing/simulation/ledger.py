"""What a simulation's callers asked for, what its managers ran, and what became of it."""

import json
from collections.abc import Callable
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.interfaces import IMiddleware
from novasvc.middleware.invocation import EVENT, SERVE, TASK, Invocation
from novasvc.rpc.errors import RemoteError


@attrs.define(eq=False, kw_only=True)
class Run:
    """One run of a method, of a task or of a handler.

    :param process: the name of the process that runs it.
    :param key: what runs: "stock.reserve", "stock.restock" for a task.
    :param request: the request id, if a caller of the simulation asked for this run; else the id of the call, if it is
        the run of one.
    :param args: its arguments as JSON; None if JSON has no such values.
    :param fencing: the fencing number of a task of the fleet; None for others.
    :param began: seconds on the shared clock, like the other times.
    :ivar ended: None while it runs; a process that died leaves it so.
    :ivar outcome: "result", or the name of the error's class.
    :ivar error: that class; None for a result.
    :ivar result: as JSON; None if it has none, or JSON has no such value.
    """

    process: str
    kind: str
    key: str
    request: str
    args: str | None
    fencing: int | None
    began: float
    ended: float | None = None
    outcome: str | None = None
    error: type[BaseException] | None = None
    result: str | None = None


@attrs.define(eq=False, kw_only=True)
class Request:
    """One call, cast or event that a caller of the simulation sent.

    :param process: the name of the process that sent it.
    :param kind: "call", "cast" or "event".
    :param request: its request id, which no other request of the callers has.
    :param timeout: seconds; None for a cast.
    :ivar ended: None until its Deferred fired.
    :ivar waited: seconds of the caller's clock until then.
    :ivar outcome: "result" (for a cast: the broker has taken it), or the name of the error's class; of a RemoteError,
        the name of the class that the method raised.
    :ivar error: the class of the error; None for a result.
    :ivar result: as JSON; None if it has none.
    """

    process: str
    kind: str
    key: str
    server: str | None
    request: str
    idempotent: bool
    timeout: float | None
    began: float
    ended: float | None = None
    outcome: str | None = None
    error: type[BaseException] | None = None
    waited: float | None = None
    result: str | None = None
    runs: list[Run] = attrs.field(factory=list, init=False)


@attrs.define(eq=False)
class Ledger:
    """Everything that the promises are checked against.

    :param seconds: returns the time on the shared clock.
    :ivar requests: by request id.
    :ivar runs: all runs, in the order in which they began.
    :ivar problems: what was found while the simulation ran, one sentence each.
    """

    _seconds: Callable[[], float]
    _note: Callable[[str, str, str], None]
    requests: dict[str, Request] = attrs.field(factory=dict, init=False)
    runs: list[Run] = attrs.field(factory=list, init=False)
    problems: list[str] = attrs.field(factory=list, init=False)

    def ask(self, request: Request) -> None:
        """Enter a request that is sent now."""
        self.requests[request.request] = request
        where = request.key if request.server is None else f"{request.key} at {request.server}"
        self._note(request.kind, request.process, f"{where} {request.request}")

    def withdraw(self, request: Request) -> None:
        """Remove a request that was not sent: the caller has made a mistake."""
        del self.requests[request.request]

    def answer(self, request: Request, result: Any, waited: float) -> None:
        """Enter the end of a request.

        :param waited: seconds on the caller's clock.
        """
        request.ended, request.waited = self._seconds(), waited
        request.outcome, request.error, request.result = _outcome(result)
        self._note("answered", request.process, f"{request.key} {request.request} {request.outcome}")

    def begin(self, process: str, invocation: Invocation) -> Run:
        """Enter a run that begins now."""
        context = invocation.context
        asked_by = "" if context is None else context.request_id
        key = f"{invocation.topic}.{invocation.name}" if invocation.topic else invocation.name
        request = self.requests.get(asked_by)
        if request is not None and request.key not in {key, invocation.name}:
            request = None  # that of a call within the request
        run = Run(
            process=process,
            kind=invocation.kind,
            key=key,
            request=asked_by if request is not None else invocation.message_id or asked_by,
            args=_as_json(dict(invocation.args)) if invocation.kind == SERVE else None,
            fencing=getattr(context, "fencing", None),
            began=self._seconds(),
        )
        self.runs.append(run)
        if request is not None:
            request.runs.append(run)
        self._note("run", process, f"{run.key} {asked_by}" + ("" if run.fencing is None else f" fencing {run.fencing}"))
        return run

    def end(self, run: Run, result: Any) -> None:
        """Enter the end of a run."""
        run.ended = self._seconds()
        run.outcome, run.error, run.result = _outcome(result)
        self._note("ran", run.process, f"{run.key} {run.outcome}")

    def problem(self, promise: str, text: str) -> None:
        """Enter something that must not happen.

        :param promise: what it breaks, one word.
        """
        self.problems.append(f"{promise}: {text} (at {self._seconds():.3f} s)")
        self._note("PROBLEM", "", promise)


def _outcome(result: Any) -> tuple[str, type[BaseException] | None, str | None]:
    """Return the outcome, the class of the error, and the result as JSON."""
    if not isinstance(result, Failure):
        return "result", None, _as_json(result)
    error = type(cast("BaseException", result.value))
    if issubclass(error, CancelledError):
        return "CancelledError", error, None
    return result.value.exc_type if isinstance(result.value, RemoteError) else error.__name__, error, None


def _as_json(value: Any) -> str | None:
    """Return a value as it is now: the code that has it may change it later."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return None  # what is sent in its place is decided by the method's annotation


@implementer(IMiddleware)
@attrs.define(eq=False)
class Witness:
    """The middleware by which the ledger learns what a process runs.

    :param process: its name.
    :param refusal: returns why it must begin no run now; None if it may.
    """

    _ledger: Ledger
    _process: str
    _refusal: Callable[[], str | None]
    kinds: frozenset[str] = frozenset({SERVE, TASK, EVENT})

    def handle(self, invocation: Invocation, proceed: Callable[[Invocation], Deferred[Any]]) -> Any:
        """Enter the begin and the end of a run; see IMiddleware."""
        run = self._ledger.begin(self._process, invocation)
        refusal = self._refusal()
        if refusal is not None:
            self._ledger.problem("fenced_nodes_run_nothing", f"{self._process} began {run.key}, and {refusal}")

        def ended(result: Any) -> Any:
            self._ledger.end(run, result)
            return result

        return proceed(invocation).addBoth(ended)
