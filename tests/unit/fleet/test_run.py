"""Tests for novasvc.fleet.run: operations on nodes that answer over a broker in memory, on a Clock."""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from novasvc.errors import DatabaseUnavailableError, OperationStateError
from novasvc.fleet.patience import OUTAGE_LIMIT
from novasvc.fleet.plan import BatchSize
from novasvc.fleet.run import OperationRun
from novasvc.middleware import Invocation
from novasvc.registry.operation import RUNNER_TIMEOUT, NodeChange, Operation
from tests.support.fleet_rig import FleetRig
from tests.support.middleware_rig import Around, Failing, Proceed


class RestartTests(FleetRig):
    """Rolling restarts."""

    def start(self, count: int, **given: Any) -> None:
        for number in range(count):
            self.add(f"h{number}", **given)

    def states(self, operation: Operation) -> str:
        """Return the first letters of the states of the nodes."""
        return "".join(node.state[0] for node in self.result(self.store.nodes(operation.id)))

    def details(self, operation: Operation) -> list[str | None]:
        return [node.detail for node in self.result(self.store.nodes(operation.id)) if node.state == "failed"]

    def test_waves(self) -> None:
        """The canary restarts first, then wave after wave, each when the one before is ready and healthy."""
        self.start(5)
        ended = self.finish(self.begin("restart"))
        self.assertEqual((ended.state, ended.reason, self.states(ended)), ("done", None, "ddddd"))
        self.assertEqual(self.watching.waves, [["h0"], ["h1", "h2"], ["h3", "h4"]])
        self.assertEqual(self.told(), [["restart"]] * 5)
        self.assertEqual([process.number for process in self.processes], [2] * 5)
        self.assertEqual(self.watching.ended[0], ("h0", "done", "incarnation 2"))

    def test_order(self) -> None:
        """At no time more nodes are away than a wave has."""
        self.start(9)
        running = Deferred.fromCoroutine(self.begin("restart", batch=BatchSize(3), canary=1).run())
        most = 0
        while not running.called:
            self.clock.advance(0.1)
            most = max(most, sum(process.state != "running" for process in self.processes))
        self.assertEqual(most, 3)

    def test_canary(self) -> None:
        """A canary that does not come back halts the operation; no other node is touched."""
        self.start(4)
        self.processes[0].trouble = "vanishes"
        ended = self.finish(self.begin("restart", max_failures=5))
        self.assertEqual((ended.state, self.states(ended)), ("halted", "fppp"))
        self.assertEqual(ended.reason, "the canary failed: novasvc-agent@h0")
        self.assertEqual(self.told(), [["restart"], [], [], []])

    def test_budget(self) -> None:
        """More failures than the budget halt it, after the nodes under way have ended; it says what is left."""
        self.start(8)
        for number in (1, 2, 4):
            self.processes[number].trouble = "fails"
        ended = self.finish(self.begin("restart", max_failures=2))
        self.assertEqual((ended.state, self.states(ended)), ("halted", "dffdfppp"))
        self.assertEqual(ended.counts, {"done": 2, "failed": 3, "pending": 3, "running": 0, "skipped": 0})
        self.assertIn("3 failed, and 2 may", ended.reason or "")
        self.assertEqual(self.details(ended), ["its start failed: init_host: no disk"] * 3)

    def test_within_budget(self) -> None:
        """Failures within the budget do not halt it."""
        self.start(5)
        self.processes[2].trouble = "fails"
        ended = self.finish(self.begin("restart", max_failures=1))
        self.assertEqual((ended.state, self.states(ended)), ("done", "ddfdd"))

    def test_why(self) -> None:
        """A node that does not come back, or is not healthy, has failed after the timeout, with what was seen last."""
        for trouble, why in (
            ("vanishes", "it is still incarnation 1, draining after 60 s"),
            ("ignores", "it is still incarnation 1, ready after 60 s"),
            ("is sick", "it is not healthy: broker: refused after 60 s"),
        ):
            self.setUp()
            self.start(1)
            self.processes[0].trouble = trouble
            run = self.begin("restart")
            running = Deferred.fromCoroutine(run.run())
            self.assertLess(self.run_on(running), 70)
            ended = self.successResultOf(running)
            self.assertEqual((ended.state, self.details(ended)), ("done", [why]), trouble)

    def test_unanswered(self) -> None:
        """If the node did not answer the command, the failure says that it may still obey: then it does it alone."""

        async def hang(invocation: Invocation, proceed: Proceed) -> Any:
            await deferLater(self.clock, 20)
            return await proceed(invocation)

        for kind, why in (
            ("restart", "it is still incarnation 1, ready after 8 s"),
            ("drain", "it has not stopped after 8 s"),
        ):
            self.setUp()
            self.add("h0", middleware=[Around(hang)])
            running = Deferred.fromCoroutine(self.begin(kind, timeout=8.0).run())
            self.assertLess(self.run_on(running), 15)
            may = "; it did not answer the command, and may still obey it when it can"
            self.assertEqual(self.details(self.successResultOf(running)), [why + may], kind)

    def test_down(self) -> None:
        """A node that nobody serves fails at once."""
        self.start(1)
        run = self.begin("restart")
        self.processes[0].stop(cleanly=False)
        running = Deferred.fromCoroutine(run.run())
        self.assertLess(self.run_on(running), 2)
        ended = self.successResultOf(running)
        self.assertEqual(self.details(ended), ["no process serves it: messages to it cannot be delivered"])

    def test_answer_is_an_error(self) -> None:
        """A node that answers the command with an exception of Python has failed with its class and text."""
        self.add("h0", middleware=[Failing()])
        ended = self.finish(self.begin("restart"))
        self.flushLoggedErrors(LookupError)
        (detail,) = self.details(ended)
        self.assertIn("LookupError no such tenant", detail or "")

    def test_deleted(self) -> None:
        """A node whose row is deleted meanwhile has failed, whether its turn has come or not."""
        self.start(3)
        run = self.begin("restart", canary=0, batch=BatchSize(2), max_failures=2)
        running = Deferred.fromCoroutine(run.run())
        self.clock.advance(1)
        for number in (1, 2):
            self.result(self.registry.delete(self.processes[number].record.id))
            self.processes[number].trouble = "vanishes"
        self.run_on(running)
        ended = self.successResultOf(running)
        self.assertEqual((self.states(ended), self.details(ended)), ("dff", ["its row was deleted"] * 2))

    def test_without_incarnations(self) -> None:
        """A node without a lifecycle in the registry restarts too: its uptime shows it."""
        self.start(2, legacy=True)
        ended = self.finish(self.begin("restart"))
        self.assertEqual((ended.state, self.states(ended), self.told()), ("done", "dd", [["restart"]] * 2))

    def test_shared_process(self) -> None:
        """Two services of one process restart once."""
        for host in ("h1.a", "h1.b"):
            self.add(host, pid=7, machine="m1")
        self.add("h2")
        ended = self.finish(self.begin("restart"))
        self.assertEqual((ended.state, self.states(ended)), ("done", "ddd"))
        self.assertEqual(sorted(map(len, self.told()[:2])), [0, 1])
        self.assertEqual([process.number for process in self.processes], [2, 2, 2])

    def test_shared_process_in_two_waves(self) -> None:
        """So they do if one is in a later wave."""
        for host, pid in (("a", 7), ("b", 8), ("c", 7)):
            self.add(host, pid=pid, machine="m1")
        ended = self.finish(self.begin("restart", batch=BatchSize(1)))
        self.assertEqual(
            (ended.state, self.states(ended), self.told()), ("done", "ddd", [["restart"], ["restart"], []])
        )
        self.assertEqual([process.number for process in self.processes], [2, 2, 2])

    def test_shared_process_in_one_wave(self) -> None:
        """So they do if they begin together."""
        for host in ("h1.a", "h1.b"):
            self.add(host, pid=7, machine="m1")
        ended = self.finish(self.begin("restart", canary=0))
        self.assertEqual((ended.state, [process.number for process in self.processes]), ("done", [2, 2]))

    def test_shared_process_not_told(self) -> None:
        """If the command for one service fails, the process is told for the other one, in the same wave or later."""
        for hosts in (("a", "b"), ("a", "between", "b")):
            self.setUp()
            for host in hosts:
                self.add(host, **({} if host == "between" else {"pid": 7, "machine": "m1"}))
            run = self.begin("restart", canary=0, batch=BatchSize(1), max_failures=1)
            self.processes[0].stop(cleanly=False)
            ended = self.finish(run)
            self.assertEqual((ended.state, self.states(ended)), ("done", "f" + "d" * (len(hosts) - 1)))
            self.assertEqual(self.told(), [[], *[["restart"]] * (len(hosts) - 1)])


