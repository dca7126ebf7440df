"""Whether a node can do what it is there for: each thing that it stands on, and why not."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError

from novasvc import flight, metrics
from novasvc.errors import MigrationNeededError, NovasvcError, ServiceNotFoundError, describe
from novasvc.memo import Memo

if TYPE_CHECKING:
    from novasvc.service.node import Node

PATIENCE = 2.0
"""Seconds for a leg to answer."""

LAG_LIMIT = 1.0
"""Seconds that the reactor may be late."""

_SILENCE = 3.0
"""Seconds without a turn of the reactor that are a lag, too."""

Leg = dict[str, Any]
"""JSON: {"name": str, "ready": bool, "detail": str, "since": ISO 8601 in UTC}; since when it has been so."""


@attrs.define(eq=False)
class Health:
    """The legs of a node, as they are when they are asked for.

    The registry is asked at most once a second, however many want to know, and given :data:`PATIENCE`.
    """

    _node: "Node"
    _registry: Memo[tuple[bool, str]] = attrs.field(init=False)
    _before: dict[str, tuple[bool, float]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._registry = Memo(self._ask_registry, self._node.runtime.reactor)

    async def legs(self) -> list[Leg]:
        """Return how each of them does: service, broker, database or conductor, migration, consumers, reactor."""
        node = self._node
        registry = node.registry_leg.name
        answers, said = (False, self._missing(registry)) if node.registry is None else await self._registry.get()
        legs = [
            self._leg("service", node.course.state == "running", node.course.state),
            self._leg("broker", *self._broker()),
            self._leg(registry, answers, said),
            self._leg("migration", *self._migration()),
            self._leg("consumers", *self._consumers()),
        ]
        return [*legs, self._leg("reactor", *reactor())]

    def _leg(self, name: str, ready: bool, detail: str) -> Leg:  # noqa: FBT001 - the second of a pair
        before, since = self._before.get(name, (not ready, 0.0))
        if before != ready:
            since = time.time()
            self._before[name] = ready, since
        return {"name": name, "ready": ready, "detail": detail, "since": _time(since)}

    def _missing(self, leg: str) -> str:
        node = self._node
        return (
            f"it is being reached: {node.obstacle}" if node.waiting_for == leg else f"the node is {node.course.state}"
        )

    def _broker(self) -> tuple[bool, str]:
        transport = self._node.transport
        problem = self._missing("broker") if transport is None else transport.problem()
        return problem is None, problem or "messages can move"

    def _migration(self) -> tuple[bool, str]:
        node = self._node
        if node.registry is not None:
            return True, "the schema is the one that this version knows"
        error = node.obstacle
        return False, str(error) if isinstance(error, MigrationNeededError) else "the schema has not been seen yet"

    def _consumers(self) -> tuple[bool, str]:
        server = self._node.server
        live = server is not None and server.live
        return live, "messages reach it" if live else f"no messages reach it; the node is {self._node.course.state}"

    def _ask_registry(self) -> Deferred[tuple[bool, str]]:
        return Deferred.fromCoroutine(self._see_registry())

    async def _see_registry(self) -> tuple[bool, str]:
        node = self._node
        registry, record = node.registry, node.record
        if registry is None or record is None:
            return False, self._missing(node.registry_leg.name)
        asked = node.runtime.reactor.seconds()
        asking: Deferred[Any] = registry.get(str(record.id))
        try:
            await asking.addTimeout(PATIENCE, node.runtime.reactor)
        except ServiceNotFoundError:
            pass  # it answers; the next heartbeat makes the row again
        except NovasvcError as error:
            return False, str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            late = f"no answer within {PATIENCE:g} s" if isinstance(error, DeferredTimeoutError) else describe(error)
            return False, late
        return True, f"answered within {1000 * (node.runtime.reactor.seconds() - asked):.0f} ms"


def reactor() -> tuple[bool, str]:
    """Tell whether the reactor of this process answers in time; of one that is not watched, that nobody knows."""
    beaten = flight.installed().beaten
    if not beaten:
        return True, "it is not measured"
    late = metrics.last_lag.at().value
    silent = time.monotonic() - beaten
    if silent > _SILENCE:
        late = max(late, silent)
    return late <= LAG_LIMIT, f"{1000 * late:.0f} ms late"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
