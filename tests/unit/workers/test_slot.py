"""Tests for novasvc.workers.slot, on a Clock, with processes that only seem to be."""

from signal import SIGABRT, SIGKILL, SIGSEGV, SIGTERM

from twisted.internet.defer import CancelledError
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry.flight import Event
from novasvc.workers.exit_status import ABANDON_DELAY, KILL_DELAY
from novasvc.workers.slot import ABORT_TIMEOUT, EXHAUSTED_PAUSE, INTERRUPT_TIMEOUT, KILL_INTERVAL, WorkerTimeouts
from tests.support.slot_rig import SlotRig


class StartTests(SynchronousTestCase):
    """From nothing to ready."""

    def setUp(self) -> None:
        self.rig = SlotRig()

    def test_start(self) -> None:
        """A start asks for a process; the worker is ready when that says so, not when it exists."""
        self.rig.slot.start()
        self.assertEqual((self.rig.state, len(self.rig.processes)), ("starting", 1))
        self.rig.process.be_forked()
        self.assertEqual(self.rig.state, "starting")
        self.rig.process.listener.received({"is": "ready"})
        self.assertEqual((self.rig.state, self.rig.slot.restarts, self.rig.slot.trouble), ("ready", 0, None))

    def test_named(self) -> None:
        """A worker is named by its number, its process, once that exists, and its server."""
        self.rig.slot.start()
        self.assertEqual(str(self.rig.slot), "worker 1 of agent")
        self.rig.process.be_forked()
        self.assertEqual(str(self.rig.slot), "worker 1 (pid 100) of agent")

    def test_ready_twice(self) -> None:
        """To be ready a second time, or to be started when it is, changes nothing."""
        process = self.rig.ready()
        process.listener.received({"is": "ready"})
        self.rig.slot.start()
        self.assertEqual((self.rig.state, len(self.rig.processes)), ("ready", 1))

    def test_deadline(self) -> None:
        """A worker that is not ready in time is aborted, killed two seconds later, and replaced."""
        self.rig.slot.start()
        self.rig.process.be_forked()
        self.rig.clock.advance(60)
        self.assertEqual((self.rig.state, self.rig.process.signals), ("hung", [SIGABRT]))
        self.assertIn("worker_start_timeout (60 s)", str(self.rig.slot.trouble))
        self.rig.clock.advance(ABORT_TIMEOUT)
        self.assertEqual(self.rig.process.signals, [SIGABRT, SIGKILL])
        self.rig.process.die_of(SIGKILL)
        self.assertEqual((self.rig.state, len(self.rig.processes)), ("starting", 2))
        self.flushLoggedErrors()

    def test_no_deadline(self) -> None:
        """Without a limit it may take for ever."""
        rig = SlotRig(timeouts=WorkerTimeouts(start=0))
        rig.slot.start()
        rig.clock.advance(1e6)
        self.assertEqual(rig.state, "starting")

    def test_outage(self) -> None:
        """What waits for the database or the broker has all the time, and its own from when that is over."""
        self.rig.slot.start()
        self.rig.process.be_forked()
        self.rig.process.listener.received({"is": "waiting", "for": "broker"})
        self.rig.clock.advance(1000)
        self.assertEqual((self.rig.state, self.rig.slot.trouble), ("starting", "waiting for the broker"))
        self.rig.process.listener.received({"is": "waiting", "for": None})
        self.assertIsNone(self.rig.slot.trouble)
        self.rig.clock.advance(59)
        self.assertEqual(self.rig.state, "starting")
        self.rig.clock.advance(1)
        self.assertEqual(self.rig.state, "hung")

    def test_refused(self) -> None:
        """A fork that the system refuses is tried again, and its reason is known meanwhile."""
        self.rig.slot.start()
        self.rig.process.listener.fork_failed("no more processes")
        self.assertEqual(len(self.rig.processes), 2)
        self.rig.process.listener.fork_failed("no more processes")
        self.assertEqual(self.rig.state, "backing off")
        self.assertIn("no more processes", str(self.rig.slot.trouble))
        self.rig.clock.advance(1)
        self.assertEqual((self.rig.state, len(self.rig.processes)), ("starting", 3))

    def test_no_descriptors(self) -> None:
        """A process that cannot even be asked for, for want of descriptors, is tried again like one refused."""
        self.rig.scarce = 2
        self.rig.slot.start()
        self.assertEqual((self.rig.state, self.rig.slot.process), ("backing off", None))
        self.assertEqual(self.rig.slot.trouble, "it could not be forked: Too many open files")
        self.rig.clock.advance(1)
        self.rig.process.be_ready()
        self.assertEqual((self.rig.state, self.rig.slot.trouble), ("ready", None))

    def test_throttle(self) -> None:
        """More forks than the throttle allows wait their turn."""
        rig = SlotRig(workers=1)
        for _ in range(2):
            rig.ready()
            rig.clock.advance(0.1)
            rig.process.die_of(SIGKILL)
        self.assertEqual((rig.state, len(rig.processes)), ("backing off", 2))
        rig.clock.advance(1)
        self.assertEqual((rig.state, len(rig.processes)), ("starting", 3))


