"""What an operation does to one node, and how it sees that this has been done."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime

from novasvc.errors import NovasvcError
from novasvc.fleet.calls import NodeCalls, SharedCommand
from novasvc.fleet.errors import NodeFailedError
from novasvc.fleet.patience import Patience
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.errors import DatabaseUnavailableError, ServiceNotFoundError
from novasvc.registry.liveness import is_up
from novasvc.registry.operation import OperationNode
from novasvc.registry.record import ServiceChanges, ServiceRecord


@attrs.define(eq=False, kw_only=True)
class Attempt:
    """One node that an operation is about.

    :param node: as it was stored last.
    :param registry: the services.
    :param calls: None for kinds that call no node.
    :param options: of the operation.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    :param patience: the time that it has.
    :param shared: the command, which it shares with the attempts at other services of the same process.
    :ivar unanswered: the node did not answer the command, and nothing shows that it has taken it.
    """

    node: OperationNode
    registry: IServiceRegistry
    calls: NodeCalls | None
    options: Mapping[str, Any]
    service_down_time: float
    patience: Patience
    shared: SharedCommand
    unanswered: bool = attrs.field(default=False, init=False)

    async def record(self) -> ServiceRecord:
        """Read the row of the service.

        :raises NodeFailedError: it was deleted.
        """
        try:
            record: ServiceRecord = await self.registry.get(str(self.node.service_id))
        except ServiceNotFoundError as error:
            raise NodeFailedError("its row was deleted") from error
        return record

    async def await_record(self) -> ServiceRecord:
        """Read the row of the service; wait for the database if it is away. Not within :meth:`Patience.until`.

        :raises NodeFailedError: it was deleted.
        """
        return await self.patience.until(self.record, lambda: "the database did not answer")

    @property
    def clock(self) -> IReactorTime:
        """The clock of the calls."""
        return self._calls.clock

    @property
    def _calls(self) -> NodeCalls:
        assert self.calls is not None, "this kind of operation calls no node"
        return self.calls

    async def command(self, record: ServiceRecord, method: str, version: str, **args: Any) -> None:
        """Send the node's process a command, unless this operation has sent it one.

        :raises NodeFailedError: see :meth:`NodeCalls.command`.
        """
        self.unanswered = await self.shared.send(lambda: self._command(record, method, version, **args))

    async def reload(self, record: ServiceRecord) -> Mapping[str, Any]:
        """Send the node's process the command to reload, unless this operation has sent it, or it still reloads for it.

        :return: how its reloads went before the command; see :meth:`novasvc.interfaces.ISupervisor.reload_report`.
        :raises NodeFailedError: it does not answer; see :meth:`NodeCalls.command` too.
        """

        async def ask() -> Mapping[str, Any] | None:
            status = await self.status(record)
            if status is None and not self.shared.resumed:  # without workers, a node that reloads does not answer
                raise NodeFailedError("it does not answer")
            return status

        async def send() -> tuple[Mapping[str, Any], bool]:
            status = await self.patience.until(ask, lambda: "it does not answer")
            reports: Mapping[str, Any] = status.get("reloads") or {}
            # A reload that another command began may have read an older configuration, so only one of this operation
            # will do.
            if self.shared.resumed and reports.get("under_way"):
                return reports, False
            return reports, await self._command(record, "reload", "1.2")

        before: Mapping[str, Any]
        before, self.unanswered = await self.shared.send(send)
        return before

    async def until(self, ask: Callable[[], Awaitable[str | None]], late: Callable[[], str]) -> str:
        """Wait for what the command does; see :meth:`Patience.until`.

        :raises NodeFailedError: it has failed, or the time is over. It says if the node may still obey.
        """
        try:
            return await self.patience.until(ask, late)
        except NodeFailedError as error:
            if not self.unanswered:
                raise
            problem = f"{error.problem}; it did not answer the command, and may still obey it when it can"
            raise NodeFailedError(problem) from error

    def _command(self, record: ServiceRecord, method: str, version: str, **args: Any) -> Awaitable[bool]:
        # A node that takes it later than that does so when its operation waits for it no more, or was even halted.
        return self._calls.command(record, method, version, max(1.0, self.patience.left), args)

    async def status(self, record: ServiceRecord) -> Mapping[str, Any] | None:
        """Ask the node for its status; see :meth:`NodeCalls.status`."""
        return await self._calls.status(record)


Perform = Callable[[Attempt], Awaitable[str]]
"""Do it, and return what to say of it; raises NodeFailedError."""


@attrs.frozen
class Kind:
    """A kind of operation.

    :param verb: in the infinitive, for questions: "restart".
    :param done: the participle, for results: "restarted".
    :param perform: does it to one node.
    :param calls: whether the node is called. Services that are down, or serve no topic, are left out then.
    """

    verb: str
    done: str
    perform: Perform
    calls: bool = True


async def _disable(attempt: Attempt) -> str:
    return await _change(attempt, ServiceChanges(disabled=True, disabled_reason=attempt.options.get("reason")))


async def _enable(attempt: Attempt) -> str:
    return await _change(attempt, ServiceChanges(disabled=False))


async def _change(attempt: Attempt, changes: ServiceChanges) -> str:
    async def change() -> str:
        await attempt.registry.update(attempt.node.service_id, changes)
        return "enabled" if changes.disabled is False else "disabled"

    try:
        return await attempt.patience.until(change, lambda: "the database did not answer")
    except ServiceNotFoundError as error:
        raise NodeFailedError("its row was deleted") from error


async def _drain(attempt: Attempt) -> str:
    record = await attempt.await_record()
    before = attempt.node.incarnation
    if not _is_stopped(record, before) and record.state != "draining":
        await attempt.command(record, "drain", "1.0")
    gone = 0

    async def stopped() -> str | None:
        nonlocal gone
        now = await attempt.record()
        if now.state == "draining":
            attempt.unanswered = False
        if _is_stopped(now, before):
            again = before is not None and now.incarnation_number != before and now.state != "stopped"
            return "drained; it was started again since" if again else "drained"
        if now.incarnation_number is not None:
            return None
        # A row without a lifecycle: it is gone when nobody serves it, or it is down.
        gone = 0 if await attempt.status(now) is not None else gone + 1
        return "drained" if gone > 1 or not is_up(now, attempt.service_down_time) else None

    return await attempt.until(stopped, lambda: "it has not stopped")


def _is_stopped(record: ServiceRecord, before: int | None) -> bool:
    number = record.incarnation_number
    return number is not None and (record.state == "stopped" or (before is not None and number > before))


async def _restart(attempt: Attempt) -> str:
    record = await attempt.await_record()
    before = attempt.node.incarnation
    sent = attempt.clock.seconds()
    if before is None or (record.incarnation_number == before and record.state != "draining"):
        await attempt.command(record, "restart", "1.2", incarnation=before)
    seen = "it has not restarted"

    async def restarted() -> str | None:
        nonlocal seen
        now = await attempt.record()
        if before is not None:
            number, state = now.incarnation_number, now.state
            if state == "draining" or (number or 0) > before:
                attempt.unanswered = False
            if number is None or number <= before:
                seen = f"it is still incarnation {number}, {state}"
                return None
            _check_failed(now)
            if state != "ready":
                seen = f"incarnation {number} is {state}"
                return None
        status = await attempt.status(now)
        if status is None:
            seen = "it does not answer"
        elif before is None and not _began_after(status, attempt.clock.seconds() - sent):
            seen = "it has not restarted"
        else:
            attempt.unanswered = False
            healthy, seen = _judge(status)
            number = now.incarnation_number
            return None if not healthy else "restarted" if number is None else f"incarnation {number}"
        return None

    return await attempt.until(restarted, lambda: seen)


async def _reload(attempt: Attempt) -> str:
    record = await attempt.await_record()
    before = await attempt.reload(record)
    seen = "its reload has not ended"

    async def reloaded() -> str | None:
        nonlocal seen
        status = await attempt.status(await attempt.record())
        report = {} if status is None else status.get("reloads") or {}
        if status is None:
            seen = "it does not answer"
            return None
        if report.get("under_way") or report.get("ended") != before.get("ended"):
            attempt.unanswered = False
        if report.get("under_way") or report.get("ended") == before.get("ended"):
            seen = "its reload has not ended"
            return None
        if report.get("problem"):
            raise NodeFailedError(f"reload failed: {report['problem']}")
        healthy, seen = _judge(status)
        return "reloaded" if healthy else None

    return await attempt.until(reloaded, lambda: seen)


def _judge(status: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether a node works, and what is missing."""
    problems = [str(problem) for problem in status.get("problems") or ()]
    if status.get("state") != "running":
        problems.insert(0, f"it is {status.get('state')}")
    return not problems, f"it is not healthy: {'; '.join(problems)}"


