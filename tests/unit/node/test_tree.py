"""The service tree that waits."""

import sys

from twisted.application.service import IServiceCollection, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc import ServiceTree
from novasvc.errors import StateError
from novasvc.interfaces import IStartable
from novasvc.workers.exit_status import interrupt
from tests.support.pickling import carried


@implementer(IStartable)
class Part(Service):
    """A part whose start and stop end when the test says so."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.label = name
        self.log = log
        self.started: Deferred[None] = Deferred()
        self.stopped: Deferred[None] = Deferred()

    def startService(self) -> None:
        super().startService()
        self.log.append(f"start {self.label}")

    def when_started(self) -> Deferred[None]:
        return self.started

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.log.append(f"stop {self.label}")
        return self.stopped


class BrokenService(Service):
    """A part that has no way to start."""

    def startService(self) -> None:
        raise ValueError("no port")


class Hurrying(Service):
    """A part that remembers that it was to hurry."""

    def __init__(self, label: str, log: list[str]) -> None:
        self.label = label
        self.log = log

    def hurry(self) -> None:
        self.log.append(self.label)


class BrokenHurry(Service):
    """A part that cannot hurry."""

    def hurry(self) -> None:
        raise ValueError("no pencil")


class ServiceTreeTests(SynchronousTestCase):
    """Tests for novasvc.ServiceTree."""

    def setUp(self) -> None:
        self.log: list[str] = []
        self.tree = ServiceTree()
        self.parts = [Part(name, self.log) for name in "abc"]
        for part in self.parts:
            part.setServiceParent(self.tree)

    def test_hurry(self) -> None:
        """To hurry is to stop all parts now, each once, whatever the others do."""
        self.run_all()
        self.log.clear()
        stopped = self.tree.stopService()
        self.assertEqual(self.log, ["stop c"])
        self.tree.hurry()
        self.tree.hurry()
        self.assertEqual(self.log, ["stop c", "stop b", "stop a"])
        for part in self.parts:
            self.assertNoResult(stopped)
            part.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.log, ["stop c", "stop b", "stop a"])

    def test_hurry_while_running(self) -> None:
        """A tree that runs stops nothing because of it."""
        self.run_all()
        self.log.clear()
        self.tree.hurry()
        self.assertEqual(self.log, [])

    def test_hurry_fails(self) -> None:
        """A part whose hurry() raises keeps no other from hurrying, neither in a tree nor in Twisted's MultiService."""
        for kind in (ServiceTree, MultiService):
            whole = kind()
            hurried: list[str] = []
            for part in (Hurrying("first", hurried), BrokenHurry(), Hurrying("last", hurried)):
                part.setServiceParent(whole)
            interrupt(whole)
            self.assertEqual(hurried, ["first", "last"])
            (error,) = self.flushLoggedErrors(ValueError)
            self.assertEqual(error.getErrorMessage(), "no pencil")

    def test_abandon(self) -> None:
        """A tree that is to wait no longer tells those that were not told, and leaves behind what has not stopped."""
        self.run_all()
        self.log.clear()
        told: list[str] = []
        observer = lambda event: told.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        stopped = self.tree.stopService()
        self.parts[0].stopped.callback(None)
        self.tree.abandon()
        self.successResultOf(stopped)
        self.assertEqual(self.log, ["stop c", "stop b", "stop a"])
        left = [line for line in told if "did not stop in time; no longer waiting for it" in line]
        self.assertEqual(len(left), 2)

    def test_start_after_abandon(self) -> None:
        """A tree that is started again after that waits as before."""
        self.run_all()
        self.tree.stopService()
        self.tree.abandon()
        for part in self.parts:
            part.stopped = Deferred()
        self.tree.startService()
        stopped = self.tree.stopService()
        self.assertNoResult(stopped)

    def run_all(self) -> None:
        self.tree.startService()
        for part in self.parts:
            part.started.callback(None)

    def test_pickled(self) -> None:
        """A tree is brought to a worker with its parts, their names too, and none of them was started."""
        tree = ServiceTree("carried")
        part = Service()
        part.setName("named")
        part.setServiceParent(tree)
        tree.startService()
        copy = carried(tree)
        (made,) = copy
        self.assertIs(copy.getServiceNamed("named"), made)
        self.assertIs(made.parent, copy)
        self.assertEqual((copy.state, made.running), ("initial", 0))

    def test_end_of_the_process(self) -> None:
        """A part that ends with SystemExit keeps no other from its stop; whoever ends the process finds it."""
        self.patch(self.parts[2], "stopService", lambda: sys.exit(7))
        self.run_all()
        stopped = self.tree.stopService()
        for part in self.parts[:2]:
            part.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.log[-2:], ["stop b", "stop a"])
        assert self.tree.leaving is not None
        self.assertEqual(self.tree.leaving.code, 7)

    def test_interfaces(self) -> None:
        """A tree is a collection of services whose start can be waited for."""
        verifyObject(IServiceCollection, self.tree)
        verifyObject(IStartable, self.tree)

    def test_start_in_order(self) -> None:
        """Each part starts when the one before it runs."""
        self.tree.startService()
        self.assertEqual(self.log, ["start a"])
        self.parts[0].started.callback(None)
        self.assertEqual(self.log, ["start a", "start b"])
        self.parts[1].started.callback(None)
        started = self.tree.when_started()
        self.assertNoResult(started)
        self.parts[2].started.callback(None)
        self.successResultOf(started)
        self.assertEqual(self.tree.state, "running")

    def test_stop_in_reverse(self) -> None:
        """Each part stops when the one after it has stopped."""
        self.run_all()
        self.log.clear()
        stopped = self.tree.stopService()
        self.assertEqual(self.log, ["stop c"])
        self.parts[2].stopped.callback(None)
        self.assertEqual(self.log, ["stop c", "stop b"])
        self.parts[1].stopped.callback(None)
        self.assertNoResult(stopped)
        self.parts[0].stopped.callback(None)
        self.successResultOf(stopped)

    def test_failed_part(self) -> None:
        """If a part does not start, those before it are stopped and the tree has failed."""
        started = self.tree.when_started()
        self.tree.startService()
        self.parts[0].started.callback(None)
        for part in self.parts:
            part.stopped.callback(None)
        self.parts[1].started.errback(ValueError("no"))
        self.failureResultOf(started, ValueError)
        self.assertEqual(self.log, ["start a", "start b", "stop b", "stop a"])
        self.assertEqual(self.tree.state, "failed")

    def test_stop_while_starting(self) -> None:
        """A stop during the start stops what was started, and starts nothing more."""
        self.tree.startService()
        self.parts[0].started.callback(None)
        for part in self.parts:
            part.stopped.callback(None)
        self.successResultOf(self.tree.stopService())
        self.assertEqual(self.log, ["start a", "start b", "stop b", "stop a"])

    def test_stop_goes_on_after_error(self) -> None:
        """A part that cannot stop is logged and does not keep the others from stopping."""
        self.run_all()
        self.parts[2].stopped.errback(ValueError("stuck"))
        self.parts[1].stopped.callback(None)
        self.parts[0].stopped.callback(None)
        self.successResultOf(self.tree.stopService())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_ordinary_service(self) -> None:
        """A part that is an ordinary Twisted service counts as started at once."""
        tree = ServiceTree()
        child = Service()
        child.setServiceParent(tree)
        tree.startService()
        self.successResultOf(tree.when_started())
        self.assertTrue(child.running)

    def test_inside_multiservice(self) -> None:
        """A tree lives in Twisted's own MultiService, whose stop waits for it."""
        parent = MultiService()
        self.tree.setServiceParent(parent)
        parent.startService()
        for part in self.parts:
            part.started.callback(None)
        stopped = parent.stopService()
        self.assertNoResult(stopped)
        for part in self.parts:
            part.stopped.callback(None)
        self.successResultOf(stopped)

    def test_add_while_running(self) -> None:
        """A part added to a running tree starts at once, and stops with it."""
        self.run_all()
        late = Part("d", self.log)
        late.setServiceParent(self.tree)
        self.assertIn("start d", self.log)
        self.tree.stopService()
        self.assertEqual(self.log[-1], "stop d")

    def test_add_while_starting(self) -> None:
        """A part added while the tree starts waits for its turn."""
        self.tree.startService()
        late = Part("d", self.log)
        late.setServiceParent(self.tree)
        self.assertEqual(self.log, ["start a"])
        for part in self.parts:
            part.started.callback(None)
        self.assertEqual(self.log[-1], "start d")

    def test_remove(self) -> None:
        """A part that is taken out is stopped, and not stopped again with the tree."""
        self.run_all()
        removed = self.parts[1].disownServiceParent()
        self.parts[1].stopped.callback(None)
        self.successResultOf(removed)
        self.parts[2].stopped.callback(None)
        self.parts[0].stopped.callback(None)
        self.successResultOf(self.tree.stopService())
        self.assertEqual(self.log.count("stop b"), 1)

    def test_remove_while_starting(self) -> None:
        """A started part that is taken out while the tree starts makes it skip no other."""
        self.tree.startService()
        self.parts[0].started.callback(None)
        self.tree.removeService(self.parts[0])
        self.parts[1].started.callback(None)
        self.parts[2].started.callback(None)
        self.assertEqual(self.log, ["start a", "start b", "stop a", "start c"])
        self.successResultOf(self.tree.when_started())

    def test_remove_the_starting(self) -> None:
        """A part that is taken out while it starts does not fail the tree, which goes on with the next."""
        self.tree.startService()
        self.tree.removeService(self.parts[0])
        self.parts[0].started.errback(StateError("a", "stopped", "start"))
        self.parts[1].started.callback(None)
        self.parts[2].started.callback(None)
        self.assertEqual(self.log, ["start a", "stop a", "start b", "start c"])
        self.successResultOf(self.tree.when_started())

    def test_remove_the_starting_and_stop(self) -> None:
        """A tree that is stopped while a part that was taken out still starts begins no other."""
        self.tree.startService()
        self.tree.removeService(self.parts[0])
        self.successResultOf(self.tree.stopService())
        self.assertEqual(self.log, ["start a", "stop a"])

    def test_remove_not_begun(self) -> None:
        """A part that is taken out before its turn is neither started nor stopped."""
        self.tree.startService()
        self.successResultOf(self.tree.removeService(self.parts[1]))
        self.parts[0].started.callback(None)
        self.parts[2].started.callback(None)
        self.assertEqual(self.log, ["start a", "start c"])

    def test_remove_while_stopping(self) -> None:
        """Who takes out a part that is being stopped waits for that."""
        self.run_all()
        self.tree.stopService()
        removed = self.tree.removeService(self.parts[2])
        self.assertNoResult(removed)
        self.parts[2].stopped.callback(None)
        self.successResultOf(removed)
        self.assertEqual(self.log.count("stop c"), 1)

    def test_plain_part_that_raises(self) -> None:
        """A plain part that raises fails the tree, with one line that says which, why and where."""
        broken = BrokenService()
        broken.setName("the broken")
        broken.setServiceParent(self.tree)
        for part in self.parts:
            part.started.callback(None)
            part.stopped.callback(None)
        told: list[str] = []

        def note(event: LogEvent) -> None:
            if event["log_level"] is LogLevel.critical:
                told.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        self.tree.startService()
        self.failureResultOf(self.tree.when_started(), ValueError)
        (line,) = told
        self.assertRegex(line, r"BrokenService.* did not start: ValueError: no port \(.*test_tree.py:\d+ in ")
        self.assertEqual(self.log[-1], "stop a")
        self.assertFalse(self.tree.running)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_start_while_draining(self) -> None:
        """A start while it drains is not taken, and the tree does not claim to run."""
        self.run_all()
        self.tree.stopService()
        self.tree.startService()
        self.assertFalse(self.tree.running)
        self.failureResultOf(self.tree.when_started(), StateError)

    def test_restart(self) -> None:
        """A restart stops the parts in reverse, and starts others in their place, each in its turn."""
        self.run_all()
        self.log.clear()
        others = [self.parts[0], Part("d", self.log)]
        restarted = self.tree.restart(others)
        self.parts[0].started = Deferred()
        for part in self.parts:
            part.stopped.callback(None)
        self.assertEqual(self.log, ["stop c", "stop b", "stop a", "start a"])
        self.parts[0].started.callback(None)
        self.assertEqual(self.log[4:], ["start d"])
        self.assertNoResult(restarted)
        others[1].started.callback(None)
        self.successResultOf(restarted)
        self.assertEqual(list(self.tree), others)

    def test_stop_while_restarting(self) -> None:
        """A tree that is stopped during a restart keeps its parts, and starts them if it is started again."""
        self.run_all()
        restarted = self.tree.restart([Part("d", self.log)])
        stopped = self.tree.stopService()
        for part in self.parts:
            part.stopped.callback(None)
        self.failureResultOf(restarted, StateError)
        self.successResultOf(stopped)
        self.log.clear()
        self.tree.startService()
        self.assertEqual(self.log, ["start a", "start b", "start c"])

    def test_restart_of_a_tree_at_rest(self) -> None:
        """A tree that does not run is not restarted."""
        self.failureResultOf(self.tree.restart([]), StateError)
        self.assertEqual(list(self.tree), self.parts)