class ExitTests(SynchronousTestCase):
    """What follows an end that nobody asked for."""

    def setUp(self) -> None:
        self.rig = SlotRig()

    def test_replaced(self) -> None:
        """A worker that has lived is replaced at once, with the same number."""
        self.rig.ready()
        self.rig.clock.advance(5)
        self.rig.process.die_of(SIGKILL)
        self.assertEqual((self.rig.state, self.rig.slot.number, self.rig.slot.restarts), ("starting", 1, 1))

    def test_any_end(self) -> None:
        """Even one that ends well is replaced: nobody has asked it to end."""
        self.rig.ready()
        self.rig.clock.advance(5)
        self.rig.process.exit(0)
        self.assertEqual(self.rig.state, "starting")

    def test_said_why(self) -> None:
        """The log tells how a worker ended, why, and when the next one starts."""
        self.rig.slot.start()
        with capturedLogs() as events:
            self.rig.process.fail("no hypervisor", final=False)
        (told,) = [formatEvent(event) for event in events if "restarting" in formatEvent(event)]
        self.assertEqual(told, "worker 1 (pid 100) of agent exited with status 1: no hypervisor; restarting it now")

    def test_backs_off(self) -> None:
        """One that dies young again and again waits longer each time."""
        self.rig = SlotRig(budget=10)
        self.rig.slot.start()
        pauses = []
        for _ in range(4):
            self.rig.process.fail("no", final=False)
            before = self.rig.clock.seconds()
            while self.rig.state == "backing off":
                self.rig.clock.advance(0.5)
            pauses.append(self.rig.clock.seconds() - before)
        self.assertEqual(pauses, [0.0, 1.0, 2.0, 3.0])

    def test_budget_retry(self) -> None:
        """When the budget is used up and nobody gives up, it is tried slowly."""
        self.rig.slot.start()
        for _ in range(3):
            self.rig.process.fail("no", final=False)
            self.rig.clock.advance(2)
        self.assertEqual((self.rig.questions, self.rig.state), ([""], "backing off"))
        self.rig.clock.advance(EXHAUSTED_PAUSE - 3)
        self.assertEqual(self.rig.state, "backing off")
        self.rig.clock.advance(3)
        self.assertEqual(self.rig.state, "starting")

    def test_budget_given_up(self) -> None:
        """When somebody gives up, it is not started any more."""
        self.rig.gives_up = True
        self.rig.slot.start()
        for _ in range(3):
            self.rig.process.fail("no", final=False)
            self.rig.clock.advance(2)
        self.rig.clock.advance(1e6)
        self.assertEqual((self.rig.state, len(self.rig.processes)), ("failed", 3))

    def test_final(self) -> None:
        """An error of the configuration is not tried again: it is told at the first time."""
        self.rig.gives_up = True
        self.rig.slot.start()
        self.rig.process.fail("no such manager", final=True)
        self.assertEqual((self.rig.questions, self.rig.state), (["no such manager"], "failed"))
        self.assertEqual(self.rig.slot.trouble, "no such manager")
        self.rig.clock.advance(1e6)
        self.assertEqual(len(self.rig.processes), 1)

    def test_final_is_forgotten(self) -> None:
        """What was wrong with one process is not held against the next."""
        self.rig.slot.start()
        self.rig.process.fail("no such manager", final=True)
        self.rig.clock.advance(EXHAUSTED_PAUSE)
        self.rig.process.be_ready()
        self.rig.clock.advance(5)
        self.rig.process.die_of(SIGKILL)
        self.assertEqual(self.rig.questions, ["no such manager"])

    def test_crash_is_told(self) -> None:
        """Of one that crashed the log has the stacks and the last events."""
        self.rig.ready()
        self.rig.process.stacks = "File x, line 1"
        self.rig.process.events = [Event(0.0, "call", "greet began")]
        with capturedLogs() as events:
            self.rig.process.die_of(SIGSEGV)
        told = "\n".join(formatEvent(event) for event in events)
        self.assertIn("was killed by SIGSEGV", told)
        self.assertIn("File x, line 1", told)
        self.assertIn("call greet began", told)

    def test_kill_is_told(self) -> None:
        """One that was killed had no time to write its stacks, but the memory has its last events."""
        self.rig.ready()
        self.rig.process.events = [Event(0.0, "call", "greet began")]
        with capturedLogs() as events:
            self.rig.process.die_of(SIGKILL)
        told = "\n".join(formatEvent(event) for event in events)
        self.assertNotIn("stacks", told)
        self.assertIn("was killed by SIGKILL; last events:\n1970-01-01T00:00:00.000Z call greet began", told)

    def test_kill_by_ourselves_is_no_crash(self) -> None:
        """Of one that we killed, as it did not end in time, there is nothing to tell."""
        self.rig.ready()
        self.rig.slot.drain()
        with capturedLogs() as events:
            self.rig.process.die_of(SIGKILL)
        self.assertNotIn("last events", "\n".join(formatEvent(event) for event in events))


