"""Tests for novasvc.workers.supervisor: reloads, on a host that stands in."""

import time
from signal import SIGKILL, SIGTERM
from typing import Any, ClassVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from novasvc.errors import ConfigurationError
from novasvc.workers.errors import NoSuchWorkerError, ReloadError
from novasvc.workers.servers import ServerWrapper, open_sockets
from novasvc.workers.supervisor import log_failed_reload
from tests.support.supervision_rig import descriptors, exited, logged
from tests.support.supervisor_rig import Listening, Server, SupervisorCase, Unpicklable, configuration


class ReloadTests(SupervisorCase):
    """A new configuration."""

    settings: ClassVar[dict[str, Any]] = {"worker_watchdog": 10.0}

    def forkservers(self) -> list[bool]:
        """Return which of the forkservers are there."""
        return [server.alive for server in self.host.forkservers]

    def test_rolling(self) -> None:
        """All workers of all servers are replaced, one ready before the next is drained."""
        self.run_all((Server("api"), 2), (Server("agent"), 2))
        reload = self.reload()
        ready = []
        while not reload.called:
            self.host.pass_time(1)
            ready.append(len([slot for slot in self.supervisor.slots if slot.state == "ready"]))
            self.host.ready_all()
        self.assertEqual((set(ready), len(self.host.workers), len(self.staying())), ({4}, 8, 4))
        self.assertEqual(self.successResultOf(reload), [])
        self.assertEqual(self.owner.is_reloading, [True, False])

    def test_changes(self) -> None:
        """What has changed is told and logged, and is what the new workers and the supervisor go by."""
        self.run_all((Server("api"), 1))
        reload = self.reload((configuration(worker_watchdog=20.0, log_level="debug"), None))
        with logged() as log:
            self.pass_reload(reload)
        rows = self.successResultOf(reload)
        self.assertIn({"setting": "worker_watchdog", "before": "10", "after": "20"}, rows)
        self.assertEqual(len(rows), 2)
        self.assertIn("reloaded: all workers were replaced", log.text)
        (worker,) = self.staying()
        self.assertEqual(worker.parameters["log"]["level"], "debug")
        worker.diagnostics.recorder.beat(time.monotonic() - 15)
        self.supervisor.check()
        self.assertEqual(self.rows("state")[0], ("ready",))

    def test_begun(self) -> None:
        """A reload that is begun is not waited for; the report tells when it has ended."""
        self.run_all((Server("api"), 1))
        self.assertEqual(self.supervisor.reload_report(), {"ended": 0, "under_way": False, "problem": None})
        self.supervisor.begin_reload()
        self.assertEqual(self.supervisor.reload_report(), {"ended": 0, "under_way": True, "problem": None})
        for _ in range(5):
            self.host.pass_time(1)
            self.host.ready_all()
        self.assertEqual(self.supervisor.reload_report(), {"ended": 1, "under_way": False, "problem": None})

    def test_begun_and_refused(self) -> None:
        """What can be refused at once is; the report has the problem, until a reload succeeds."""
        self.run_all((Server("api"), 1))
        self.next = ConfigurationError(["workers: no number"])
        error = self.assertRaises(ReloadError, self.supervisor.begin_reload)
        self.assertIn("workers: no number", str(error))
        report = self.supervisor.reload_report()
        self.assertEqual((report["ended"], report["under_way"]), (1, False))
        self.assertIn("workers: no number", report["problem"])
        self.next = (self.configuration, None)
        self.supervisor.begin_reload()
        self.assertRaises(ReloadError, self.supervisor.begin_reload)  # another one is under way
        for _ in range(5):
            self.host.pass_time(1)
            self.host.ready_all()
        self.assertEqual(self.supervisor.reload_report(), {"ended": 2, "under_way": False, "problem": None})

    def test_unexpected(self) -> None:
        """An error that nobody raises on purpose, such as one of a user's rebuild(), is logged with its traceback."""
        self.run_all((Server("api"), 1))
        for error, logged_as in ((KeyError("shop"), "reloading the workers failed"), (ReloadError("bad"), "bad")):
            with logged() as log:
                log_failed_reload(Failure(error))
            self.assertIn(logged_as, log.text)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.next = ZeroDivisionError()
        self.assertRaises(ZeroDivisionError, self.supervisor.begin_reload)

    def test_warnings(self) -> None:
        """Warnings about the new configuration are logged, those that were logged before are not repeated."""
        self.supervisor.configuration = evolve(self.configuration, warnings=("old.toml is old",))
        self.run_all((Server("api"), 1))
        with logged() as log:
            reload = self.reload((evolve(self.configuration, warnings=("old.toml is old", "new.toml is new")), None))
            self.pass_reload(reload)
        self.successResultOf(reload)
        self.assertIn("new.toml is new", log.text)
        self.assertNotIn("old.toml", log.text)

    def test_forkserver(self) -> None:
        """The new workers come from a forkserver of their own; the old one goes with the last of its workers."""
        self.run_all((Server("api"), 2))
        self.pass_reload(self.reload())
        self.assertEqual(self.forkservers(), [True, True])
        self.host.living[0].end()
        self.assertEqual(self.forkservers(), [True, True])
        self.end_told()
        self.assertEqual(self.forkservers(), [False, True])

    def test_broken(self) -> None:
        """A configuration that cannot be read is refused, with its reason, and nothing changes."""
        self.run_all((Server("api"), 1))
        for error, problem in (
            (ConfigurationError(["workers: no number"]), "workers: no number"),
            (SystemExit(1), "reload failed, previous configuration kept: it raised SystemExit(1)"),
        ):
            reload = self.reload(error)
            self.assertIn(problem, str(self.failureResultOf(reload, ReloadError).value))
        self.assertEqual((len(self.host.workers), self.forkservers()), (1, [True]))
        self.assertEqual(self.owner.is_reloading, [True, False] * 2)

    def test_a_mistake(self) -> None:
        """An error that nobody expected is passed on, and the next reload is not refused for it."""
        self.run_all((Server("api"), 1))
        self.failureResultOf(self.reload(ZeroDivisionError("a mistake")), ZeroDivisionError)
        reload = self.reload((self.configuration, None))
        self.pass_reload(reload)
        self.successResultOf(reload)

    def test_no_workers(self) -> None:
        """A configuration without workers is refused: that takes another process."""
        self.run_all((Server("api"), 1))
        reload = self.reload((self.configuration, []))
        self.assertIn("asks for no workers", str(self.failureResultOf(reload, ReloadError).value))

    def test_address_taken(self) -> None:
        """A server whose address cannot be had is refused; what was opened before it is closed."""
        self.run_all((Server("api"), 1))
        before = descriptors()
        servers = [ServerWrapper(Listening("web"), 1), ServerWrapper(Listening("other", "taken"), 1)]
        reload = self.reload((self.configuration, servers))
        self.assertIn("another process listens", str(self.failureResultOf(reload, ReloadError).value))
        self.assertEqual((descriptors(), len(self.staying())), (before, 1))

    def test_cannot_be_pickled(self) -> None:
        """A server that cannot be brought into a worker is refused; its sockets are closed."""
        self.run_all((Server("api"), 1))
        before = descriptors()
        servers = [ServerWrapper(Listening("web"), 1), ServerWrapper(Unpicklable("api"), 1)]
        reload = self.reload((self.configuration, servers))
        self.assertIn("api cannot run in a worker", str(self.failureResultOf(reload, ReloadError).value))
        self.assertEqual((descriptors(), len(self.staying()), self.forkservers()), (before, 1, [True]))

    def test_no_forkserver(self) -> None:
        """If the system starts no process, what runs goes on."""
        self.run_all((Server("api"), 1))
        before = descriptors()
        self.host.spawning = OSError(11, "Resource temporarily unavailable")
        reload = self.reload()
        self.assertIn("Resource temporarily unavailable", str(self.failureResultOf(reload, ReloadError).value))
        self.host.pass_time(0)
        self.assertEqual((descriptors(), len(self.staying())), (before, 1))
        self.host.spawning = None
        reload = self.reload()
        self.pass_reload(reload)
        self.successResultOf(reload)

    def test_twice(self) -> None:
        """While one is under way, another is refused."""
        self.run_all((Server("api"), 1))
        first, second = self.reload(), self.reload()
        self.assertIn("another reload is under way", str(self.failureResultOf(second, ReloadError).value))
        self.pass_reload(first)
        self.successResultOf(first)
        self.assertEqual(self.owner.is_reloading, [True, False])

    def test_again_and_again(self) -> None:
        """Forkservers and descriptors do not pile up."""
        self.run_all((Server("api"), 2))
        counts = set()
        for _ in range(5):
            self.pass_reload(self.reload())
            self.end_told()
            self.host.pass_time(10)
            counts.add(len(descriptors()))
        self.assertEqual((self.forkservers(), len(counts)), ([False] * 5 + [True], 1))

    def test_before_the_old_ones_end(self) -> None:
        """A second reload may come while workers of before the first one still finish their work."""
        self.run_all((Server("api"), 2))
        self.pass_reload(self.reload())
        self.host.pass_time(10)
        reload = self.reload()
        self.pass_reload(reload)
        self.successResultOf(reload)
        self.assertEqual((self.forkservers(), len(self.host.living)), ([True] * 3, 6))
        self.end_told()
        self.assertEqual(self.forkservers(), [False, False, True])

    def test_number_from_the_configuration(self) -> None:
        """The new configuration says how many workers each server has."""
        self.run_all((Server("api"), 2), (Server("agent"), 1))
        servers = [ServerWrapper(Server("api"), 1), ServerWrapper(Server("agent"), 2)]
        self.pass_reload(self.reload((self.configuration, servers)))
        self.host.pass_time(10)
        self.host.ready_all()
        self.end_told()
        self.assertEqual(self.rows("server", "state"), [("api", "ready"), ("agent", "ready"), ("agent", "ready")])
        self.assertEqual(len(servers[1].children), 2)

    def test_number_of_the_operator_stays(self) -> None:
        """An operator's number outlives configurations that say what was said before, and no other."""
        self.run_all((Server("api"), 3))
        self.supervisor.resize(1, None)
        self.end_told()
        for received, expected in ((3, 1), (3, 1), (2, 2)):
            self.host.pass_time(10)
            self.pass_reload(self.reload((self.configuration, [ServerWrapper(Server("api"), received)])))
            self.host.pass_time(10)
            self.host.ready_all()
            self.end_told()
            self.assertEqual(self.rows("state"), [("ready",)] * expected)

    def test_number_of_the_operator(self) -> None:
        """Where the servers stay what they are, the operator's number stays, even one from during the reload."""
        self.run_all((Server("api"), 2))
        self.supervisor.resize(1, None)
        self.end_told()
        self.pass_reload(self.reload())
        self.end_told()
        self.assertEqual(self.rows("state"), [("ready",)])
        self.host.pass_time(10)
        reload = self.reload()
        self.supervisor.resize_all(+1)
        self.pass_reload(reload)
        self.host.pass_time(10)
        self.host.ready_all()
        self.end_told()
        self.assertEqual((self.rows("state"), self.wrappers[0].workers), ([("ready",)] * 2, 2))

    def test_another_server(self) -> None:
        """A server that is new is started, and one that is not there any more is drained."""
        self.run_all((Server("api"), 1), (Server("agent"), 1))
        reload = self.reload((self.configuration, [ServerWrapper(Server("api"), 1), ServerWrapper(Server("web"), 2)]))
        self.pass_reload(reload)
        self.assertEqual({worker.parameters["name"] for worker in self.staying()}, {"api", "web"})
        self.supervisor.resize_all(+1)
        self.host.pass_time(5)
        self.assertEqual([worker.parameters["name"] for worker in self.staying()].count("agent"), 0)
        self.assertRaises(NoSuchWorkerError, self.supervisor.resize, 2, "agent")
        self.assertIn(("agent", "draining"), self.rows("server", "state"))
        self.end_told()
        self.assertNotIn("agent", {name for (name,) in self.rows("server")})
        self.assertEqual(self.forkservers(), [False, True])

    def test_back_again(self) -> None:
        """A server that comes back while its workers still leave, has workers of its own."""
        self.run_all((Server("api"), 1), (Server("agent"), 1))
        self.pass_reload(self.reload((self.configuration, [ServerWrapper(Server("api"), 1)])))
        self.host.pass_time(10)
        servers = [ServerWrapper(Server("api"), 1), ServerWrapper(Server("agent"), 1)]
        reload = self.reload((self.configuration, servers))
        self.pass_reload(reload)
        self.end_told()
        self.assertEqual(self.rows("server", "state"), [("api", "ready"), ("agent", "ready")])
        self.assertEqual(len(self.supervisor.slots), 2)

    def test_sockets_stay(self) -> None:
        """A socket of an address that stays, stays open; others are closed, and opened, in their time."""
        wrappers = [ServerWrapper(Listening("web"), 1), ServerWrapper(Listening("api", "there"), 1)]
        sockets = open_sockets(wrappers, {})
        self.run_all((Listening("web"), 1), (Listening("api", "there"), 1), sockets=sockets)
        (web,), (api,) = sockets.values()
        servers = [ServerWrapper(Listening("web"), 1), ServerWrapper(Listening("api", "elsewhere"), 1)]
        reload = self.reload((self.configuration, servers))
        self.assertNotEqual(api.fileno(), -1)
        self.pass_reload(reload)
        self.assertEqual((web.fileno() == -1, api.fileno() == -1), (False, True))
        self.assertEqual([len(worker.sockets) for worker in self.staying()], [1, 1])


