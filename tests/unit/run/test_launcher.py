"""Launchers of one process: what they wait for, and how they end."""

import signal
from typing import Any

from twisted.application import service
from twisted.application.service import IService
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc.config import load
from novasvc.errors import StateError
from novasvc.interfaces import IRebuildable, IStartable
from novasvc.manager import Manager
from novasvc.node.runtime import process_runtime
from novasvc.service import Launcher, Service, ServiceLauncher, SignalExit
from tests.support.launcher_rig import Ending, Part, SignalsTestCase


class Broken(service.Service):
    """Does not start."""

    def startService(self) -> None:
        raise ValueError("no port")


class Waiting(service.Service):
    """Has a method of that name which is about something else."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers

    def wait(self, seconds: float) -> None:
        raise AssertionError


class Sleeping(service.Service):
    """Waits, in its way, and does not say for what."""

    def wait(self) -> float:
        return 3.0


class Greeting(Manager):
    """Takes an option."""

    def __init__(self, host: str, greeting: str = "hello") -> None:
        super().__init__(host)
        self.greeting = greeting


@implementer(IRebuildable)
class Unrepeatable(Part):
    """Follows the environment, but cannot be made again."""

    by_environment = True

    def rebuild(self) -> None:
        raise StateError(self.label, "gone", "start")


class Coroutine(Ending):
    """Says in a coroutine when it has ended."""

    async def wait(self) -> None:  # type: ignore[override]
        await self.ended


class SignalExitTests(SignalsTestCase):
    """Tests for SignalExit."""

    def test_status(self) -> None:
        """It ends a process with status 1 unless told another, and knows the signal."""
        self.assertEqual((SignalExit(15).code, SignalExit(15).signo), (1, 15))
        self.assertEqual(SignalExit(15, 3).code, 3)
        self.assertIsInstance(SignalExit(2), SystemExit)


class LauncherTests(SignalsTestCase):
    """Tests for Launcher."""

    make: Any = Launcher

    def setUp(self) -> None:
        super().setUp()
        self.launcher = self.make(self.reactor)
        self.part = Part("a", self.log)

    def test_interfaces(self) -> None:
        """A launcher is a service whose start can be waited for."""
        verifyObject(IService, self.launcher)
        verifyObject(IStartable, self.launcher)

    def test_starts_at_once(self) -> None:
        """A server is started as soon as it is launched."""
        self.launcher.launch_server(self.part)
        self.assertEqual(self.log, ["start a"])

    def test_in_order(self) -> None:
        """Servers that are launched before the first one runs are started in turn."""
        self.part.slow = "start"
        self.launcher.launch_server(self.part)
        self.launcher.launch_server(Part("b", self.log))
        self.assertEqual(self.log, ["start a"])
        self.part.started.callback(None)
        self.assertEqual(self.log, ["start a", "start b"])

    def test_no_service(self) -> None:
        """What provides no IService is refused with the remedy."""
        error = self.assertRaises(TypeError, self.launcher.launch_server, object())
        self.assertRegex(str(error), "<object object.* does not provide IService: give a")

    def test_stop(self) -> None:
        """stop() stops each server, and fires when all have stopped."""
        self.part.slow = "stop"
        self.launcher.launch_server(self.part)
        self.launcher.launch_server(Part("b", self.log))
        stopped = self.launcher.stop()
        self.assertNoResult(stopped)
        self.part.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.log, ["start a", "start b", "stop b", "stop a"])

    def test_wait_in_a_running_reactor(self) -> None:
        """Where the reactor runs, wait() returns a Deferred of the end."""
        self.reactor.begin()
        self.launcher.launch_server(self.part)
        waiting = self.launcher.wait()
        self.assertNoResult(waiting)
        self.launcher.stop()
        self.successResultOf(waiting)
        self.assertFalse(self.reactor.stopped)

    def test_wait_runs_the_reactor(self) -> None:
        """Where it does not, wait() runs it until all servers have stopped."""
        self.launcher.launch_server(self.part)
        self.reactor.story.append(self.launcher.stop)
        self.assertIsNone(self.launcher.wait())
        self.assertEqual(self.log, ["start a", "stop a"])

    def test_wait_until_the_reactor_stops(self) -> None:
        """Whoever stops the reactor stops the servers first."""
        self.part.slow = "stop"
        self.launcher.launch_server(self.part)
        self.reactor.story.extend((self.reactor.stop, lambda: self.part.stopped.callback(None)))
        self.assertIsNone(self.launcher.wait())
        self.assertEqual(self.log, ["start a", "stop a"])

    def test_wait_again(self) -> None:
        """A reactor that was run is not run again, and the error says what to do."""
        self.test_wait_runs_the_reactor()
        error = self.assertRaises(RuntimeError, self.launcher.wait)
        self.assertIn("call wait() once, for all servers", str(error))

    def test_wait_for_nothing(self) -> None:
        """There is nothing to wait for where nothing was launched, or all was stopped before."""
        self.assertIsNone(self.launcher.wait())
        self.reactor = self.launcher._reactor = type(self.reactor)()
        self.launcher.launch_server(self.part)
        self.launcher.stop()
        self.assertIsNone(self.launcher.wait())
        self.assertEqual(self.log, ["start a", "stop a"])

    def test_signals_after_wait(self) -> None:
        """When wait() has run the reactor the signals are what they were before."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.test_wait_runs_the_reactor()
        self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)

    def test_server_ends(self) -> None:
        """When the last server has ended by itself the launcher has."""
        servers = [Ending(), Coroutine()]
        for server in servers:
            self.launcher.launch_server(server)
        self.reactor.begin()
        waiting = self.launcher.wait()
        servers[0].ended.callback(None)
        self.assertNoResult(waiting)
        self.assertEqual(list(self.launcher), servers[1:])
        servers[1].ended.callback(None)
        self.successResultOf(waiting)

    def test_other_waits(self) -> None:
        """A server whose ``wait`` is something else is not taken as ended."""
        for server in (Waiting(), Sleeping()):
            self.launcher.launch_server(server)
        self.assertEqual(self.launcher.state, "running")
        self.assertEqual(len(list(self.launcher)), 2)

    def test_failed_start(self) -> None:
        """If the first server does not start, wait() ends the process with status 1, and starts nothing again."""
        self.launcher.launch_server(Broken())
        error = self.assertRaises(SystemExit, self.launcher.wait)
        self.assertEqual(error.code, 1)
        self.assertEqual(len([line for line in self.told if "did not start: ValueError: no port" in line]), 1)
        self.flushLoggedErrors(ValueError)

    def test_failed_start_of_another(self) -> None:
        """If one that was launched later does not start, the others are stopped, and wait() says the same."""
        self.launcher.launch_server(self.part)
        self.launcher.launch_server(Broken())
        error = self.assertRaises(SystemExit, self.launcher.wait)
        self.assertEqual(error.code, 1)
        self.assertEqual(self.log, ["start a", "stop a"])
        self.assertTrue([line for line in self.told if "did not start: ValueError: no port" in line])
        self.flushLoggedErrors(ValueError)

    def test_late_failed_start(self) -> None:
        """So it is if the start takes its time to fail, for who waits by a Deferred, too."""
        self.reactor.begin()
        self.launcher.launch_server(self.part)
        late = Part("b", self.log, slow="start")
        self.launcher.launch_server(late)
        waiting = self.launcher.wait()
        late.started.errback(ValueError("no"))
        self.failureResultOf(waiting, ValueError)
        self.assertEqual(self.log, ["start a", "start b", "stop b", "stop a"])

    def test_launcher_in_a_launcher(self) -> None:
        """A launcher is a server like others, and its end is seen."""
        inner = Launcher(self.reactor)
        self.launcher.launch_server(inner)
        inner.launch_server(self.part)
        self.reactor.begin()
        waiting = self.launcher.wait()
        inner.stop()
        self.successResultOf(waiting)


