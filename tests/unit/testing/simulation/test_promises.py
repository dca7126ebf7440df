"""Tests for the checker of simulations: each promise is broken on purpose, and must be found."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.node.node import Node
from novasvc.registry import election, memory, memory_incarnations
from novasvc.registry.fencing import check_current
from novasvc.registry.heartbeat import Heartbeat
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.memory_leases import MemoryLeases
from novasvc.registry.outages import Outages
from novasvc.registry.record import ServiceRecord
from novasvc.rpc import replies
from novasvc.rpc.events.listener import EventListener
from novasvc.rpc.ids import new_id
from novasvc.rpc.message import read_reply
from novasvc.rpc.replies import PendingCalls
from novasvc.rpc.server import execution
from novasvc.rpc.server.dispatcher import Dispatcher
from novasvc.rpc.server.ledger import Ledger
from novasvc.rpc.server.takeover import Takeover
from novasvc.testing.simulation import Caller, Fault, Simulation, run_seed
from novasvc.transport.memory import transport
from tests.simulation.fleet import build

_hold = MemoryLeases.hold
_drop_stale = execution.Execution.drop_stale
_enqueue = Dispatcher._enqueue
_begin = EventListener._begin
_call = PendingCalls.call
_lease = MemoryLeases._lease


def _hold_without_fencing(leases: MemoryLeases, request: Any) -> Any:
    _hold(leases, request)
    for row in leases._rows.values():
        row.fencing = 1
    return [leases._lease(request.topic, task) for task in sorted(request.tasks)]


def _acknowledge_first(dispatcher: Dispatcher, call: Any) -> None:
    call.delivery.ack()
    _enqueue(dispatcher, call)


def _drop(ledger: Ledger, call: Any, *, here: bool = False) -> None:
    ledger._unsettled.pop(call.request.unique_id or call, None)
    call.delivery.ack()


@pytest.mark.timeout(300)
class MutationTests(SynchronousTestCase):
    """A bug that is put into the framework is found by one of a few seeds."""

    def find(
        self,
        promise: str,
        first: int,
        broken: object,
        name: str,
        mutant: object,
        kinds: Sequence[str],
        **options: Any,
    ) -> None:
        """Break one thing, and run seeds until the promise is found broken.

        :param first: the seed that found it when this test was written; others follow, in case it does so no more.
        """
        self.patch(broken, name, mutant)
        found: list[str] = []
        for seed in range(first, first + 40):
            found = run_seed(build, seed, kinds=kinds, faults=6, **options).broken
            self.flushLoggedErrors()
            if any(text.startswith(f"{promise}:") for text in found):
                return
        self.fail(f"no seed found that {promise} is broken; the last one found {found}")

    def test_swaps_results(self) -> None:
        """A client that gives each call the result of the one before."""
        last = ["none"]

        def read_swapped(fields: Any) -> Any:
            reply = read_reply(fields)
            if not str(reply.result).startswith("shop"):
                return reply
            last.append(reply.result)
            return reply._replace(result=last.pop(0))

        self.find("answers_come_from_runs", 0, replies, "read_reply", read_swapped, ("slow",))

    def test_runs_twice(self) -> None:
        """A server that runs redelivered requests, which a dead process may have run."""
        always: Callable[..., bool] = lambda takeover, request: True  # noqa: E731
        self.find("runs_at_most_once", 18, Takeover, "may_run", always, ("kill", "cut"))

    def test_repeats_under_another_id(self) -> None:
        """A client that sends any call again if it was not confirmed, as another message."""

        def repeat(calls: PendingCalls, msg_id: str, pending: Any, error: Exception) -> None:
            another = new_id()
            calls._pending[another] = calls._pending.pop(msg_id)
            calls._deadlines.live.pop(msg_id, None)
            pending.body = None  # it has the id
            calls._wait(another, pending, pending.keepalive)
            calls._send(another, pending, str(calls._address))

        self.find("runs_at_most_once", 25, PendingCalls, "_handle_unconfirmed", repeat, ("cut", "kill"))

    def test_acknowledges_early(self) -> None:
        """A server that acknowledges idempotent requests before they have run."""
        self.find("nothing_is_lost", 1, Dispatcher, "_enqueue", _acknowledge_first, ("kill",))

    def test_loses_events_of_one_topic(self) -> None:
        """An event listener that acknowledges the events of one topic, and drops them; another topic handles them."""

        def begin(listener: EventListener, handling: Any, handlers: Any) -> None:
            if listener._topic == "second":
                handling.delivery.ack()
            else:
                _begin(listener, handling, handlers)

        self.patch(EventListener, "_begin", begin)
        found = simulate({"first": Subscriber, "second": Subscriber}, lambda caller: caller.emit("order.placed", {}))
        self.assertRegex(found[0], "nothing_is_lost: event order.placed .* second never handled it to its end")

    def test_drops_while_draining(self) -> None:
        """A server that drops the idempotent requests that it cuts short when the time for its drain is over."""
        options = {"graceful_shutdown_timeout": 1.0}
        self.find("nothing_is_lost", 0, Ledger, "requeue", _drop, ("restart",), **options)

    def test_does_not_send_again(self) -> None:
        """A client that takes no call for idempotent."""

        def call(calls: PendingCalls, *args: Any, idempotent: bool = False, **options: Any) -> Any:
            return _call(calls, *args, **options)

        self.find("idempotent_calls_survive", 0, PendingCalls, "call", call, ("cut", "kill"))

    def test_loses_requests(self) -> None:
        """A server that acknowledges idempotent requests before they have run: the calls of a killed host are lost."""
        self.patch(Dispatcher, "_enqueue", _acknowledge_first)
        kill = Fault(number=0, kind="kill", at=18.0, seconds=5.0, places=("a",))
        found = simulate({"shop": Shop}, lambda caller: caller.call("shop", "pack"), plan=[kill])
        self.assertRegex(found[0], "idempotent_calls_survive: call shop.pack .* ended with RPCTimeoutError")

    def test_fails_untyped(self) -> None:
        """A client whose calls fail with whatever error its own code raises."""

        def fail(calls: PendingCalls, msg_id: str, pending: Any, error: Exception) -> None:
            calls._fail(msg_id, KeyError(msg_id), pending.metrics.unconfirmed)

        self.find("errors_are_typed", 0, PendingCalls, "_handle_unconfirmed", fail, ("cut", "kill"))

    def test_never_gives_up(self) -> None:
        """A client whose calls have no deadline."""
        self.find("ends_by_deadline", 1, PendingCalls, "_expire", lambda calls, msg_id: None, ("kill",))

    def test_leads_too_long(self) -> None:
        """A leader that does not stop before its lease ends."""
        self.find("one_leader", 4, election, "STOP", 3.0, ("database partition",))

    def test_falling_fencing(self) -> None:
        """A registry whose fencing numbers fall."""

        def fall(leases: MemoryLeases, topic: str, task: str) -> Any:
            lease = _lease(leases, topic, task)
            return attrs.evolve(lease, fencing=1_000_000 - lease.fencing)

        self.find("one_leader", 0, MemoryLeases, "_lease", fall, ("kill", "database partition", "restart"))

    def test_same_fencing(self) -> None:
        """A registry whose fencing numbers do not grow."""
        self.find("one_leader", 1, MemoryLeases, "hold", _hold_without_fencing, ("kill",))

    def test_unreachable(self) -> None:
        """A node that does not find out that its queue is gone."""
        self.find("nodes_run", 2, transport._Listener, "_repair", lambda listener: (), ("lost queue",))

    def test_is_not_fenced(self) -> None:
        """A node that goes on when it is forced down."""

        async def stay(node: Node, reason: str) -> None:
            pass

        self.find("fenced_nodes_run_nothing", 0, Node, "_leave_service", stay, ("forced down", "twin"))

    def test_does_not_hear_that_it_is_forced_down(self) -> None:
        """A registry that takes the heartbeats of a service that is forced down."""

        def check_number_only(record: ServiceRecord, number: int | None) -> None:
            if number is not None:
                check_current(record, number)

        self.find("fenced_nodes_run_nothing", 1, memory, "check_beat", check_number_only, ("forced down",))

    def test_takes_a_living_place(self) -> None:
        """A registry that lets any start take the place of another one."""
        self.find(
            "no_living_start_is_superseded", 0, memory_incarnations, "check_twin", lambda start, latest: None, ("twin",)
        )

    def test_does_not_notice_its_successor(self) -> None:
        """A registry that takes the heartbeats of a start whose place another one has taken."""
        kinds = ("twin", "database partition", "pause")
        self.find("superseded_nodes_are_fenced", 30, memory, "check_beat", lambda record, number: None, kinds)

    def test_blames_nodes(self) -> None:
        """A registry that takes a stall of the database for the silence of each node."""
        outages: Callable[..., Any] = lambda registry, rule: succeed(Outages())  # noqa: E731
        kinds = ("database stall", "database refusal")
        self.find("no_false_down", 22, MemoryRegistry, "outages", outages, kinds)

    def test_leaves_timers(self) -> None:
        """A node whose heartbeats go on when it has stopped."""
        self.find("nothing_is_left", 0, Heartbeat, "stop", lambda heartbeat: None, ("restart",))

    def test_runs_late(self) -> None:
        """A server that runs the calls of callers that have given up."""

        def drop_stale(execution: execution.Execution, call: Any) -> bool:
            call.expires_at = None
            return _drop_stale(execution, call)

        self.find("runs_begin_in_time", 0, execution.Execution, "drop_stale", drop_stale, ("broker stall", "pause"))

    def test_runs_without_pause(self) -> None:
        """A server that requeues at once what it cannot answer."""
        self.find("runs_are_bounded", 2, execution, "REQUEUE_DELAY", 0.1, ("broker refusal",))


def simulate(
    managers: dict[str, type[Manager]], ask: Callable[[Caller], Deferred[Any]], plan: Sequence[Fault] = ()
) -> list[str]:
    """Return which promises are broken by a fleet of two hosts.

    :param managers: by topic.
    :param ask: sends one request.
    :param plan: the faults.
    """

    async def work(caller: Caller) -> None:
        while not caller.over:
            await caller.pause(1.0)
            ask(caller).addErrback(lambda _: None)

    def build(simulation: Simulation) -> None:
        for topic, manager in managers.items():
            for host in ("a", "b"):
                simulation.node(manager, host=host, topic=topic)
        simulation.caller("c", work)

    return run_seed(build, 1, plan=plan, duration=10.0).broken


class Subscriber(Manager):
    """Handles events."""

    @rpc.event("order.*")
    def note(self, context: RequestContext, payload: dict[str, Any]) -> None:
        pass


class OutOfStockError(Exception):
    """Not registered: its callers get a RemoteError."""


class Shop(Manager):
    """Refuses some requests, and handles no event."""

    @rpc.expose(idempotent=True)
    def reserve(self, context: RequestContext, amount: int) -> int:
        if amount > 1:
            raise LookupError(amount)
        raise OutOfStockError

    @rpc.expose(idempotent=True)
    async def pack(self, context: RequestContext, seconds: float = 3.0) -> None:
        await deferLater(self.attachments.reactor, seconds, lambda: None)

    @rpc.expose(timeout=1.0)
    async def ship(self, context: RequestContext, hours: float) -> None:
        await deferLater(self.attachments.reactor, 3600 * hours, lambda: None)

    @rpc.event("order.*")
    def sell(self, context: RequestContext, payload: dict[str, int]) -> None:
        raise LookupError(payload)


class Countdown(Manager):
    """Calls itself within a request."""

    @rpc.expose
    async def count(self, context: RequestContext, left: int) -> int:
        client = self.attachments.rpc.prepare(topic="countdown")
        return await client.call(context, "count", left=left - 1) if left else 0


class NoBugTests(SynchronousTestCase):
    """What a manager or a test does is not taken for a bug of the framework."""

    def broken(self, manager: type[Manager], kind: str, *names: Any, **args: Any) -> list[str]:
        """Return which promises are broken by a fleet without faults, whose topic has the name of the class.

        :param kind: "call", "cast" or "emit"; what follows is for this method of the caller.
        """
        found = simulate({manager.__name__.lower(): manager}, lambda caller: getattr(caller, kind)(*names, **args))
        self.flushLoggedErrors()
        return found

    def test_recursion(self) -> None:
        """A method that calls itself runs several times for one request."""
        self.assertEqual(self.broken(Countdown, "call", "countdown", "count", left=2), [])

    def test_error_of_a_method(self) -> None:
        """A call that ends with what its method raises, registered or not, and a cast whose method raises."""
        for kind, amount in (("call", 1), ("call", 2), ("cast", 2)):
            with self.subTest(kind=kind, amount=amount):
                self.assertEqual(self.broken(Shop, kind, "shop", "reserve", amount=amount), [])

    def test_slow_method(self) -> None:
        """A method that takes longer than its own timeout."""
        self.assertEqual(self.broken(Shop, "call", "shop", "ship", hours=1), [])

    def test_slow_for_its_caller(self) -> None:
        """A method that takes longer than its caller waits."""
        self.assertEqual(self.broken(Shop, "call", "shop", "pack", timeout=12, seconds=3600), [])

    def test_cancelled_call(self) -> None:
        """A call that its caller has cancelled."""

        def ask(caller: Caller) -> Deferred[Any]:
            calling = caller.call("shop", "ship", hours=1)
            calling.cancel()
            return calling

        self.assertEqual(simulate({"shop": Shop}, ask), [])

    def test_wrong_arguments(self) -> None:
        """A call with arguments that the method does not take, or that cannot be sent."""
        for amount in ("many", object()):
            with self.subTest(amount=amount):
                self.assertEqual(self.broken(Shop, "call", "shop", "reserve", amount=amount), [])

    def test_misused_client(self) -> None:
        """A request that the client does not accept."""
        self.assertEqual(self.broken(Shop, "emit", ""), [])
        self.assertEqual(self.broken(Shop, "call", "shop", ""), [])

    def test_rejected_event(self) -> None:
        """An event whose handler always raises, whose payload no handler accepts, and that nobody handles."""
        for event, payload in (("order.placed", {"tea": 1}), ("order.placed", "tea"), ("invoice.sent", {})):
            with self.subTest(event=event, payload=payload):
                self.assertEqual(self.broken(Shop, "emit", event, payload), [])

    def test_misspelt_method(self) -> None:
        """A method that no node has is a mistake of the test, which would test nothing."""
        expected = ["methods_exist: no node exposes shop.resreve; correct the name of the topic or of the method"]
        self.assertEqual(self.broken(Shop, "call", "shop", "resreve"), expected)
        self.assertEqual(self.broken(Shop, "cast", "shop", "resreve"), expected)
