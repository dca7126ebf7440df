"""Nodes that are told to end in the midst of operations: python -m tests.faults.drain_rounds [ROUNDS [KIND ...]]

An operation is a call to A, which calls B, which calls A back. Under a load of them one node A is told to end, again
and again; none may fail. Kinds are those of :data:`KINDS`; without one, all are run. B and the callers are ours, or
written with oslo.messaging.
"""

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import RPCError, ServiceDrainingError
from novasvc.rpc.target import Target
from tests.faults.drain_parts import PATIENCE, TOPIC, Middle
from tests.faults.fleet_rig import Fleet, Fleets
from tests.interop.peer import InteropCase

START = 120.0
"""Seconds for a node to be ready: several start at a time, and the machine may have other work."""
GRACE = 20.0
HOSTS = ("h1", "h2")
"""Of the nodes that are told to end, side by side."""
CALLERS = 16
SECONDS = 0.3
"""How long B takes before it calls A back."""
LEAST = 3
"""Operations that are under way, at the least, when the node is told to end."""

Operate = Callable[[str, str | None], Awaitable[Any]]
"""Takes a name for the operation and a host, or None for any; returns what A answered."""


@attrs.frozen
class Kind:
    """What is tested.

    :param workers: of each node A; 0 is a process without a supervisor.
    :param middle: who is B: "ours" or "theirs".
    :param callers: who calls A: "ours" or "theirs".
    """

    workers: int
    middle: str = "ours"
    callers: str = "ours"


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "single": Kind(0),
        "workers": Kind(2),
        "oslo-middle": Kind(0, middle="theirs"),
        "oslo-callers": Kind(0, callers="theirs"),
        "oslo-middle-workers": Kind(2, middle="theirs"),
    }
)


@attrs.define
class Tally:
    """What became of the operations.

    :param under_way: that were under way in the node when it was told to end, in each round.
    :param seconds: that its end took, in each round.
    :param refused: calls to the draining node itself that were refused as they are to be.
    """

    operations: int = 0
    under_way: list[int] = attrs.field(factory=list)
    seconds: list[float] = attrs.field(factory=list)
    refused: int = 0
    failed: list[str] = attrs.field(factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} nodes told to end, with {min(self.under_way)} to {max(self.under_way)} operations "
            f"under way ({sum(self.under_way)} in all); {self.operations} operations, {len(self.failed)} failed; "
            f"{self.refused} calls to a draining node refused; "
            f"a drain took {min(self.seconds):.2f} to {max(self.seconds):.2f} s"
        )


