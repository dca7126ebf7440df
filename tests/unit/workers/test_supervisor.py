"""Tests for novasvc.workers.supervisor: the workers of all servers, on a host that stands in."""

import os
import re
import socket
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from novasvc.errors import ListenError
from novasvc.interfaces import ISupervisor
from novasvc.workers.diagnostics import DUMP
from novasvc.workers.errors import DrainError, NoSuchWorkerError, ResizeError
from novasvc.workers.servers import MAX_WORKERS, ServerWrapper, check_workers, open_sockets
from novasvc.workers.supervisor import Supervisor
from tests.support.supervision_rig import StandInWorker, descriptors, exited, logged
from tests.support.supervisor_rig import Listening, Server, SupervisorCase


class StartTests(SupervisorCase):
    """The way up."""

    settings: ClassVar[dict[str, Any]] = {"log_json": True, "log_level": "warn"}

    def test_interface(self) -> None:
        """It is what the control socket needs."""
        verifyObject(ISupervisor, self.supervisor)

    def test_several(self) -> None:
        """Each server has its number of workers, which have numbers of their own."""
        started = self.start((Server("api"), 2), (Server("agent"), 3))
        self.assertEqual(
            [(worker.parameters["name"], worker.number) for worker in self.host.workers],
            [("api", 1), ("api", 2), ("agent", 3), ("agent", 4), ("agent", 5)],
        )
        self.assertNoResult(started)
        self.host.ready_all()
        self.successResultOf(started)
        self.assertEqual(self.supervisor.status, "5 of 5 workers are ready")

    def test_orders(self) -> None:
        """A worker is told where it logs to, and which reactor it has."""
        self.start((Server("api"), 1))
        (worker,) = self.host.workers
        self.assertEqual(worker.parameters["log"], {"file": "", "json": True, "level": "warn"})
        self.assertEqual(worker.parameters["reactor"], "twisted.internet.default")

    def test_forkserver(self) -> None:
        """There is one forkserver for all, which imports what the servers are made of, and nothing of systemd's."""
        self.patch(os, "environ", {"PATH": "/bin", "NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1"})
        self.start((Server("api"), 1), (Listening("web"), 1))
        (server,) = self.host.forkservers
        self.assertEqual(server.environment, {"PATH": "/bin"})
        self.assertEqual(server.started["preload"], ["tests.support.supervisor_rig"])
        self.assertIsNone(server.started["main"])

    def test_sockets(self) -> None:
        """Each worker has the sockets of its server, and no others."""
        wrappers = [ServerWrapper(Listening("web"), 2), ServerWrapper(Server("api"), 1)]
        sockets = open_sockets(wrappers, {})
        self.start((Listening("web"), 2), (Server("api"), 1), sockets=sockets)
        self.assertEqual([len(worker.sockets) for worker in self.host.workers], [1, 1, 0])

    def test_wrapper(self) -> None:
        """Nova's ServerWrapper tells the processes and the times of its server's forks."""
        wrapper = ServerWrapper(Server("web"), 2)
        self.assertEqual((wrapper.name, wrapper.children, wrapper.forktimes), ("web", set(), []))
        self.start((Server("api"), 2))
        (wrapper,) = self.wrappers
        self.assertEqual(wrapper.children, {worker.pid for worker in self.host.workers})
        self.assertEqual(wrapper.forktimes, [0.0, 0.0])

    def test_ready_while_suspended(self) -> None:
        """A worker that became ready while the supervisor was suspended is not late."""
        self.start((Server("api"), 1))
        (worker,) = self.host.workers
        worker.pipe.send(b'{"is": "ready"}\n')
        self.host.be_suspended(1000)
        self.assertEqual((self.supervisor.slots[0].state, worker.signals), ("ready", []))

    def test_one_cannot(self) -> None:
        """At the start an error of one worker's configuration ends all, although another was ready before."""
        self.start((Server("api"), 2))
        first, second = self.host.workers
        first.be_ready()
        second.say("failed", problem="no such table", final=True)
        second.end(exited(1))
        self.host.pass_time(0)
        (error,) = self.owner.errors
        self.assertIn("no such table", str(error))

    def test_one_dies(self) -> None:
        """So does one that dies again and again; later its place is tried slowly."""
        self.start((Server("api"), 2))
        self.host.workers[0].be_ready()
        for _ in range(5):
            self.assertEqual(self.owner.errors, [])
            self.host.living[-1].end(exited(1))
            self.host.pass_time(10)
        self.assertEqual(len(self.owner.errors), 1)

    def test_no_forkserver_for_a_while(self) -> None:
        """Workers wait while the system starts no forkserver, and their restart budget is not used up."""
        self.start((Server("api"), 1))
        self.host.spawning = OSError(11, "Resource temporarily unavailable")
        self.host.forkservers[0].end()
        (worker,) = self.host.workers
        worker.let_go()
        self.host.pass_time(50)
        self.assertEqual((self.rows("state", "restarts"), self.owner.errors), ([("starting", 1)], []))
        self.host.spawning = None
        self.host.pass_time(30)
        self.host.workers[-1].be_ready()
        self.host.settle()
        self.assertEqual(self.rows("state"), [("ready",)])

    def test_no_forkserver_for_long(self) -> None:
        """A worker that is not forked within its start timeout is tried again, and is not logged as hanging."""
        self.run_all((Server("api"), 1))
        self.host.spawning = OSError(11, "Resource temporarily unavailable")
        self.host.forkservers[0].end()
        (worker,) = self.host.workers
        worker.let_go()
        with logged() as log:
            self.host.pass_time(70)
        self.assertNotIn("hangs", log.text)
        self.assertIn("not forked within worker_start_timeout (60 s); restarting it", log.text)
        self.assertEqual(self.rows("state", "pid"), [("starting", None)])

    def test_no_forkserver(self) -> None:
        """That the system starts no process is told to who starts."""
        self.host.spawning = OSError(11, "Resource temporarily unavailable")
        self.assertRaises(OSError, self.start, (Server("api"), 1))


