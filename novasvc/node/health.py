"""Health checks of a node: its service, broker, registry, schema, consumers and reactor."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime

from novasvc.errors import NovasvcError, describe
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.errors import MigrationNeededError, ServiceNotFoundError
from novasvc.telemetry import flight, metrics
from novasvc.telemetry.timestamps import iso_time

if TYPE_CHECKING:
    from novasvc.node.node import Node

PATIENCE = 1.5
"""Seconds for the registry to answer. No other check has to wait."""

LAG_LIMIT = 1.0
"""Seconds of lateness up to which the reactor is ready."""

_SILENCE = 3.0
"""Seconds without a heartbeat of the reactor after which it is not ready."""

CheckResult = tuple[bool, str]
"""Whether the checked thing is ready, and a sentence that says so."""

Check = dict[str, Any]
"""JSON: {"name": str, "ready": bool, "detail": str, "since": when a check first found this ``ready``, ISO 8601 in
UTC}. Nothing is checked between requests, so it may have changed any time after the check before."""


@attrs.define(eq=False)
class CheckHistory:
    """Make JSON of check results, and remember when each was first found as it is.

    :param now: returns seconds since the epoch.
    """

    _now: Callable[[], float] = time.time
    _before: dict[str, tuple[bool, float]] = attrs.field(factory=dict, init=False)

    def check(self, name: str, result: CheckResult) -> Check:
        """Return a check as JSON.

        :param name: what was checked, such as "broker".
        """
        ready, detail = result
        before, since = self._before.get(name, (not ready, 0.0))
        if before != ready:
            since = self._now()
            self._before[name] = ready, since
        return {"name": name, "ready": ready, "detail": detail, "since": iso_time(since)}


def _freshness(registry: CheckResult) -> float:
    return 1.0 if registry[0] else 0.1


@attrs.define(eq=False)
class NodeHealth:
    """The health checks of a node, run when they are asked for.

    Concurrent checks of the registry are coalesced, and its result is cached: for a second if it is ready, else for
    a tenth. Heartbeats prove that the registry can be written; a node that sends none tries a write.
    """

    _node: "Node"
    _history: CheckHistory = attrs.field(factory=CheckHistory, init=False)
    _registry_check: CoalescingCache[CheckResult] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        clock = self._node.runtime.reactor
        self._registry_check = CoalescingCache(
            lambda: Deferred.fromCoroutine(self._check_registry(clock)), clock, _freshness
        )

    async def checks(self) -> list[Check]:
        """Return all checks: service, broker, database or conductor, migration, consumers, reactor."""
        node = self._node
        registry = await self._registry_check.get()
        state, fenced = node.lifecycle.state, node.fence.reason
        results: dict[str, CheckResult] = {
            "service": (
                state == "running" and fenced is None,
                f"it is {state}" if fenced is None else f"it is fenced: {fenced}",
            ),
            "broker": self._check_broker(),
            node.registry_connection.name: registry,
            "migration": check_migration(node.start_error, reached=node.registry is not None),
            "consumers": self._check_consumers(),
            "reactor": check_reactor(),
        }
        return [self._history.check(name, result) for name, result in results.items()]

    def _check_consumers(self) -> CheckResult:
        node = self._node
        if node.server is None or not node.server.live:
            return False, f"no messages reach it: {self._why_no_messages()}"
        problem = node.why_not_reached()
        return problem is None, "messages reach it" if problem is None else f"no messages reach it: {problem}"

    def _check_broker(self) -> CheckResult:
        transport = self._node.transport
        problem = self._missing("broker") if transport is None else transport.problem()
        return problem is None, problem or "messages can be sent"

    async def _check_registry(self, clock: IReactorTime) -> CheckResult:
        registry, record = self._node.registry, self._node.record
        if registry is None or record is None:
            return False, self._missing(self._node.registry_connection.name)
        heartbeat = self._node.heartbeat
        if heartbeat is None or not heartbeat.is_current:
            return await check_registry(registry.prove_writable(), clock)
        if heartbeat.write_error is not None:
            return False, f"heartbeats cannot be written: {heartbeat.write_error}"
        return await check_registry(registry.get(str(record.id)), clock)

    def _why_no_messages(self) -> str:
        node = self._node
        state = node.lifecycle.state
        if state == "draining":
            return "it is draining, and accepts only calls of operations under way"
        if state != "running":
            return f"it is {state}"
        if node.fence.reason is not None:
            return f"it is fenced: {node.fence.reason}"
        broker, problem = self._check_broker()
        return "its consumers are being restored" if broker else f"the broker is unavailable: {problem}"

    def _missing(self, dependency: str) -> str:
        node = self._node
        if node.waiting_for == dependency:
            return f"it is unavailable: {node.start_error}"
        return f"it has not been reached: the node is {node.lifecycle.state}"


async def check_registry(asking: Deferred[Any], clock: IReactorTime) -> CheckResult:
    """Check whether a registry answers within PATIENCE.

    :param asking: the result of a call just made. A missing row is an answer, too.
    """
    asked = clock.seconds()
    try:
        await asking.addTimeout(PATIENCE, clock)
    except ServiceNotFoundError:
        pass  # it answered; the next heartbeat says more
    except NovasvcError as error:
        return False, str(error)
    except DeferredTimeoutError:
        return False, f"no answer within {PATIENCE:g} s"
    except Exception as error:  # noqa: BLE001 - any other error means that it did not answer
        return False, describe(error)
    return True, f"it answered within {1000 * (clock.seconds() - asked):.0f} ms"


def check_migration(error: NovasvcError | None, *, reached: bool) -> CheckResult:
    """Check whether the schema has the right revision. A registry that was reached has checked that.

    :param error: why the registry was not reached.
    """
    if reached:
        return True, "the schema has the revision of this version"
    return False, str(error) if isinstance(error, MigrationNeededError) else "the schema was not read yet"


def check_reactor() -> CheckResult:
    """Check whether this process's reactor is on time. Without a stall watch the check passes."""
    last_beat = flight.installed().last_beat
    if not last_beat:
        return True, "it is not watched"
    late = metrics.last_lag.at().value
    silent = time.monotonic() - last_beat
    if silent > _SILENCE:
        late = max(late, silent)
    return late <= LAG_LIMIT, f"it was {1000 * late:.0f} ms late"