class DrainCase(Fleets, InteropCase):
    """Each test has a virtual host of its own."""

    fleet = None

    async def check(self, rounds: int, kind: Kind, chance: random.Random) -> Tally:
        """Have nodes end again and again under load; see that no operation fails."""
        other = self.node("stays", 0)
        operate = await self.operate(kind)
        tally, under_way, numbers = Tally(), [True], itertools.count()

        async def load() -> None:
            while under_way:
                what = f"w{next(numbers)}"
                try:
                    answer = await operate(what, None)
                except Exception as error:  # noqa: BLE001 - all of them are told in the end
                    tally.failed.append(f"{what}: {type(error).__name__}: {error}")
                else:
                    tally.operations += 1
                    if answer not in {f"{what} at {host}" for host in ("stays", *HOSTS)}:
                        tally.failed.append(f"{what}: answered {answer!r}")

        async def end_again(host: str) -> None:
            while len(tally.seconds) < rounds:
                await self.round(kind, tally, chance, host)

        await deferToThread(other.says, "is running")
        callers = DeferredList([Deferred.fromCoroutine(load()) for _ in range(CALLERS)])
        try:
            await gatherResults([Deferred.fromCoroutine(end_again(host)) for host in HOSTS], consumeErrors=True)
        finally:
            under_way.clear()
            await callers
        self.assertEqual(tally.failed, [])
        return tally

    async def round(self, kind: Kind, tally: Tally, chance: random.Random, host: str) -> None:
        """Start a node, and have it end in the midst of operations."""
        node = self.node(host, kind.workers)
        before = len(node.journal)
        if kind.workers:
            await deferToThread(node.ready, kind.workers, (), START)
        else:
            await deferToThread(node.says, "is running", START)
        await self.until(lambda: len(_under_way(node)) >= LEAST and len(node.journal) > before + 4 * LEAST, START)
        await deferLater(reactor, chance.uniform(0, SECONDS))
        # Checked again: on a busy machine the callers may have begun nothing in the meantime.
        await self.until(lambda: len(_under_way(node)) >= LEAST, START)
        began, operations = time.monotonic(), _under_way(node)
        os.kill(node.pid, signal.SIGTERM)
        # Each process says it for itself.
        await self.until(lambda: len(node.said(rf"@{host} is draining")) == max(1, kind.workers))
        told = len(node.journal)
        await self.knock(tally, host)
        self.assertEqual(await deferToThread(node.wait), -signal.SIGTERM, node.output)
        tally.seconds.append(time.monotonic() - began)
        tally.under_way.append(len(operations))
        self.progress(tally)
        journal = node.journal
        self.assertEqual(_under_way(node), set(), node.output)
        self.assertEqual([line for line in journal[told:] if line.startswith("unrelated")], [], node.output)
        self.assertEqual(max(Counter(journal).values()), 1)
        self.assertNotIn("cancelled", node.output)

    async def knock(self, tally: Tally, host: str) -> None:
        """Call the draining node itself, with what belongs to no operation; it may have ended before it reads that."""
        knocking = self._knocker.prepare(server=host, timeout=1.0)
        try:
            await knocking.call(RequestContext(), "unrelated", what="knock")
        except ServiceDrainingError:
            tally.refused += 1
        except RPCError:
            pass  # Nobody is there any more, or the call waits for the next process.

    def progress(self, tally: Tally) -> None:
        """See a round end well."""

    def node(self, host: str, workers: int) -> Fleet:
        """Start a node A."""
        options = ["--transport-url", self.url, "--graceful-shutdown-timeout", str(GRACE)]
        if workers:
            options += ["--workers", str(workers)]
        return self.twistd(*options, manager="tests.faults.drain_parts.Origin", host=host)

    async def operate(self, kind: Kind) -> Operate:
        """Start B, and return what begins an operation."""
        ours = await self.client(topic=TOPIC, patience=PATIENCE)
        self._knocker = ours
        through = self.topic
        if kind.middle == "ours":
            server = rpc.Server(
                await self.connect(),
                Target(through, "b"),
                rpc.Endpoints(Middle(reactor, ours)),
                clock=reactor,
                run_blocking=lambda function: succeed(function()),
            )
            self.addCleanup(server.close)
            await server.start()
        else:
            await self.peer_serves(topic=through)
        peer = await self.peer() if kind.callers == "theirs" else None

        def operate(what: str, host: str | None) -> Awaitable[Any]:
            args = {"what": what, "through": through, "seconds": SECONDS}
            if peer is None:
                return ours.prepare(server=host).call(RequestContext(), "operate", **args)
            target = {"topic": TOPIC, "server": host}
            context = {"request_id": f"req-{what}"}
            return peer.call("operate", target=target, context=context, options={"timeout": PATIENCE}, **args)

        return operate


def _under_way(node: Fleet) -> set[str]:
    """Return the operations that a node has begun and not done."""
    journal = [line.split() for line in node.journal]
    begun, done = ({what for how, what in journal if how == wanted} for wanted in ("begun", "done"))
    return begun - done


def main(rounds: str = "100", *kinds: str) -> None:
    from twisted.trial.reporter import TextReporter  # noqa: PLC0415 - of the command alone
    from twisted.trial.runner import TestSuite, TrialRunner  # noqa: PLC0415

    seed = random.randrange(2**32)

    class Rounds(DrainCase):
        timeout = 86_400.0

        def progress(self, tally: Tally) -> None:
            print(f"\r{tally}", end="", flush=True)  # noqa: T201 - asked for

        async def check_kind(self, name: str) -> None:
            tally = await self.check(int(rounds), KINDS[name], random.Random(seed))
            print(f"\n{name} (seed {seed}): {tally}", flush=True)  # noqa: T201 - asked for

    for name in kinds or KINDS:

        def test(self: Rounds, name: str = name) -> Deferred[None]:
            return Deferred.fromCoroutine(self.check_kind(name))

        setattr(Rounds, f"test_{name.replace('-', '_')}", test)
    suite = TestSuite([Rounds(f"test_{name.replace('-', '_')}") for name in kinds or KINDS])
    result = TrialRunner(TextReporter).run(suite)
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main(*sys.argv[1:])
