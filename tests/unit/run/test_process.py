"""What a process with one tree does at signals, and tells systemd."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc import ServiceTree
from novasvc.interfaces import IProcessControl
from novasvc.node.process_control import process_control
from novasvc.run.process import IMMEDIATE_STOP_TIMEOUT, Process
from novasvc.run.restart import execute_again, has_systemd_sockets
from novasvc.telemetry.flight import note
from novasvc.workers.errors import ReloadError
from novasvc.workers.exit_status import ABANDON_DELAY, KILL_DELAY
from tests.support.flight_rig import record_flight
from tests.support.launcher_rig import Part, SignalsTestCase


class ProcessTestCase(SignalsTestCase):
    """A process of a tree of two parts, the second of which takes its time to stop."""

    def setUp(self) -> None:
        super().setUp()
        self.tree = ServiceTree()
        self.first, self.second = Part("a", self.log), Part("b", self.log, slow="stop")
        for part in (self.first, self.second):
            part.setServiceParent(self.tree)
        self.reload: Any = None
        self.limits: list[tuple[int, float]] = []
        directory = self.mktemp()
        os.mkdir(directory)  # noqa: PTH102 - trial has no Path
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.systemd.close)
        self.systemd.bind(f"{directory}/systemd")
        self.process = Process(
            self.reactor,
            self.tree,
            self.restart,
            lambda: 30.0,
            environ={"NOTIFY_SOCKET": f"{directory}/systemd"},
            schedule_exit=lambda *limit: self.limits.append(limit),
            run_again=self.run_again,
        )
        self.is_wanted: Callable[[], bool] | None = None
        self.reactor.addSystemEventTrigger("before", "shutdown", self.tree.stopService)

    def run_again(self, reactor: Any, is_wanted: Callable[[], bool]) -> None:
        self.is_wanted = is_wanted
        reactor.stop()

    async def restart(self) -> None:
        if self.reload is not None:
            raise self.reload
        await self.tree.restart([self.first, self.second])

    def run_it(self) -> None:
        self.process.startService()
        self.tree.startService()
        self.reactor.begin()
        self.log.clear()
        self.heard()

    def heard(self) -> list[str]:
        """Return what systemd was told since it was asked last: the first line of each message."""
        messages: list[str] = []
        while True:
            try:
                messages.append(self.systemd.recv(4096, socket.MSG_DONTWAIT).decode().split("\n")[0])
            except BlockingIOError:
                return messages


class EndTests(ProcessTestCase):
    """SIGTERM and SIGINT."""

    def test_drains(self) -> None:
        """SIGTERM ends the process as the reactor would: it waits for the tree."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.assertEqual(self.log, ["stop b"])
        self.assertFalse(self.reactor.stopped)
        self.assertEqual(self.heard(), ["STOPPING=1"])
        self.second.stopped.callback(None)
        self.assertEqual(self.log, ["stop b", "stop a"])
        self.assertTrue(self.reactor.stopped)
        self.assertEqual(self.process.signo, signal.SIGTERM)
        self.assertEqual(self.limits, [(signal.SIGTERM, 30 + KILL_DELAY)])

    def test_second_term(self) -> None:
        """A second SIGTERM has all parts cut short what they do, and limits the time for that."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.send(signal.SIGTERM)
        self.assertEqual(self.log, ["stop b", "stop a", "hurry a", "hurry b"])
        self.assertEqual(self.limits, [(signal.SIGTERM, 30 + KILL_DELAY), (signal.SIGTERM, IMMEDIATE_STOP_TIMEOUT)])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_third_signal(self) -> None:
        """After a second one the system has the signals again, but a SIGINT that is ignored stays so."""
        self.run_it()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.send(signal.SIGTERM)
        self.send(signal.SIGTERM)
        after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        self.assertEqual(after, [signal.SIG_DFL, signal.SIG_IGN])

    def test_interrupted(self) -> None:
        """SIGINT does so the first time, when the tree was told to stop."""
        self.run_it()
        self.send(signal.SIGINT)
        self.assertEqual(self.log, ["stop b", "stop a", "hurry a", "hurry b"])
        self.assertEqual(self.limits, [(signal.SIGINT, IMMEDIATE_STOP_TIMEOUT)])
        self.assertEqual(self.process.signo, signal.SIGINT)
        self.second.stopped.callback(None)
        self.assertTrue(self.reactor.stopped)

    def test_interrupted_while_draining(self) -> None:
        """SIGINT after SIGTERM ends at once; what ends the process is still the SIGTERM."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.send(signal.SIGINT)
        self.assertIn("hurry b", self.log)
        self.assertEqual(
            (self.process.signo, self.limits),
            (signal.SIGTERM, [(signal.SIGTERM, 30 + KILL_DELAY), (signal.SIGINT, IMMEDIATE_STOP_TIMEOUT)]),
        )

    def test_limited_where_it_is_found(self) -> None:
        """The time is limited even if the reactor has no turn any more, from the first signal on."""
        self.run_it()
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(self.limits, [(signal.SIGTERM, 30 + KILL_DELAY)])
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(self.limits, [(signal.SIGTERM, 30 + KILL_DELAY), (signal.SIGTERM, IMMEDIATE_STOP_TIMEOUT)])

    def test_deadline(self) -> None:
        """What has not ended when the time is over is cut short, and the time for that is limited."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.reactor.advance(29.9)
        self.assertEqual(self.log, ["stop b"])
        self.reactor.advance(0.1)
        self.assertEqual(self.log, ["stop b", "stop a", "hurry a", "hurry b"])
        self.assertEqual(self.limits, [(signal.SIGTERM, 30 + KILL_DELAY)])
        self.assertIn("graceful_shutdown_timeout (30 s)", self.told[-1])

    def test_left_behind(self) -> None:
        """A part that does not stop even then is left behind, and named; the reactor stops before the end by force."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.reactor.advance(30)
        self.assertFalse(self.reactor.stopped)
        self.reactor.advance(ABANDON_DELAY)
        self.assertLess(ABANDON_DELAY, KILL_DELAY)
        self.assertTrue(self.reactor.stopped)
        self.assertIn(f"{self.second!r} did not stop in time; no longer waiting for it", self.told)
        self.process.stopService()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_left_behind_at_once(self) -> None:
        """So it is when the end is to come at once."""
        self.run_it()
        self.send(signal.SIGINT)
        self.reactor.advance(IMMEDIATE_STOP_TIMEOUT - 0.1)
        self.assertTrue(self.reactor.stopped)

    def test_deadline_after_a_second_term(self) -> None:
        """An end that is to come at once does not put off the deadline."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.reactor.advance(29.9)
        self.send(signal.SIGTERM)
        self.assertFalse(self.reactor.stopped)
        self.reactor.advance(0.1)
        self.reactor.advance(ABANDON_DELAY)
        self.assertTrue(self.reactor.stopped)

    def test_in_time(self) -> None:
        """What ends in time is left in peace."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.second.stopped.callback(None)
        self.process.stopService()
        self.reactor.advance(60)
        self.assertEqual(self.log, ["stop b", "stop a"])

    def test_reactor_without_handlers(self) -> None:
        """Where the reactor has taken no signals it is stopped all the same."""
        self.run_it()
        self.process.stopService()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.process.startService()
        self.send(signal.SIGTERM)
        self.assertEqual(self.log, ["stop b"])

    def test_reactor_stops_already(self) -> None:
        """SIGTERM while the process ends for another reason is answered by the end that is under way."""
        self.run_it()
        self.reactor.stop()
        self.reactor.turn()
        self.send(signal.SIGTERM)
        self.assertEqual(self.log, ["stop b"])
        self.send(signal.SIGTERM)
        self.assertIn("hurry b", self.log)

    def test_while_starting(self) -> None:
        """SIGTERM while the tree starts ends it there."""
        self.first.slow = "start"
        self.run_it()
        self.first.started.addErrback(lambda _: None)
        self.send(signal.SIGTERM)
        self.assertEqual(self.log, ["stop a"])
        self.assertTrue(self.reactor.stopped)

    def test_given_back(self) -> None:
        """When the process is stopped the signals are what they were."""
        before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR2)}
        self.run_it()
        self.process.stopService()
        self.assertEqual({number: signal.getsignal(number) for number in before}, before)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class RestartTests(ProcessTestCase):
    """SIGHUP."""

    def test_restarts(self) -> None:
        """SIGHUP stops the parts in reverse, starts them in order, and tells systemd both."""
        self.run_it()
        self.send(signal.SIGHUP)
        self.assertEqual(self.log, ["stop b"])
        self.assertEqual(self.heard(), ["RELOADING=1"])
        self.second.stopped.callback(None)
        self.assertEqual(self.log, ["stop b", "stop a", "start a", "start b"])
        self.assertEqual(self.heard(), ["READY=1"])
        self.assertIn("services restarted", self.told)

    def test_refused(self) -> None:
        """A restart that is refused leaves what runs, with one line that says why."""
        self.run_it()
        self.reload = ReloadError("workers = 'x' is not a whole number")
        self.send(signal.SIGHUP)
        self.assertEqual(self.log, [])
        self.assertEqual(self.heard(), ["RELOADING=1", "READY=1"])
        self.assertIn("workers = 'x' is not a whole number", self.told[-1])

    def test_twice(self) -> None:
        """A second one, while the first is under way, takes its place."""
        self.run_it()
        self.send(signal.SIGHUP)
        self.send(signal.SIGHUP)
        self.assertIn("superseding the restart under way", self.told[-1])
        self.second.stopped.callback(None)
        self.assertEqual(self.log, ["stop b", "stop a", "start a", "start b"])

    def test_stuck(self) -> None:
        """One that waits, for a broker that is not where it was said to be, is ended by the next."""
        self.run_it()
        self.first.slow, self.second.slow = "start", ""
        self.send(signal.SIGHUP)
        self.assertEqual(self.log, ["stop b", "stop a", "start a"])
        self.first.slow = ""
        self.send(signal.SIGHUP)
        self.assertEqual(self.log[3:], ["stop a", "start a", "start b"])
        self.assertIn("services restarted", self.told)

    def test_while_draining(self) -> None:
        """One that comes while the process ends is told so."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.send(signal.SIGHUP)
        self.assertIn("the services are draining", self.told[-1])

    def test_terminated_on_the_way_down(self) -> None:
        """SIGTERM during a restart waits for what is being stopped, and starts nothing again."""
        self.run_it()
        self.send(signal.SIGHUP)
        self.send(signal.SIGTERM)
        self.assertFalse(self.reactor.stopped)
        self.second.stopped.callback(None)
        self.assertEqual(self.log, ["stop b", "stop a"])
        self.assertTrue(self.reactor.stopped)
        self.assertNotIn("services restarted", self.told)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_terminated_on_the_way_up(self) -> None:
        """SIGTERM while the parts start again stops those that were started."""
        self.run_it()
        self.send(signal.SIGHUP)
        self.first.slow = "start"
        self.second.stopped.callback(None)
        self.first.started.addErrback(lambda _: None)
        self.send(signal.SIGTERM)
        self.assertEqual(self.log, ["stop b", "stop a", "start a", "stop a"])
        self.assertTrue(self.reactor.stopped)

    def test_broken(self) -> None:
        """A restart that fails in a way nobody expected leaves a traceback."""
        self.run_it()
        self.reload = ValueError("surprise")
        self.send(signal.SIGHUP)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.tree.state, "running")


class ProcessRestartTests(ProcessTestCase):
    """A restart of the whole process, which a node asks for."""

    def ask(self) -> None:
        process_control.get(self.reactor).restart()  # type: ignore[union-attr]
        for _ in range(4):
            self.reactor.turn()

    def wanted(self) -> bool:
        assert self.is_wanted is not None
        return self.is_wanted()

    def test_drains(self) -> None:
        """The process drains as at SIGTERM, and then runs again; systemd sees a reload."""
        self.run_it()
        self.ask()
        self.assertEqual(self.log, ["stop b"])
        self.assertEqual(self.heard(), ["RELOADING=1"])
        self.assertGreater(signal.getitimer(signal.ITIMER_REAL)[0], 30)
        self.second.stopped.callback(None)
        self.assertTrue(self.reactor.stopped)
        self.assertTrue(self.wanted())
        self.assertIsNone(self.process.signo)

    def test_drain_times_out(self) -> None:
        """What remains at the end of the drain timeout is cancelled."""
        self.run_it()
        self.ask()
        self.reactor.advance(30)
        self.assertIn("hurry b", self.log)

    def test_terminated(self) -> None:
        """SIGTERM during the drain ends the process for good."""
        self.run_it()
        self.ask()
        self.send(signal.SIGTERM)
        self.second.stopped.callback(None)
        self.assertFalse(self.wanted())

    def test_terminated_while_blocked(self) -> None:
        """It does so even before the reactor, which may be blocked, handles the signal."""
        self.run_it()
        self.ask()
        signal.raise_signal(signal.SIGTERM)
        self.assertFalse(self.wanted())

    def test_twice(self) -> None:
        """A second one, and one while the process stops, are ignored with a warning."""
        self.run_it()
        self.ask()
        self.is_wanted = None
        self.ask()
        self.assertIn("not restarting: this process is stopping", self.told)
        self.assertIsNone(self.is_wanted)

    def test_while_terminating(self) -> None:
        """So is one after SIGTERM."""
        self.run_it()
        self.send(signal.SIGTERM)
        self.ask()
        self.assertIsNone(self.is_wanted)

    def drain(self) -> None:
        process_control.get(self.reactor).drain()  # type: ignore[union-attr]
        for _ in range(4):
            self.reactor.turn()

    def test_drained_twice(self) -> None:
        """A drain that is asked for again, by two operators, say, cuts nothing short as a second SIGTERM does."""
        self.run_it()
        self.drain()
        self.assertEqual((self.process.signo, self.log), (signal.SIGTERM, ["stop b"]))
        self.drain()
        self.reactor.advance(5)
        self.assertEqual((self.process.stopping_now, self.log), (False, ["stop b"]))
        self.assertIn("not draining: this process is stopping", self.told)
        self.send(signal.SIGTERM)
        self.assertTrue(self.process.stopping_now)

    def test_drained_while_restarting(self) -> None:
        """A drain during the drain of a restart ends the process for good, and cuts nothing short."""
        self.run_it()
        self.ask()
        self.drain()
        self.second.stopped.callback(None)
        self.assertFalse(self.wanted() or self.process.stopping_now)

    def test_control(self) -> None:
        """The control can be had while the process runs; it tells of the reloads."""
        self.assertIsNone(process_control.get(self.reactor))
        self.run_it()
        control = process_control.get(self.reactor)
        assert control is not None
        self.assertTrue(verifyObject(IProcessControl, control))
        self.second.slow = ""
        control.begin_reload()
        self.assertEqual(control.reload_report(), {"ended": 1, "under_way": False, "problem": None})
        self.reload = ReloadError("no such file")
        control.begin_reload()
        report = control.reload_report()
        self.assertEqual((report["ended"], report["under_way"]), (2, False))
        self.assertIn("no such file", report["problem"])
        self.send(signal.SIGTERM)
        self.process.stopService()
        self.assertIsNone(process_control.get(self.reactor))


class RunAgainTests(SynchronousTestCase):
    """Tests for novasvc.run.restart."""

    def test_command(self) -> None:
        """The program is executed with its own arguments, by the same interpreter, and no timer is left."""
        executed: list[tuple[str, list[str]]] = []
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 100)
        self.addCleanup(os.chdir, os.getcwd())  # noqa: PTH109 - Path has no chdir
        execute_again(lambda *command: executed.append(command))
        self.assertEqual(executed, [(sys.executable, [sys.executable, *sys.orig_argv[1:]])])
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL)[0], 0)

    def test_directory(self) -> None:
        """The program is executed in the directory in which it was started, as its arguments may be relative paths."""
        folder = Path(self.mktemp())
        (folder / "elsewhere").mkdir(parents=True)
        (folder / "program.py").write_text(
            "import os\n"
            "from novasvc.run.restart import execute_again\n"
            "if os.path.exists('again'):\n"
            "    raise SystemExit(3)\n"
            "open('again', 'w').close()\n"
            "os.chdir('elsewhere')\n"
            "execute_again()\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run([sys.executable, "program.py"], cwd=folder, env=environment, timeout=30, check=False)
        self.assertEqual(ended.returncode, 3)

    def test_systemd_sockets(self) -> None:
        """Sockets of systemd are known by the variables that are meant for this process."""
        for environ, expected in (
            ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, True),
            ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, False),
            ({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, False),
            ({}, False),
        ):
            self.assertEqual(has_systemd_sockets(environ, 7), expected)


class DumpTests(ProcessTestCase):
    """SIGUSR2."""

    def test_dump(self) -> None:
        """SIGUSR2 logs where each thread is, and what was recorded last."""
        record_flight(self)
        note("call", "greet began")
        self.run_it()
        self.send(signal.SIGUSR2)
        self.assertRegex(self.told[-1], r"(?s)most recent call first.*test_dump.*last events:\n.*call greet began")


class ReadyTests(ProcessTestCase):
    """What systemd is told of the start."""

    def test_ready(self) -> None:
        """It is told when all parts run, not before."""
        self.first.slow = "start"
        self.process.startService()
        self.tree.startService()
        self.reactor.begin()
        self.assertEqual(self.heard(), [])
        self.first.started.callback(None)
        self.assertEqual(self.heard(), ["READY=1"])

    def test_not_ready(self) -> None:
        """It is told nothing of a start that has failed."""
        self.first.slow = "start"
        self.process.startService()
        self.tree.startService()
        self.first.started.errback(ValueError("no"))
        self.assertEqual(self.heard(), [])