class WatchdogTests(SynchronousTestCase):
    """Workers whose reactor does not turn."""

    def setUp(self) -> None:
        self.rig = SlotRig()
        self.process = self.rig.ready()

    def test_alive(self) -> None:
        """One that gives signs of life within the bound is left alone."""
        self.process.heartbeat_age = 9.9
        self.rig.slot.check()
        self.assertEqual((self.rig.state, self.process.signals), ("ready", []))

    def test_hung(self) -> None:
        """One that gives none is aborted, killed if it does not die of that, and replaced."""
        self.process.heartbeat_age = 11.0
        self.rig.slot.check()
        self.assertEqual((self.rig.state, self.process.signals), ("hung", [SIGABRT]))
        self.rig.slot.check()
        self.rig.clock.advance(ABORT_TIMEOUT)
        self.assertEqual(self.process.signals, [SIGABRT, SIGKILL])
        self.process.die_of(SIGKILL)
        self.assertEqual(self.rig.state, "starting")

    def test_stays(self) -> None:
        """One that SIGKILL does not end is killed again each second, which is logged once, drained or not."""
        for drained in (False, True):
            rig = SlotRig()
            process = rig.ready()
            process.heartbeat_age = 11.0
            rig.slot.check()
            if drained:
                rig.slot.drain()
            else:
                rig.clock.advance(ABORT_TIMEOUT)
            with capturedLogs() as events:
                rig.clock.pump([KILL_INTERVAL] * 3)
            self.assertEqual(process.signals, [SIGABRT] + [SIGKILL] * 4)
            self.assertEqual(
                [formatEvent(event) for event in events],
                ["worker 1 (pid 100) of agent was sent SIGKILL, but its exit is not seen; repeating SIGKILL"],
            )
            process.die_of(SIGKILL)
            self.assertEqual(rig.state, "ended" if drained else "starting")

    def test_never(self) -> None:
        """With worker_watchdog at 0 nobody hangs."""
        rig = SlotRig(timeouts=WorkerTimeouts(watchdog=0))
        rig.ready().heartbeat_age = 1e6
        rig.slot.check()
        self.assertEqual(rig.state, "ready")

    def test_ready_too_late(self) -> None:
        """That it is ready after all does not save one that is being ended."""
        self.process.heartbeat_age = 11.0
        self.rig.slot.check()
        self.process.listener.received({"is": "ready"})
        self.assertEqual(self.rig.state, "hung")

    def test_drained(self) -> None:
        """One that hangs and is to leave is killed at once, and not replaced."""
        self.process.heartbeat_age = 11.0
        self.rig.slot.check()
        ended = self.rig.slot.drain()
        self.assertEqual(self.process.signals, [SIGABRT, SIGKILL])
        self.process.die_of(SIGKILL)
        self.assertEqual(self.successResultOf(ended), "ended")
        self.assertEqual(len(self.rig.processes), 1)

    def test_nobody(self) -> None:
        """Where there is no process, none hangs."""
        self.process.fail("no", final=True)
        self.rig.slot.check()
        self.assertEqual(self.rig.state, "backing off")