class ServiceLauncherTests(LauncherTests):
    """Tests for ServiceLauncher, which is a Launcher."""

    @staticmethod
    def make(reactor: Any) -> ServiceLauncher:
        return ServiceLauncher(reactor, load((), {}, {}), lambda: load((), {}, {"workers": 3}))

    def test_signalled(self) -> None:
        """A signal ends it, and wait() with the signal's number and status 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            launcher = self.make(reactor := type(self.reactor)())
            launcher.launch_server(Part("b", self.log))
            reactor.story.append(lambda number=number: signal.raise_signal(number))
            error = self.assertRaises(SignalExit, launcher.wait)
            self.assertEqual((error.signo, error.code), (number, 1))
        self.assertEqual(self.log, ["start b", "stop b", "start b", "stop b", "hurry b"])

    def test_settings_logged(self) -> None:
        """All settings are logged once, one a line, passwords masked."""
        self.launcher = ServiceLauncher(self.reactor, load((), {}, {"transport-url": "amqp://me:secret@broker/"}))
        self.launcher.launch_server(self.part)
        self.launcher.launch_server(Part("b", self.log))
        (line,) = [line for line in self.told if line.startswith("transport_url = ")]
        self.assertEqual(line, "transport_url = amqp://me:***@broker/ (option --transport-url)")
        self.assertTrue([line for line in self.told if line.startswith("workers = 0")])

    def test_restart(self) -> None:
        """SIGHUP logs what has changed, and restarts what is there."""
        self.launcher.launch_server(self.part)
        self.reactor.begin()
        self.send(signal.SIGHUP)
        self.assertEqual(self.log, ["start a", "stop a", "start a"])
        self.assertIn("reload: workers changed from 0 to 3", self.told)
        self.assertEqual(self.launcher.configuration.settings.workers, 3)

    def test_end_seen_after_restart(self) -> None:
        """A server that ends for a restart is not taken as ended; one that ends by itself after it is."""
        server = Ending()
        self.launcher.launch_server(server)
        self.reactor.begin()
        waiting = self.launcher.wait()
        self.send(signal.SIGHUP)
        self.assertEqual((server.starts, self.launcher.state), (2, "running"))
        self.assertNoResult(waiting)
        server.ended.callback(None)
        self.successResultOf(waiting)

    def test_failed_restart(self) -> None:
        """A server that does not start again ends the launcher, as one that did not start."""
        self.launcher.launch_server(self.part)
        self.reactor.begin()
        waiting = self.launcher.wait()
        self.part.slow = "start"
        self.send(signal.SIGHUP)
        self.part.started.errback(StateError("it", "gone", "start"))
        self.failureResultOf(waiting, StateError)
        self.assertEqual(
            [line for line in self.told if line.startswith("SIGHUP: ")], ["SIGHUP: it is gone and cannot start"]
        )

    def test_rebuilt(self) -> None:
        """A Service that goes by the environment is made again of what it was made of, with another manager."""
        node = Service("h1", "nova-m", "m", Greeting, greeting="hi")
        again = node.rebuild()
        self.assertIsNot(again.manager, node.manager)
        self.assertEqual((again.manager.greeting, again.host, again.by_environment), ("hi", "h1", True))

    def test_not_rebuilt(self) -> None:
        """If it cannot be made, the restart is refused with the reason, and what is there runs on."""
        before = process_runtime()
        server = Unrepeatable("a", self.log)
        self.launcher.launch_server(server)
        self.reactor.begin()
        self.send(signal.SIGHUP)
        self.assertIn("SIGHUP: reload failed, previous configuration kept: a is gone and cannot start", self.told)
        self.assertEqual((self.log, list(self.launcher)), (["start a"], [server]))
        self.assertIs(process_runtime(), before)

    def test_refused(self) -> None:
        """A configuration with an error is refused, the error is logged, and the old stays."""

        def refuse() -> Any:
            return load((), {"NOVASVC_WORKERS": "many"}, {})

        self.launcher = ServiceLauncher(self.reactor, load((), {}, {}), refuse)
        self.launcher.launch_server(self.part)
        self.reactor.begin()
        self.send(signal.SIGHUP)
        self.assertEqual(self.log, ["start a"])
        self.assertRegex(self.told[-1], "NOVASVC_WORKERS = 'many'.*is not a whole number")
        self.assertEqual(self.launcher.configuration.settings.workers, 0)

    def test_refused_by_an_exit(self) -> None:
        """A SystemExit during a reload refuses it, and the log says that one was raised."""

        def refuse() -> Any:
            raise SystemExit(1)

        self.launcher = ServiceLauncher(self.reactor, load((), {}, {}), refuse)
        self.launcher.launch_server(self.part)
        self.reactor.begin()
        self.send(signal.SIGHUP)
        self.assertEqual(self.log, ["start a"])
        self.assertEqual(self.told[-1], "SIGHUP: reload failed, previous configuration kept: it raised SystemExit(1)")

    def test_signals_given_back(self) -> None:
        """When it has stopped, the signals are what they were."""
        before = signal.getsignal(signal.SIGHUP)
        self.reactor.begin()
        self.launcher.launch_server(self.part)
        self.assertNotEqual(signal.getsignal(signal.SIGHUP), before)
        self.launcher.stop()
        self.assertEqual(signal.getsignal(signal.SIGHUP), before)
