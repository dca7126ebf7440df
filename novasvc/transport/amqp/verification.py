"""Check that messages reach a listener: send probes, and redeclare what is missing."""

import re
from typing import TYPE_CHECKING

import attrs
from twisted.internet.task import deferLater

from novasvc.interfaces import Reachability, WriteProbe
from novasvc.rpc.errors import RPCError, UndeliverableError
from novasvc.transport.amqp.topology import Binding
from novasvc.transport.errors import BrokerBlockedError, BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from novasvc.transport.amqp.loopback import Loopback

_NOT_FOUND = re.compile(r"(?:no|of durable) (exchange|queue) '([^']*)'")
"""RabbitMQ's reply text for a name that does not exist, or whose broker node is down."""
_POLL = 0.25
"""Seconds between two checks whether a lost connection or consumer is back."""


class NoConsumerError(Exception):
    """A queue of the listener has no consumer."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"the queue {queue} has no consumer")
        self.queue = queue


class ProbeTimeoutError(Exception):
    """A probe was confirmed and did not arrive in time."""


@attrs.define
class Plan:
    """What one attempt declares before it sends its probe.

    :param exchanges: names of exchanges to declare.
    :param bindings: bindings to make.
    :param stale: those bindings that route nowhere; they are removed first.
    :param count_consumers: check the topic queue's consumer count.
    :param to_topic: send a probe to the topic as well.
    """

    exchanges: set[str] = attrs.field(factory=set)
    bindings: list[Binding] = attrs.field(factory=list)
    stale: set[Binding] = attrs.field(factory=set)
    count_consumers: bool = False
    to_topic: bool = False


@attrs.define(eq=False)
class ProbeRun:
    """Sends probes until one arrives; redeclares before each attempt what the last one found missing.

    :param write: returns the probe's body.
    :param deadline: in seconds on the clock.
    :param plan: for the first attempt.
    :ivar problems: problems of the attempts so far, in order; one that recurs cannot be repaired.
    :ivar missing: the queue, exchange or binding that was found missing last.
    :ivar repaired: what was declared again.
    """

    _loopback: "Loopback"
    _write: WriteProbe
    _deadline: float
    _plan: Plan
    _problems: list[str] = attrs.field(factory=list, init=False)
    _missing: str | None = attrs.field(default=None, init=False)
    _repaired: list[str] = attrs.field(factory=list, init=False)

    async def run(self) -> Reachability:
        """Run attempts until the probe arrives, a problem recurs or time is up; return the result.

        :raises BrokerBlockedError: the broker blocks publishing.
        """
        while True:
            if not await self._wait_until_live():
                return Reachability(self._problems[-1] if self._problems else "the listener is not consuming")
            try:
                await self._loopback.send_and_wait(self._plan, self._write, self._deadline)
            except BrokerBlockedError:
                raise
            except ProbeTimeoutError as error:
                return self._loopback.handle_timeout(str(error))
            except (NoConsumerError, RPCError) as error:
                problem = await self._plan_next(error)
            else:
                return Reachability(repaired=tuple(self._repaired))
            if problem in self._problems:
                redeclared = problem == f"{self._missing} is missing"
                return Reachability(
                    f"{self._missing} is still missing after it was redeclared" if redeclared else problem
                )
            self._problems.append(problem)

    async def _wait_until_live(self) -> bool:
        """Wait until the listener consumes; return whether it does before the deadline."""
        listener, clock = self._loopback.listener, self._loopback.listener.clock
        while not listener.live and clock.seconds() < self._deadline:
            await deferLater(clock, _POLL, lambda: None)
        return listener.live and clock.seconds() < self._deadline

    async def _plan_next(self, error: Exception) -> str:
        """Plan the next attempt by the last one's error; return the problem in words."""
        if isinstance(error, NoConsumerError):
            return await self._resubscribe(error.queue, str(error))
        if isinstance(error, UndeliverableError):
            loopback = self._loopback
            binding = (
                loopback.topic_binding
                if error.target == loopback.topic_binding.routing_key
                else loopback.server_binding
            )
            self._plan.stale.add(binding)
            return self._redeclare(str(binding))
        if isinstance(error, BrokerError):
            return await self._plan_after_broker_error(error)
        return await self._wait(f"the service cannot publish to itself: {error}")

    async def _plan_after_broker_error(self, error: BrokerError) -> str:
        match = _NOT_FOUND.search(error.problem)
        if match is not None and match[1] == "queue":
            return await self._resubscribe(match[2], f"the queue {match[2]} is missing")
        if match is not None:
            self._plan.exchanges.add(match[2])
            return self._redeclare(f"the exchange {match[2]}")
        if type(error) is BrokerUnavailableError:
            return await self._wait(f"the service cannot publish to itself: {error.problem}")
        if self._missing is not None:
            return f"{self._missing} is missing, and the broker {error.broker} refused to redeclare it: {error.problem}"
        # Declare nothing next time: this refusal may concern a declaration that is not needed.
        self._plan = Plan()
        return f"the broker refuses: {error.problem}"

    async def _wait(self, problem: str) -> str:
        """Wait for a connection to come back."""
        await deferLater(self._loopback.listener.clock, _POLL, lambda: None)
        # Forget the problem so that run() retries until the deadline.
        if problem in self._problems:
            self._problems.remove(problem)
        return problem

    def _redeclare(self, missing: str) -> str:
        """Plan to redeclare a binding or exchange, with all bindings that may have gone with it."""
        loopback = self._loopback
        self._plan = Plan(
            self._plan.exchanges,
            [
                loopback.server_binding,
                loopback.topic_binding,
                loopback.fanout_binding,
                *loopback.cancellation_bindings,
            ],
            self._plan.stale,
        )
        self._repaired.append(missing)
        self._missing = missing
        return f"{missing} is missing"

    async def _resubscribe(self, queue: str, problem: str) -> str:
        """Resubscribe and log the problem, unless the consuming connection's broker node still counts a consumer.

        In that case the broker nodes disagree.
        """
        listener = self._loopback.listener
        self._plan = self._loopback.routine_plan()
        if await listener.count_consumers(queue):
            publishing, consuming = (connection.host_and_port for connection in listener.connections)
            disagreement = f"the service consumes at {consuming}, and {publishing} does not know its queues"
            return f"the broker nodes disagree: {disagreement}"
        listener.resubscribe(problem)
        return problem