def _began_after(status: Mapping[str, Any], seconds_ago: float) -> bool:
    uptime = status.get("uptime")
    return isinstance(uptime, int | float) and uptime < seconds_ago


def _check_failed(record: ServiceRecord) -> None:
    """Raise if the start of a node has failed."""
    if record.state == "failed":
        reason = None if record.incarnation is None else record.incarnation.reason
        raise NodeFailedError(f"its start failed: {reason or 'see its log'}")


KINDS: Mapping[str, Kind] = {
    "enable": Kind("enable", "enabled", _enable, calls=False),
    "disable": Kind("disable", "disabled", _disable, calls=False),
    "drain": Kind("drain", "drained", _drain),
    "restart": Kind("restart", "restarted", _restart),
    "reload": Kind("reload", "reloaded", _reload),
}
"""The kinds of operations by name."""

OUTAGES = (DatabaseUnavailableError,)
"""Errors that end an operation, which can be resumed, and are not a node's."""


async def attempt(kind: Kind, one: Attempt) -> tuple[bool, str]:
    """Do it to one node.

    :return: whether it was done, and what to say of it.
    :raises DatabaseUnavailableError: the database is away for too long.
    """
    try:
        return True, await kind.perform(one)
    except NodeFailedError as error:
        return False, error.problem
    except OUTAGES:
        raise
    except NovasvcError as error:
        return False, " ".join(str(error).split())