class OtherKindTests(FleetRig):
    """Drain, reload, disable and enable."""

    def share(self, **given: Any) -> None:
        """Start a process with two services."""
        for host in ("h1.a", "h1.b"):
            vars(self.add(host, pid=7, machine="m1")).update(given)

    def outcomes(self, operation: Operation) -> list[tuple[str, str | None]]:
        return [(node.state, node.detail) for node in self.result(self.store.nodes(operation.id))]

    def test_drain(self) -> None:
        """A node is drained when it has stopped."""
        for number in range(3):
            self.add(f"h{number}")
        ended = self.finish(self.begin("drain"))
        self.assertEqual((ended.state, ended.counts["done"]), ("done", 3))
        self.assertEqual([process.state for process in self.processes], ["stopped"] * 3)

    def test_drain_shared(self) -> None:
        """A process is told once: a second SIGTERM would end it at once."""
        for host in ("h1.a", "h1.b"):
            self.add(host, pid=7, machine="m1")
        running = Deferred.fromCoroutine(self.begin("drain", canary=0).run())
        self.clock.advance(1)
        self.processes[1].drain()
        self.run_on(running)
        self.assertEqual(self.told(), [["drain"], []])
        self.assertEqual(self.successResultOf(running).counts["done"], 2)

    def test_drain_without_incarnations(self) -> None:
        """A node without a lifecycle is drained when nobody serves it any more."""
        self.add("h1", legacy=True)
        running = Deferred.fromCoroutine(self.begin("drain").run())
        self.assertLess(self.run_on(running), 30)
        self.assertEqual(self.successResultOf(running).counts["done"], 1)

    def test_reload(self) -> None:
        """A node is reloaded when its reload has ended, and it is healthy."""
        self.add("h1")
        self.add("h2")
        ended = self.finish(self.begin("reload"))
        self.assertEqual((ended.state, ended.counts["done"], self.told()), ("done", 2, [["reload"]] * 2))

    def test_reload_fails(self) -> None:
        """A reload that fails, or is refused, is a failure with the node's own reason."""
        failing, refusing = self.add("h1"), self.add("h2")
        failing.reload_problem, refusing.trouble = "no such file: x.toml", "refuses"
        ended = self.finish(self.begin("reload", canary=0, max_failures=5))
        details = [node.detail for node in self.result(self.store.nodes(ended.id))]
        self.assertEqual(details[0], "reload failed: no such file: x.toml")
        self.assertIn("workers = -1 is not a whole number", details[1])

    def test_reload_of_another_command(self) -> None:
        """A reload that another command began does not count: it may have read an older configuration."""
        self.add("h1").reload()
        ended = self.finish(self.begin("reload"))
        ((state, detail),) = self.outcomes(ended)
        self.assertEqual(state, "failed")
        self.assertIn("another reload is under way", detail or "")

    def test_reload_shared(self) -> None:
        """A process reloads once, and a former reload that failed counts for none of its services."""
        self.share(reloads={"ended": 3, "under_way": False, "problem": "a former error"})
        ended = self.finish(self.begin("reload", canary=0))
        self.assertEqual((ended.state, self.outcomes(ended)), ("done", [("done", "reloaded")] * 2))
        self.assertEqual(sum(map(len, self.told())), 1)

    def test_reload_shared_in_two_waves(self) -> None:
        """So it does if one of its services is in a later wave."""
        for host, pid in (("a", 7), ("b", 8), ("c", 7)):
            self.add(host, pid=pid, machine="m1")
        ended = self.finish(self.begin("reload", batch=BatchSize(1)))
        self.assertEqual((ended.counts["done"], self.told()), (3, [["reload"], ["reload"], []]))

    def test_reload_shared_fails(self) -> None:
        """A reload that fails has failed for all services of the process."""
        self.share(reload_problem="no such file: x.toml")
        ended = self.finish(self.begin("reload", canary=0, max_failures=5))
        self.assertEqual(self.outcomes(ended), [("failed", "reload failed: no such file: x.toml")] * 2)
        self.assertEqual(sum(map(len, self.told())), 1)

    def test_reload_shared_refused(self) -> None:
        """A reload that is refused has failed for all services of the process."""
        self.share(trouble="refuses")
        ended = self.finish(self.begin("reload", canary=0, max_failures=5))
        self.assertEqual([state for state, _ in self.outcomes(ended)], ["failed"] * 2)

    def test_interrupted_shared(self) -> None:
        """A service that waits for the command to its process does not send it when the operation is interrupted."""

        async def hang(invocation: Invocation, proceed: Proceed) -> Any:
            if invocation.name == "drain":
                await Deferred()
            return await proceed(invocation)

        for host in ("h1.a", "h1.b", "h1.c"):
            self.add(host, pid=7, machine="m1", middleware=[Around(hang)] if host == "h1.a" else ())
        running = Deferred.fromCoroutine(self.begin("drain", canary=0, batch=BatchSize(3)).run())
        self.run_on(running, limit=1.0)
        running.cancel()
        self.clock.pump([0.1] * 20)
        self.failureResultOf(running, CancelledError)
        self.assertEqual(self.told(), [[]] * 3)

    def test_disable(self) -> None:
        """Services are disabled with the reason, and enabled again, without a call."""
        for number in range(4):
            self.add(f"h{number}")
        self.processes[0].stop(cleanly=False)
        ended = self.finish(self.begin("disable", options={"reason": "new disks"}))
        self.assertEqual((ended.state, {record.disabled_reason for record in self.records()}), ("done", {"new disks"}))
        self.finish(self.begin("enable"))
        self.assertEqual({record.disabled for record in self.records()}, {False})
        self.assertEqual(self.told(), [[]] * 4)