class DrainTests(SynchronousTestCase):
    """An end that was asked for."""

    def setUp(self) -> None:
        self.rig = SlotRig()

    def test_drain(self) -> None:
        """One that is ready is asked to end, and its place is given up when it has."""
        process = self.rig.ready()
        ended = self.rig.slot.drain()
        self.assertEqual((self.rig.state, process.signals), ("draining", [SIGTERM]))
        self.assertNoResult(ended)
        process.exit(0)
        self.assertEqual(self.successResultOf(ended), "ended")
        self.assertEqual((self.rig.state, self.rig.slot.process, len(self.rig.processes)), ("ended", None, 1))

    def test_progress(self) -> None:
        """How much is under way is known meanwhile."""
        process = self.rig.ready()
        self.rig.slot.drain()
        process.listener.received({"is": "draining", "calls": 3})
        self.assertEqual(self.rig.slot.trouble, "3 calls under way")

    def test_deadline(self) -> None:
        """One that has not ended at the deadline is told to end at once, and then killed, again until it has ended."""
        process = self.rig.ready()
        self.rig.slot.drain()
        self.rig.clock.advance(30)
        self.assertEqual((process.signals, process.interrupted), ([SIGTERM], ABANDON_DELAY))
        self.rig.clock.advance(KILL_DELAY)
        self.assertEqual(process.signals, [SIGTERM, SIGKILL])
        self.rig.clock.advance(KILL_INTERVAL)
        self.assertEqual(process.signals, [SIGTERM, SIGKILL, SIGKILL])
        process.die_of(SIGKILL)
        self.assertEqual((self.rig.state, self.rig.clock.calls), ("ended", []))

    def test_no_deadline(self) -> None:
        """Without a limit it is waited for as long as it takes."""
        rig = SlotRig(timeouts=WorkerTimeouts(drain=0))
        process = rig.ready()
        rig.slot.drain()
        rig.clock.advance(1e6)
        self.assertEqual(process.signals, [SIGTERM])

    def test_starting(self) -> None:
        """One that starts is ended as well."""
        self.rig.slot.start()
        ended = self.rig.slot.drain()
        self.rig.process.be_ready()
        self.assertEqual((self.rig.state, self.rig.process.signals), ("draining", [SIGTERM]))
        self.rig.process.die_of(SIGTERM)
        self.successResultOf(ended)

    def test_starting_for_long(self) -> None:
        """One that starts has nothing to finish: it is told to end at once."""
        self.rig.slot.start()
        self.rig.process.be_forked()
        self.rig.slot.drain()
        self.assertTrue(self.rig.process.interrupted)
        self.rig.clock.advance(INTERRUPT_TIMEOUT)
        self.assertEqual(self.rig.process.signals, [SIGTERM, SIGKILL])

    def test_cut_short(self) -> None:
        """Whether one has finished what it had begun is told."""
        for finished, level in ((True, LogLevel.info), (False, LogLevel.warn)):
            rig = SlotRig()
            process = rig.ready()
            rig.slot.interrupt()
            process.server_stopped = finished
            with capturedLogs() as events:
                process.exit(1)
            self.assertEqual([event["log_level"] for event in events], [level])

    def test_not_begun(self) -> None:
        """A place without a process is given up at once."""
        self.assertEqual(self.successResultOf(self.rig.slot.drain()), "ended")

    def test_backing_off(self) -> None:
        """One that waits for its next start does not start any more."""
        self.rig.slot.start()
        for _ in range(2):
            self.rig.process.fail("no", final=False)
        self.assertEqual(self.successResultOf(self.rig.slot.drain()), "ended")
        self.rig.clock.advance(1e6)
        self.assertEqual(len(self.rig.processes), 2)

    def test_failed(self) -> None:
        """One that was given up can go."""
        self.rig.gives_up = True
        self.rig.slot.start()
        self.rig.process.fail("no", final=True)
        self.assertEqual(self.successResultOf(self.rig.slot.drain()), "ended")

    def test_twice(self) -> None:
        """To be asked twice to drain is to be asked once."""
        process = self.rig.ready()
        first, second = self.rig.slot.drain(), self.rig.slot.drain()
        self.assertEqual(process.signals, [SIGTERM])
        process.exit(0)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_interrupt(self) -> None:
        """One that is to end at once is told so, and killed two seconds later."""
        process = self.rig.ready()
        self.rig.slot.interrupt()
        self.assertEqual((process.signals, process.interrupted), ([SIGTERM], INTERRUPT_TIMEOUT / 2))
        self.rig.clock.advance(INTERRUPT_TIMEOUT)
        self.assertEqual(process.signals, [SIGTERM, SIGKILL])

    def test_interrupt_while_draining(self) -> None:
        """The time to end at once counts from then, but does not put off the end."""
        for drained, left in ((10.0, INTERRUPT_TIMEOUT), (30 - 1, 1.0)):
            rig = SlotRig()
            process = rig.ready()
            rig.slot.drain()
            rig.clock.advance(drained)
            rig.slot.interrupt()
            rig.clock.advance(left - 0.1)
            self.assertEqual(process.signals, [SIGTERM])
            rig.clock.advance(0.1)
            self.assertEqual(process.signals, [SIGTERM, SIGKILL])

    def test_impatience(self) -> None:
        """Interrupting it again and again does not put off its end."""
        process = self.rig.ready()
        for _ in range(4):
            self.rig.slot.interrupt()
            self.rig.clock.advance(INTERRUPT_TIMEOUT / 4)
        self.assertEqual(process.signals[-1], SIGKILL)

    def test_interrupt_without_a_deadline(self) -> None:
        """One that may drain for ever may not once it is interrupted."""
        rig = SlotRig(timeouts=WorkerTimeouts(drain=0))
        process = rig.ready()
        rig.slot.drain()
        rig.slot.interrupt()
        rig.clock.advance(INTERRUPT_TIMEOUT)
        self.assertEqual(process.signals, [SIGTERM, SIGKILL])

    def test_interrupt_without_a_process(self) -> None:
        """A place without a process is given up at once when it is interrupted, too."""
        self.rig.slot.interrupt()
        self.assertEqual((self.rig.state, self.rig.clock.calls), ("ended", []))

    def test_silence(self) -> None:
        """One that hangs while it drains is aborted, and killed if it does not die of that, whatever its deadline."""
        rig = SlotRig(timeouts=WorkerTimeouts(drain=0, watchdog=10.0))
        process = rig.ready()
        rig.slot.drain()
        process.heartbeat_age = 11.0
        rig.slot.check()
        self.assertEqual((rig.state, process.signals), ("draining", [SIGTERM, SIGABRT]))
        rig.clock.advance(ABORT_TIMEOUT / 2)
        rig.slot.check()
        rig.clock.advance(ABORT_TIMEOUT / 2)
        self.assertEqual(process.signals, [SIGTERM, SIGABRT, SIGKILL])