class CrashingStartTests(SupervisorCase):
    """A start that is tried for ever."""

    settings: ClassVar[dict[str, Any]] = {"worker_crash_loop": "retry", "worker_restart_budget": 2}

    def test_mended(self) -> None:
        """What has not come up is replaced by what the configuration says now, and the start is over then."""
        started = self.start((Server("api"), 1))
        self.failureResultOf(self.reload(), ReloadError)  # it may come up
        for _ in range(2):
            self.host.living[-1].end(exited(1))
            self.host.pass_time(1)
        self.assertEqual(self.rows("state"), [("backing off",)])
        reload = self.reload()
        self.pass_reload(reload)
        self.successResultOf(reload)
        self.successResultOf(started)
        self.assertEqual(self.rows("state"), [("ready",)])


class FailingReloadTests(SupervisorCase):
    """A new configuration with which workers do not become ready."""

    def fail_newest(self, problem: str = "no such table", *, final: bool = True) -> None:
        self.host.pass_time(5)
        worker = self.host.living[-1]
        worker.say("failed", problem=problem, final=final)
        worker.end(exited(1))

    def origins(self) -> list[int]:
        """Return from which forkserver the workers come that stay, by their number."""
        staying = sorted(self.staying(), key=lambda worker: worker.number)
        return [self.host.forkservers.index(worker.server) for worker in staying]

    def forkservers(self) -> list[bool]:
        return [server.alive for server in self.host.forkservers]

    def pass_back(self, reload: Deferred[Any]) -> str:
        self.pass_reload(reload)
        self.end_told()
        self.host.pass_time(5)
        return str(self.failureResultOf(reload, ReloadError).value)

    def test_first(self) -> None:
        """If the first one is not ready, all stay, and the new forkserver goes."""
        self.run_all((Server("api"), 2))
        reload = self.reload((configuration(log_level="debug"), None))
        self.fail_newest()
        self.assertEqual(
            self.pass_back(reload),
            "reload failed, previous configuration kept: the new worker 1 of api did not become ready: no such table",
        )
        self.assertEqual((self.origins(), self.forkservers()), ([0, 0], [True, False]))
        self.assertEqual((self.owner.errors, self.owner.is_reloading), ([], [True, False]))

    def test_later(self) -> None:
        """Those that were replaced are put back, of all servers, and what comes later is of the old kind."""
        self.run_all((Server("api"), 2), (Server("agent"), 2))
        reload = self.reload((configuration(log_level="debug"), None))
        for _ in range(3):
            self.host.pass_time(5)
            self.host.living[-1].be_ready()
        self.fail_newest(final=False)
        self.pass_back(reload)
        self.assertEqual((self.origins(), self.forkservers()), ([0] * 4, [True, False]))
        self.supervisor.resize_all(+1)
        self.host.pass_time(5)
        self.assertEqual(self.origins(), [0] * 6)
        self.assertEqual({worker.parameters["log"]["level"] for worker in self.staying()}, {"info"})

    def test_new_server(self) -> None:
        """A new server that cannot run is dropped, those that were replaced are put back, and nobody gives up."""
        self.run_all((Server("api"), 2))
        servers = [ServerWrapper(Server("api"), 5), ServerWrapper(Server("web"), 2)]
        reload = self.reload((self.configuration, servers))
        for _ in range(2):
            self.host.pass_time(5)
            self.host.living[-1].be_ready()
        self.fail_newest("web_manager: no such module")
        self.assertIn("the new worker 4 of web did not become ready: web_manager", self.pass_back(reload))
        self.assertEqual((self.origins(), self.forkservers()), ([0, 0], [True, False]))
        self.assertEqual((self.rows("server"), self.owner.errors), ([("api",)] * 2, []))

    def test_dropped_server_stays(self) -> None:
        """A server that the new configuration does not have, stays if that fails."""
        self.run_all((Server("api"), 1), (Server("agent"), 1))
        reload = self.reload((self.configuration, [ServerWrapper(Server("api"), 1)]))
        self.fail_newest()
        self.pass_back(reload)
        self.assertEqual(self.rows("server", "state"), [("api", "ready"), ("agent", "ready")])
        self.supervisor.resize(2, "agent")

    def test_not_even_back(self) -> None:
        """If one cannot be put back, those of the new kind go on, with their forkserver, for as long as they live."""
        self.run_all((Server("api"), 2), (Server("agent"), 1))
        reload = self.reload((configuration(log_level="debug"), None))
        for _ in range(2):
            self.host.pass_time(5)
            self.host.living[-1].be_ready()
        self.fail_newest()  # of agent
        with logged() as log:
            self.fail_newest("the table has changed")  # the first of api, on its way back
        self.assertIn("rolling back the workers of api failed", log.text)
        self.assertIn("did not become ready: no such table", self.pass_back(reload))
        self.host.pass_time(60)
        self.assertEqual((self.origins(), self.forkservers()), ([1, 1, 0], [True, True]))
        self.staying("api")[0].end(SIGKILL)
        self.host.pass_time(5)
        self.assertEqual(self.origins(), [1, 1, 0])
        reload = self.reload((self.configuration, None))
        self.pass_reload(reload)
        self.end_told()
        self.host.pass_time(5)
        self.assertEqual((self.origins(), self.forkservers()), ([2, 2, 2], [False, False, True]))

    def test_settings_stay(self) -> None:
        """What was valid before is valid again."""
        self.run_all((Server("api"), 1))
        reload = self.reload((configuration(log_level="debug"), None))
        self.fail_newest()
        self.pass_back(reload)
        reload = self.reload((self.configuration, None))
        self.pass_reload(reload)
        self.assertEqual(self.successResultOf(reload), [])

    def test_sockets(self) -> None:
        """New sockets are closed, those that there were are not."""
        before = descriptors()
        sockets = open_sockets([ServerWrapper(Listening("web"), 1)], {})
        self.run_all((Listening("web"), 1), sockets=sockets)
        reload = self.reload((self.configuration, [ServerWrapper(Listening("web", "elsewhere"), 1)]))
        self.fail_newest()
        self.pass_back(reload)
        self.assertNotEqual(sockets["web"][0].fileno(), -1)
        self.end()
        self.host.tear_down()
        self.assertEqual(descriptors(), before)


