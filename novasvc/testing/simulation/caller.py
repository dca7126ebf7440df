"""A process of a simulation that calls others, and whose requests are in the ledger."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.testing.simulation.ledger import Request
from novasvc.testing.simulation.process import SimulatedProcess

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation


class Caller:
    """A process that only calls others, on a host of its own.

    :param work: coroutine function that takes this caller: a loop of pauses and calls, ``while not caller.over``.
    :ivar works: its work has begun, and has not ended.
    :ivar random: draws what it does; use no other random source, and no other clock than :meth:`pause`.
    """

    def __init__(
        self, simulation: "Simulation", host: str, work: Callable[["Caller"], Coroutine[Deferred[Any], Any, None]]
    ) -> None:
        self.simulation = simulation
        self._work = work
        self.host = host
        self.works = False
        self.random = simulation.seed.source(f"caller {host}")
        self.process: SimulatedProcess = simulation.add_process(host, host)

    def start(self) -> Deferred[None]:
        """Connect, and begin to work; called once."""
        self.works = True
        return Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        await self.process.connect_client()
        await self._work(self)
        self.works = False

    @property
    def over(self) -> bool:
        """Whether the time of the faults is over: no further request is to be sent."""
        return self.simulation.over

    def pause(self, seconds: float) -> Deferred[None]:
        """Wait for some seconds of this process's clock."""
        return deferLater(self.process.clock, seconds, lambda: None)

    def call(
        self,
        topic: str,
        method: str,
        /,
        *,
        server: str | None = None,
        timeout: float = 60.0,
        **args: Any,
    ) -> Deferred[Any]:
        """Call a method; its end and its runs are checked. See :meth:`novasvc.rpc.Client.call`.

        :param server: the host; None for any of the topic.
        :param timeout: seconds.
        :param args: of the method; a method of ``@rpc.expose(idempotent=True)`` is called with idempotent=True.
        """
        context = RequestContext()
        idempotent = f"{topic}.{method}" in self.simulation.idempotent
        client = self._client(topic, server, timeout=timeout, idempotent=idempotent)
        request = Request(
            process=self.process.name,
            kind="call",
            key=f"{topic}.{method}",
            server=server,
            request=context.request_id,
            idempotent=idempotent,
            timeout=timeout,
            began=self.simulation.clock.rightNow,
        )
        return self._follow(request, lambda: client.call(context, method, **args))

    def cast(self, topic: str, method: str, /, *, server: str | None = None, **args: Any) -> Deferred[None]:
        """Send a request without a reply. If the method is idempotent, it must run once the broker has it."""
        context = RequestContext()
        client = self._client(topic, server)
        request = Request(
            process=self.process.name,
            kind="cast",
            key=f"{topic}.{method}",
            server=server,
            request=context.request_id,
            idempotent=f"{topic}.{method}" in self.simulation.idempotent,
            timeout=None,
            began=self.simulation.clock.rightNow,
        )
        return self._follow(request, lambda: client.cast(context, method, **args))

    def emit(self, event_type: str, payload: Any = None) -> Deferred[None]:
        """Publish an event; it must be handled once the broker has it, if a node handles it."""
        context = RequestContext()
        events = self.process.events
        request = Request(
            process=self.process.name,
            kind="event",
            key=event_type,
            server=None,
            request=context.request_id,
            idempotent=True,
            timeout=None,
            began=self.simulation.clock.rightNow,
        )
        return self._follow(request, lambda: events.emit(context, event_type, payload))

    def _client(self, topic: str, server: str | None, **prepared: Any) -> rpc.Client:
        if self.process.client is None:
            raise StateError(f"caller {self.host}", "starting", "call others")
        return self.process.client.prepare(topic=topic, server=server, **prepared)

    def _follow(self, request: Request, send: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        ledger, clock = self.simulation.ledger, self.process.clock
        ledger.ask(request)
        began = clock.seconds()

        def ended(result: Any) -> Any:
            ledger.answer(request, result, clock.seconds() - began)
            return result

        try:
            return send().addBoth(ended)
        except Exception as error:  # noqa: BLE001 - a wrong argument: the caller sees it as a failed call
            ledger.withdraw(request)
            return fail(error)