class LeavingTests(SynchronousTestCase):
    """A worker that somebody else has told to end."""

    def setUp(self) -> None:
        self.rig = SlotRig()
        self.process = self.rig.ready()
        self.rig.clock.advance(5)
        self.process.listener.received({"is": "draining", "calls": 1})

    def test_replaced(self) -> None:
        """It is shown as draining, and replaced when it has ended."""
        self.assertEqual((self.rig.state, self.rig.slot.trouble), ("draining", "1 call under way"))
        self.process.exit(0)
        self.assertEqual((self.rig.state, len(self.rig.processes)), ("starting", 2))

    def test_progress(self) -> None:
        """It tells again how much is left."""
        self.process.listener.received({"is": "draining", "calls": 0})
        self.assertEqual((self.rig.state, self.rig.slot.trouble), ("draining", None))

    def test_deadline(self) -> None:
        """It has as long as any other."""
        self.rig.clock.pump([30, KILL_DELAY])
        self.assertEqual((self.process.signals, self.process.interrupted), ([SIGKILL], ABANDON_DELAY))

    def test_hangs(self) -> None:
        """If it hangs it is aborted."""
        self.process.heartbeat_age = 11.0
        self.rig.slot.check()
        self.rig.slot.check()
        self.assertEqual(self.process.signals, [SIGABRT])

    def test_drained(self) -> None:
        """If it is to leave for good it goes on with what it does, and is not replaced."""
        ended = self.rig.slot.drain()
        self.assertEqual(self.process.signals, [])
        self.process.exit(0)
        self.successResultOf(ended)
        self.assertEqual(len(self.rig.processes), 1)

    def test_interrupted(self) -> None:
        """It can be told to end at once."""
        self.rig.slot.interrupt()
        self.assertTrue(self.process.interrupted)