class EndAmidReloadTests(SupervisorCase):
    """TERM in the midst of a reload."""

    settings: ClassVar[dict[str, Any]] = {"graceful_shutdown_timeout": 40.0}

    def test_refused(self) -> None:
        """When it ends, no reload begins."""
        self.run_all((Server("api"), 1))
        self.supervisor.drain_all()
        self.assertIn("the supervisor is shutting down", str(self.failureResultOf(self.reload(), ReloadError).value))
        self.assertEqual(self.owner.is_reloading, [])

    def test_ends(self) -> None:
        """The reload is given up, and all workers are drained, old and new, with all the time they have."""
        self.run_all((Server("api"), 2), (Server("agent"), 1))
        reload = self.reload((configuration(log_level="debug"), None))
        self.host.pass_time(5)
        self.host.living[-1].be_ready()
        self.host.pass_time(5)
        drained = self.supervisor.drain_all()
        self.assertIn("the supervisor is shutting down", str(self.failureResultOf(reload, ReloadError).value))
        self.assertEqual([worker.signals for worker in self.host.living], [[SIGTERM]] * 5)
        self.assertEqual(self.owner.is_reloading, [True])
        # Those that leave first take no forkserver along that others come from.
        *gone, last = sorted(self.host.living, key=lambda worker: worker is self.host.workers[3])
        for worker in gone:
            worker.end()
        self.host.pass_time(20)
        self.assertEqual((last.alive, self.host.forkservers[1].alive), (True, True))
        last.end()
        self.host.pass_time(0)
        self.successResultOf(drained)
        self.assertEqual([server.alive for server in self.host.forkservers], [False, False])
        self.assertEqual(self.host.calls, [])

    def test_new_server(self) -> None:
        """A new server that is not ready yet is drained as well."""
        self.run_all((Server("api"), 1))
        servers = [ServerWrapper(Server("web"), 2), ServerWrapper(Server("api"), 1)]
        reload = self.reload((self.configuration, servers))
        self.host.pass_time(5)
        drained = self.supervisor.drain_all()
        self.failureResultOf(reload, ReloadError)
        self.assertEqual([worker.signals for worker in self.host.living], [[SIGTERM]] * 3)
        self.end_told()
        self.successResultOf(drained)
        self.assertEqual(self.host.calls, [])

    def test_dropped_server(self) -> None:
        """The workers of a server that was dropped before are waited for, and interrupted."""
        self.run_all((Server("api"), 1), (Server("agent"), 1))
        self.pass_reload(self.reload((self.configuration, [ServerWrapper(Server("api"), 1)])))
        self.host.pass_time(5)
        drained = self.supervisor.drain_all()
        for worker in list(self.host.living):
            if worker.parameters["name"] == "api":
                worker.end()
        self.host.pass_time(0)
        self.assertNoResult(drained)
        self.supervisor.interrupt()
        self.host.pass_time(2)
        self.successResultOf(drained)