class Unanswered:
    """Never answers, like everything that a dead command has asked."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_given: Deferred()


class FailsOnce:
    """A registry or a store in which every other call fails, as in an outage."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._answers = True

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*args: Any, **given: Any) -> Deferred[Any]:
            self._answers = not self._answers
            return real(*args, **given) if self._answers else fail(DatabaseUnavailableError("memory:", "away"))

        return call


class LateOnce:
    """A registry whose first answer about one service comes a second late."""

    def __init__(self, real: Any, service: str, clock: IReactorTime) -> None:
        self._real, self._service, self._clock = real, service, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def get(self, service: str) -> Any:
        if service == self._service:
            self._service = ""
            await deferLater(self._clock, 1.0)
        return await self._real.get(service)


class ResumeTests(FleetRig):
    """An operation whose command dies, is interrupted, resumed or aborted."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(5):
            self.add(f"h{number}")

    def die(self, run: OperationRun) -> None:
        """Run an operation until its canary was told to restart; then its command does and writes nothing more."""
        running = Deferred.fromCoroutine(run.run())
        self.run_on(running, limit=1.0)
        run.store = run.registry = run.calls = Unanswered()  # type: ignore[assignment]

        def bury() -> None:
            running.addErrback(lambda failure: failure.trap(CancelledError))
            running.cancel()
            self.clock.advance(2)

        self.addCleanup(bury)

    def interrupt(self, run: OperationRun) -> None:
        """Cancel an operation a second after its begin."""
        running = Deferred.fromCoroutine(run.run())
        self.run_on(running, limit=1.0)
        running.cancel()
        self.clock.advance(0)
        self.failureResultOf(running, CancelledError)

    def resume(self, operation: Operation, owner: str = "b", *, skip_failed: bool = False) -> Operation:
        resumed = self.result(self.store.resume(operation.id, owner, f"{owner}@box", skip_failed))
        return self.finish(self.make_run(resumed))

    def test_dead_command(self) -> None:
        """Another command goes on; the node that was under way restarts once."""
        run = self.begin("restart")
        self.die(run)
        self.assertEqual(self.told()[0], ["restart"])
        self.run_on(Deferred(), limit=RUNNER_TIMEOUT + 5)
        self.assertTrue(self.result(self.store.read(run.operation.id)).is_unattended)
        ended = self.resume(run.operation)
        self.assertEqual((ended.state, ended.counts["done"], ended.operator), ("done", 5, "b@box"))
        self.assertEqual(self.told(), [["restart"]] * 5)
        self.assertEqual([process.number for process in self.processes], [2] * 5)

    def test_interrupted(self) -> None:
        """An interrupted operation is halted at once, and resumed without a second restart."""
        run = self.begin("restart")
        self.interrupt(run)
        halted = self.result(self.store.read(run.operation.id))
        self.assertEqual((halted.state, halted.reason), ("halted", "interrupted"))
        ended = self.resume(run.operation)
        self.assertEqual((ended.state, self.told()), ("done", [["restart"]] * 5))

    def test_interrupted_before_the_answer(self) -> None:
        """A node whose answer to the command is still on its way stays under way, and does not restart twice."""

        async def late(invocation: Invocation, proceed: Proceed) -> Any:
            result = await proceed(invocation)
            if invocation.name == "restart":
                await deferLater(self.clock, 10)
            return result

        self.add("g0", middleware=[Around(late)])
        run = self.begin("restart")
        self.interrupt(run)
        nodes = self.result(self.store.nodes(run.operation.id))
        self.assertEqual(([node.state for node in nodes], self.watching.ended), (["running", *["pending"] * 5], []))
        ended = self.resume(run.operation, skip_failed=True)
        self.assertEqual((ended.counts["done"], self.told()), (6, [["restart"]] * 6))

    def test_interrupted_reload(self) -> None:
        """A node that still reloads is waited for, although it refuses, or does not answer meanwhile."""
        for serves in (True, False):
            self.setUp()
            process = self.processes[0]
            process.reload_time = 60.0
            run = self.begin("reload", timeout=100.0)
            running = Deferred.fromCoroutine(run.run())
            self.run_on(running, limit=1.0)
            running.cancel()
            self.clock.advance(0)
            self.failureResultOf(running, CancelledError)
            if not serves:
                process.stop(cleanly=False)
                self.clock.callLater(61, process.start)
            process.reload_time = 2.0
            ended = self.resume(run.operation)
            self.assertEqual((ended.state, ended.counts["done"]), ("done", 5))
            self.assertEqual(self.told()[0], ["reload"] * (1 if serves else 2))

    def test_after_halt(self) -> None:
        """After the cause was removed, the node that failed is tried again, and the rest follows."""
        self.processes[0].trouble = "ignores"
        run = self.begin("restart")
        self.assertEqual(self.finish(run).state, "halted")
        self.processes[0].trouble = ""
        ended = self.resume(run.operation)
        self.assertEqual((ended.state, ended.counts["done"]), ("done", 5))
        self.assertEqual(self.told(), [["restart"] * 2, *[["restart"]] * 4])

    def test_skip_failed(self) -> None:
        """Or the rest goes on without it."""
        self.processes[0].trouble = "vanishes"
        run = self.begin("restart")
        self.assertEqual(self.finish(run).state, "halted")
        ended = self.resume(run.operation, skip_failed=True)
        self.assertEqual((ended.state, ended.counts["done"], ended.counts["skipped"]), ("done", 4, 1))

    def test_taken_over(self) -> None:
        """A command whose operation was resumed by another one goes no further."""
        run = self.begin("restart")
        running = Deferred.fromCoroutine(run.run())
        self.clock.advance(0)
        row = self.store._rows[run.operation.id]
        row.heard -= RUNNER_TIMEOUT + 1
        self.result(self.store.resume(run.operation.id, "b", "b@box", False))
        self.run_on(running)
        self.assertIn("has resumed it", str(self.failureResultOf(running, OperationStateError).value))
        self.assertEqual(self.told()[1:], [[]] * 4)

    def test_aborted(self) -> None:
        """A command whose operation is aborted goes no further, and says who aborted it."""
        run = self.begin("restart")
        running = Deferred.fromCoroutine(run.run())
        self.clock.advance(0)
        self.result(self.store.abort(run.operation.id, "c@box"))
        self.run_on(running)
        self.assertIn("aborted by c@box", str(self.failureResultOf(running, OperationStateError).value))
        self.assertEqual(self.told()[1:], [[]] * 4)

    def test_database_away(self) -> None:
        """An outage of the database counts against no node; the operation goes on afterwards."""
        run = self.begin("restart", timeout=30.0)
        running = Deferred.fromCoroutine(run.run())
        self.run_on(running, limit=1.0)
        self.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.run_on(running, limit=100.0)
        self.assertFalse(running.called)
        self.registry.outage = None
        self.run_on(running)
        self.assertEqual(self.successResultOf(running).counts["done"], 5)

    def test_reads_that_fail(self) -> None:
        """No read or write that fails once ends an operation, whatever it is for."""
        for kind in ("disable", "enable", "restart", "reload", "drain"):
            run = self.begin(kind)
            run.registry, run.store = FailsOnce(self.registry), FailsOnce(self.store)  # type: ignore[assignment]
            ended = self.finish(run)
            self.assertEqual((ended.state, ended.counts["done"]), ("done", 5), kind)

    def test_reads_that_fail_in_one_process(self) -> None:
        """So it is if several services share a process."""
        for number in range(2):
            self.add(f"shared{number}", pid=5, machine="m")
        run = self.begin("restart", batch=BatchSize(1))
        run.registry, run.store = FailsOnce(self.registry), FailsOnce(self.store)  # type: ignore[assignment]
        self.assertEqual(self.finish(run).counts["done"], 7)

    def test_read_that_is_late(self) -> None:
        """A node that is begun while another service of its process reads its incarnation does not become pending."""
        first, second = [self.add(f"shared{number}", pid=5, machine="m").record.id for number in range(2)]
        run = self.begin("restart", batch=BatchSize(9), canary=0)
        change = NodeChange(service_id=first, state="running", incarnation=1)
        self.result(self.store.note(run.operation.id, "a", [change]))
        run = self.make_run(run.operation)
        run.registry = LateOnce(self.registry, str(second), self.clock)  # type: ignore[assignment]
        running = Deferred.fromCoroutine(run.run())
        self.run_on(running, limit=1.5)
        states = {node.service_id: node.state for node in self.result(self.store.nodes(run.operation.id))}
        self.assertEqual((states[first], states[second]), ("running", "running"))
        self.run_on(running)
        self.assertEqual(self.successResultOf(running).counts["done"], 7)

    def test_bound(self) -> None:
        """An outage has a bound: then the command ends, and the operation can be resumed."""
        run = self.begin("restart")
        self.registry.outage = DatabaseUnavailableError("memory:", "away")
        for process in self.processes:
            process._beating.stop()
        running = Deferred.fromCoroutine(run.run())
        spent = self.run_on(running, limit=2 * OUTAGE_LIMIT, step=1.0)
        self.failureResultOf(running, DatabaseUnavailableError)
        self.assertLess(spent, OUTAGE_LIMIT + 60)
