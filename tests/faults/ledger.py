"""A ledger of calls: what each was, what ran, and how each ended; and the callers that fill it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import RPCTimeoutError

CONTEXT = RequestContext()


class Worker:
    """What is served: notes each run of a numbered call."""

    def __init__(self) -> None:
        self.runs: Counter[int] = Counter()

    @rpc.expose
    async def once(self, context: RequestContext, number: int, seconds: float = 0.0) -> int:
        return await self._run(number, seconds)

    @rpc.expose(idempotent=True)
    async def again(self, context: RequestContext, number: int, seconds: float = 0.0) -> int:
        return await self._run(number, seconds)

    async def _run(self, number: int, seconds: float) -> int:
        self.runs[number] += 1
        if seconds:
            await deferLater(reactor, seconds)
        return number


@attrs.define(eq=False)
class Entry:
    """One call.

    :param outcome: its error; None if it was answered.
    :param seconds: that it took.
    :param began: seconds on the reactor's clock.
    """

    number: int
    idempotent: bool
    outcome: Exception | None
    seconds: float
    began: float


@attrs.define(eq=False)
class Ledger:
    """Calls that are made one after the other by several callers at a time.

    :param seconds: that each method takes.
    """

    client: rpc.Client
    worker: Worker
    seconds: float = 0.0
    entries: list[Entry] = attrs.field(factory=list, init=False)
    in_flight: int = attrs.field(default=0, init=False)
    _numbers: int = attrs.field(default=0, init=False)
    _going: bool = attrs.field(default=False, init=False)
    _callers: list[Deferred[None]] = attrs.field(factory=list, init=False)

    def begin(self, callers: int) -> None:
        """Have half the callers call idempotent methods, and half the others."""
        self._going = True
        self._callers = [Deferred.fromCoroutine(self._call_on(idempotent=bool(n % 2))) for n in range(callers)]

    async def end(self) -> None:
        """Make no more calls, and wait for the outcome of each."""
        self.stop()
        for success, failure in await DeferredList(self._callers, consumeErrors=True):
            if not success:
                failure.raiseException()

    def stop(self) -> None:
        """Make no more calls."""
        self._going = False

    async def _call_on(self, *, idempotent: bool) -> None:
        client, method = self.client.prepare(idempotent=idempotent), "again" if idempotent else "once"
        while self._going:
            self._numbers += 1
            number, begun = self._numbers, reactor.seconds()
            outcome: Exception | None = None
            self.in_flight += 1
            try:
                assert await client.call(CONTEXT, method, number=number, seconds=self.seconds) == number
            except Exception as error:  # noqa: BLE001 - it is noted, and judged later
                outcome = error
            self.in_flight -= 1
            self.entries.append(Entry(number, idempotent, outcome, reactor.seconds() - begun, begun))
            if outcome is not None:
                await deferLater(reactor, 0.01)

    def select(self, condition: Callable[[Entry], Any]) -> list[Entry]:
        """Return the calls for which something holds."""
        return [entry for entry in self.entries if condition(entry)]

    @property
    def unconfirmed_timeouts(self) -> list[Entry]:
        """The calls that waited out their timeout for want of a confirm."""
        return self.select(lambda e: isinstance(e.outcome, RPCTimeoutError) and e.outcome.unconfirmed)

    @property
    def timeouts(self) -> list[Entry]:
        """The calls that waited out their timeout."""
        return self.select(lambda e: isinstance(e.outcome, RPCTimeoutError))

    @property
    def run_twice(self) -> list[Entry]:
        """The calls of methods that are not idempotent, and ran more than once."""
        return self.select(lambda e: not e.idempotent and self.worker.runs[e.number] > 1)

    @property
    def answered_without_a_run(self) -> list[Entry]:
        """The calls that were answered and never ran."""
        return self.select(lambda e: e.outcome is None and not self.worker.runs[e.number])

    def totals(self) -> dict[str, int]:
        """Count the outcomes, by kind of call."""
        names = (
            f"{'idempotent' if e.idempotent else 'once'} {type(e.outcome).__name__ if e.outcome else 'answered'}"
            for e in self.entries
        )
        return dict(sorted(Counter(names).items()))