class LogTests(SupervisorCase):
    """The file that workers log to."""

    def test_closed(self) -> None:
        """It is open as long as there are workers, and closed after that; what comes then finds none."""
        path = Path(self.mktemp()).absolute()
        self.supervisor = Supervisor(self.host, self.configuration, self.reread, str(path), self.owner)
        self.run_all((Server("api"), 1))
        self.assertEqual(len(self.opened(path)), 1)
        self.end()
        self.assertEqual(self.opened(path), [])
        self.supervisor.rotate_log()
        self.supervisor.check()
        self.assertEqual([*path.parent.glob(f"{path.name}.*")], [])

    def opened(self, path: Path) -> list[Path]:
        """Return this process's descriptors of a file."""
        return [each for each in Path("/proc/self/fd").iterdir() if each.exists() and each.samefile(path)]


class RowTests(SupervisorCase):
    """What operators see."""

    def test_row(self) -> None:
        """A row tells all there is to know, as JSON types."""
        self.run_all((Server("api"), 1))
        (row,) = self.supervisor.workers()
        since = row.pop("since")
        self.assertTrue(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", since), since)
        pid = self.host.workers[0].pid
        expected = {"number": 1, "server": "api", "pid": pid, "state": "ready"}
        self.assertEqual(row, {**expected, "restarts": 0, "memory": None, "trouble": None})

    def test_without_a_process(self) -> None:
        """A place without a process is a row, too, with its trouble."""
        self.host.answer = lambda worker: worker.fail_fork("no more processes")
        self.start((Server("api"), 1))
        self.assertEqual(
            self.rows("number", "pid", "state", "restarts", "trouble"),
            [(1, None, "backing off", 2, "it could not be forked: no more processes")],
        )

    def test_order(self) -> None:
        """They are in the order of their numbers, whichever server they are of."""
        self.run_all((Server("api"), 1), (Server("agent"), 1))
        self.supervisor.resize(2, "api")
        self.assertEqual(self.rows("number", "server"), [(1, "api"), (2, "agent"), (3, "api")])


class ResizeTests(SupervisorCase):
    """More workers, and less."""

    def test_only_server(self) -> None:
        """The only server needs no name."""
        self.run_all((Server("api"), 1))
        self.supervisor.resize(2, None)
        self.assertEqual(self.rows("number", "state"), [(1, "ready"), (2, "starting")])

    def test_by_name(self) -> None:
        """One of several servers is named."""
        self.run_all((Server("api"), 2), (Server("agent"), 2))
        self.supervisor.resize(1, "agent")
        self.assertEqual([worker.parameters["name"] for worker in self.host.living if worker.signals], ["agent"])

    def test_refused(self) -> None:
        """Numbers, and names, that cannot be had are refused, and the right ones named."""
        self.run_all((Server("api"), 2), (Server("agent"), 2))
        for count, server, error, text in (
            (2, None, ResizeError, "cannot run 2 workers: name the server; there are: api, agent"),
            (2, "web", NoSuchWorkerError, "there is no server 'web'; there are: api, agent"),
            (0, "api", ResizeError, f"cannot run 0 workers: give a number from 1 to {MAX_WORKERS}"),
            (MAX_WORKERS + 1, "api", ResizeError, "give a number from 1"),
        ):
            self.assertIn(text, str(self.assertRaises(error, self.supervisor.resize, count, server)))
        self.assertEqual(len(self.staying()), 4)

    def test_numbers(self) -> None:
        """A number of workers is a whole one within bounds."""
        check_workers(1)
        check_workers(MAX_WORKERS)
        for wrong in (0, -1, MAX_WORKERS + 1, 1.0, True, "2", None):
            self.assertRaises(ResizeError, check_workers, wrong)

    def test_by_signal(self) -> None:
        """All servers get a worker more or less; each keeps one."""
        self.run_all((Server("api"), 1), (Server("agent"), 2))
        self.supervisor.resize_all(+1)
        self.host.ready_all()
        self.host.pass_time(10)
        self.assertEqual((len(self.staying("api")), len(self.staying("agent"))), (2, 3))
        self.supervisor.resize_all(-1)
        with logged() as log:
            self.supervisor.resize_all(-1)
        self.assertEqual((len(self.staying("api")), len(self.staying("agent"))), (1, 1))
        self.assertIn("api keeps 1 worker", log.text)

    def test_while_it_ends(self) -> None:
        """While it ends, there are no more workers, and who signals for that breaks nothing."""
        self.run_all((Server("api"), 1))
        self.supervisor.drain_all()
        error = self.assertRaises(ResizeError, self.supervisor.resize, 2, None)
        self.assertIn("the supervisor is shutting down", str(error))
        self.supervisor.resize_all(+1)
        self.assertEqual(len(self.host.workers), 1)


class GiveUpCase(SupervisorCase):
    """Workers that die."""

    def die(self, times: int) -> None:
        """Let the newest worker die so often."""
        for _ in range(times):
            while not self.host.living:
                self.host.pass_time(1)
            self.host.living[-1].end(exited(1))
            self.host.pass_time(5)


class AutoTests(GiveUpCase):
    """worker_crash_loop = "auto"."""

    def test_configuration(self) -> None:
        """A server that nobody can run ends all, with its reason, at the first worker that says so."""
        self.start((Server("api"), 1))
        (worker,) = self.host.living
        worker.say("failed", problem="api_manager: no such module", final=True)
        worker.end(exited(1))
        self.assertEqual(self.owner.errors, [])  # in its own turn
        self.host.pass_time(0)
        (error,) = self.owner.errors
        self.assertEqual(
            str(error),
            "the workers of api cannot run: api_manager: no such module; fix that and start again",
        )
        self.assertEqual(self.rows("state"), [("failed",)])

    def test_configuration_of_one(self) -> None:
        """When others run, the one that cannot is not tried again, and they go on."""
        self.run_all((Server("api"), 2))
        second = self.host.living[1]
        second.say("failed", problem="no such device", final=True)
        second.end(exited(1))
        self.host.pass_time(100)
        self.assertEqual(self.owner.errors, [])
        self.assertEqual(self.rows("state", "trouble"), [("ready", None), ("failed", "no such device")])

    def test_at_first(self) -> None:
        """At first, a budget that is used up ends all."""
        self.start((Server("api"), 1))
        self.die(5)
        (error,) = self.owner.errors
        self.assertIn("worker 1 exited 5 times within 60 s, at last: it exited with status 1", str(error))
        self.assertEqual(self.rows("state"), [("failed",)])

    def test_later(self) -> None:
        """When a worker of the server has been ready, it is tried on."""
        self.run_all((Server("api"), 1))
        self.die(6)
        self.host.pass_time(100)
        self.assertEqual((self.owner.errors, self.rows("state")), ([], [("starting",)]))

    def test_each_server_proves_itself(self) -> None:
        """That another server runs proves nothing."""
        self.start((Server("api"), 1), (Server("agent"), 1))
        self.host.living[0].be_ready()
        self.die(5)
        self.assertEqual([error.subject for error in self.owner.errors], ["agent"])


class ExitTests(GiveUpCase):
    """worker_crash_loop = "exit"."""

    settings: ClassVar[dict[str, Any]] = {
        "worker_crash_loop": "exit",
        "worker_restart_budget": 2,
        "worker_restart_window": 30.0,
    }

    def test_at_first(self) -> None:
        """At first, a budget that is used up ends all."""
        self.start((Server("api"), 1))
        self.die(2)
        self.assertIn("worker 1 exited 2 times within 30 s", str(self.owner.errors[0]))

    def test_later(self) -> None:
        """Later, too, a budget that is used up ends all."""
        self.run_all((Server("api"), 1))
        self.host.living[0].end(SIGKILL)
        self.host.pass_time(5)
        self.assertEqual(self.owner.errors, [])
        self.die(2)
        self.assertEqual(len(self.owner.errors), 1)


class RetryTests(GiveUpCase):
    """worker_crash_loop = "retry"."""

    settings: ClassVar[dict[str, Any]] = {"worker_crash_loop": "retry", "worker_restart_budget": 2}

    def test_at_first(self) -> None:
        """At first, too, it is tried on, slowly."""
        self.start((Server("api"), 1))
        self.die(4)
        self.host.pass_time(100)
        self.assertEqual((self.owner.errors, self.rows("state")), ([], [("starting",)]))

    def test_configuration(self) -> None:
        """What is wrong with the configuration ends all nevertheless: it does not mend itself."""
        self.start((Server("api"), 1))
        (worker,) = self.host.living
        worker.say("failed", problem="api_manager: no such module", final=True)
        worker.end(exited(1))
        self.host.pass_time(0)
        self.assertEqual(len(self.owner.errors), 1)


class WatchTests(SupervisorCase):
    """Workers that hang."""

    settings: ClassVar[dict[str, Any]] = {"worker_watchdog": 10.0}

    def test_check(self) -> None:
        """Each worker is looked at."""
        self.run_all((Server("api"), 1), (Server("agent"), 1))
        for worker in self.host.living:
            worker.diagnostics.recorder.beat(time.monotonic())
        self.host.living[1].diagnostics.recorder.beat(time.monotonic() - 11)
        self.supervisor.check()
        self.assertEqual(self.rows("state"), [("ready",), ("hung",)])


class DrainTests(SupervisorCase):
    """One, or all."""

    def test_all(self) -> None:
        """All workers are drained; then the forkserver goes and the sockets are closed."""
        sockets = {"web": [socket.socket()], "api": []}
        self.run_all((Listening("web"), 2), (Server("api"), 1), sockets=sockets)
        drained = self.supervisor.drain_all()
        self.assertEqual([worker.signals for worker in self.host.living], [[SIGTERM]] * 3)
        for worker in list(self.host.living):
            self.assertNoResult(drained)
            self.assertTrue(self.host.forkservers[0].alive)
            worker.end()
        self.host.pass_time(0)
        self.successResultOf(drained)
        self.assertFalse(self.host.forkservers[0].alive)
        self.assertEqual(sockets["web"][0].fileno(), -1)
        self.assertEqual((self.supervisor.workers(), self.supervisor.slots), ([], []))

    def test_while_it_starts(self) -> None:
        """Workers that are not born yet keep nobody."""
        self.host.answer = lambda _: None
        started = self.start((Server("api"), 3))
        drained = self.supervisor.drain_all()
        self.host.pass_time(0)
        self.successResultOf(drained)
        self.successResultOf(started)

    def test_interrupt(self) -> None:
        """When interrupted, workers have two seconds."""
        self.run_all((Server("api"), 2))
        drained = self.supervisor.drain_all()
        self.supervisor.interrupt()
        self.assertEqual([worker.signals for worker in self.host.workers], [[SIGTERM]] * 2)
        self.host.pass_time(2)
        self.successResultOf(drained)

    def test_exit_unseen(self) -> None:
        """A killed worker whose exit nobody reports, and whose child holds its pipe open, is not waited for."""
        self.run_all((Server("api"), 1))
        (worker,) = self.host.workers
        self.host.forkservers[0].end()
        self.host.pass_time(0)
        drained = self.supervisor.drain_all()
        self.supervisor.interrupt()
        self.patch(worker, "let_go", lambda: None)
        self.host.pass_time(10)
        self.successResultOf(drained)

    def test_forkserver_stays(self) -> None:
        """A forkserver that does not end within two seconds is killed."""
        self.run_all((Server("api"), 1))
        (server,) = self.host.forkservers
        worker = self.host.living[0]
        drained = self.supervisor.drain_all()
        worker.pipe.close()
        server.stopped = True
        self.host.pass_time(1)
        self.assertNoResult(drained)
        self.host.pass_time(2)
        self.successResultOf(drained)
        self.assertFalse(server.alive)

    def test_nothing_open(self) -> None:
        """Nothing is left open, and nothing is left to do."""
        before = descriptors()
        self.run_all((Server("api"), 2))
        reload = self.reload()
        self.pass_reload(reload)
        self.end_told()
        self.end()
        self.host.tear_down()
        self.assertEqual((descriptors(), self.host.calls), (before, []))

    def test_one(self) -> None:
        """One is replaced, and it is over when it has ended."""
        self.run_all((Server("api"), 2))
        old = self.host.living[0]
        drained = self.supervisor.drain(1)
        self.host.pass_time(0)
        self.assertEqual(self.rows("number", "state"), [(1, "ready"), (1, "starting"), (2, "ready")])
        self.host.living[-1].be_ready()
        self.assertNoResult(drained)
        old.end()
        self.successResultOf(drained)
        self.assertEqual(self.rows("number", "state"), [(1, "ready"), (2, "ready")])

    def test_one_in_vain(self) -> None:
        """If the one that comes for it cannot run, it stays, and nobody gives up."""
        self.run_all((Server("api"), 1))
        drained = self.supervisor.drain(1)
        self.host.pass_time(0)
        new = self.host.living[-1]
        new.say("failed", problem="no such table", final=True)
        new.end(exited(1))
        self.host.pass_time(100)
        problem = str(self.failureResultOf(drained, DrainError).value)
        new = "the new worker 1 of api did not become ready: no such table"
        self.assertEqual(problem, f"cannot drain worker 1: it keeps running: {new}")
        self.assertEqual((self.rows("state"), self.owner.errors), ([("ready",)], []))

    def test_unknown(self) -> None:
        """A number that nobody has is refused, and those that there are named."""
        self.run_all((Server("api"), 2))
        error = self.assertRaises(NoSuchWorkerError, self.supervisor.drain, 7)
        self.assertEqual(str(error), "there is no worker 7; there are: 1, 2")
        self.supervisor.drain_all()
        error = self.assertRaises(DrainError, self.supervisor.drain, 1)
        self.assertIn("the supervisor is shutting down", str(error))

    def test_all_by_an_operator(self) -> None:
        """To drain all is its owner's business, in a turn of its own."""
        self.run_all((Server("api"), 1))
        self.successResultOf(self.supervisor.drain(None))
        self.assertEqual(self.owner.drains, 0)
        self.host.pass_time(0)
        self.assertEqual(self.owner.drains, 1)

    def test_restart_by_an_operator(self) -> None:
        """So is a restart."""
        self.run_all((Server("api"), 1))
        self.supervisor.restart()
        self.assertEqual(self.owner.restarts, 0)
        self.host.pass_time(0)
        self.assertEqual(self.owner.restarts, 1)


class DumpTests(SupervisorCase):
    """What every worker does."""

    def dump(self) -> Deferred[Any]:
        dumped = self.supervisor.dump()
        self.host.settle()
        return dumped

    def answer(self, worker: StandInWorker) -> None:
        (question,) = worker.hear()
        worker.say("answer", key=question["query"], answer=[{"method": "greet", "request_id": "req-1", "seconds": 1.5}])

    def test_row(self) -> None:
        """A row has the stacks, the calls, and the events."""
        self.run_all((Server("api"), 1))
        (worker,) = self.host.workers
        worker.diagnostics.recorder.note("call", "greet began")
        dumped = self.dump()
        self.answer(worker)
        self.assertEqual(worker.signals, [DUMP])
        os.write(worker.diagnostics.descriptor, b"Thread 1\n")
        self.host.pass_time(0.1, 0.02)
        (row,) = self.successResultOf(dumped)
        (event,) = row.pop("events")
        self.assertEqual((event["kind"], event["text"]), ("call", "greet began"))
        self.assertTrue(event["time"].endswith("+00:00"))
        expected = {"number": 1, "server": "api", "pid": worker.pid, "state": "ready", "stacks": "Thread 1\n"}
        self.assertEqual(row, {**expected, "calls": [{"method": "greet", "request_id": "req-1", "seconds": 1.5}]})

    def test_without_a_process(self) -> None:
        """A place without a process is a row, too."""
        self.host.answer = lambda worker: worker.fail_fork("no more processes")
        self.start((Server("api"), 1))
        (row,) = self.successResultOf(self.dump())
        self.assertEqual((row["stacks"], row["calls"], row["events"]), ("", None, []))

    def test_one_ends(self) -> None:
        """That a worker ends, or hangs, or is not born yet, keeps nobody from the others' rows."""
        self.run_all((Server("api"), 3))
        first, second, _ = self.host.living
        self.host.answer = lambda _: None
        self.supervisor.resize(4, None)
        dumped = self.dump()
        self.answer(first)
        self.answer(second)
        os.write(first.diagnostics.descriptor, b"Thread 1\n")
        second.end(SIGKILL)
        self.host.pass_time(3, 0.02)
        rows = self.successResultOf(dumped)
        self.assertEqual([row["stacks"] for row in rows], ["Thread 1\n", "", "", ""])
        self.assertEqual([row["calls"] is None for row in rows], [False, False, True, True])


class SocketTests(SupervisorCase):
    """What is opened for all workers."""

    def test_taken(self) -> None:
        """An address that cannot be had leaves no socket open, but those that there were."""
        before = descriptors()
        held = open_sockets([ServerWrapper(Listening("web"), 1)], {})
        wrappers = [
            ServerWrapper(Listening("web"), 1),
            ServerWrapper(Listening("api", "there"), 1),
            ServerWrapper(Listening("other", "taken"), 1),
        ]
        self.assertRaises(ListenError, open_sockets, wrappers, held)
        self.assertEqual(len(descriptors() - before), 1)
        held["web"][0].close()