class WaiterTests(SynchronousTestCase):
    """Those who wait for a state."""

    def setUp(self) -> None:
        self.rig = SlotRig()

    def test_reaches(self) -> None:
        """Who waits for one of some states is told which it was; who waits for a present one, at once."""
        waiting = self.rig.slot.reaches("ready", "backing off")
        self.rig.ready()
        self.assertEqual(self.successResultOf(waiting), "ready")
        self.assertEqual(self.successResultOf(self.rig.slot.reaches("ready")), "ready")

    def test_why(self) -> None:
        """Who waits for a start is told of its failure when the reason is known."""
        reasons = []
        self.rig.slot.reaches("backing off").addCallback(lambda _: reasons.append(self.rig.slot.trouble))
        self.rig.slot.start()
        self.rig.process.fail("no hypervisor", final=False)
        self.assertEqual(reasons, ["no hypervisor"])

    def test_cancelled(self) -> None:
        """Who waits no longer is forgotten."""
        waiting = self.rig.slot.reaches("ready")
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.rig.ready()
        self.assertEqual(self.rig.slot._waiters, [])

    def test_input_of_a_waiter(self) -> None:
        """Who waited may drain it at once."""
        self.rig.slot.reaches("ready").addCallback(lambda _: self.rig.slot.drain())
        process = self.rig.ready()
        self.assertEqual((self.rig.state, process.signals), ("draining", [SIGTERM]))

    def test_cancels_another(self) -> None:
        """Who is told may cancel another who waits for the same."""
        first, second = self.rig.slot.reaches("ready"), self.rig.slot.reaches("ready")
        first.addCallback(lambda _: second.cancel())
        self.rig.ready()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.rig.state, "ready")

    def test_gives_up_one_that_died(self) -> None:
        """Who sees it die may give its place up: then it is not restarted, and give_up is not called."""
        for deaths in (1, 2, 3):
            rig = SlotRig()
            rig.slot.start()
            for _ in range(deaths - 1):
                rig.process.exit(1)
                rig.clock.advance(EXHAUSTED_PAUSE)
            gone = rig.slot.reaches("backing off").addCallback(lambda _, rig=rig: rig.slot.drain())
            with capturedLogs() as events:
                rig.process.exit(1)
            self.assertEqual(self.successResultOf(gone), "ended")
            self.assertEqual((rig.state, len(rig.processes), rig.questions, rig.clock.calls), ("ended", deaths, [], []))
            self.assertEqual(
                [formatEvent(event) for event in events],
                ["worker 1 of agent exited with status 1; giving up"],
            )
