"""Tests for plain scripts with serve() and wait(), as real processes with real signals."""

import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import Process, program

RUNNING = "is running"

MANAGERS = '''
import time
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from novasvc import Manager, periodic_task, rpc
from novasvc.node.process_control import process_control

class Working(Manager):
    """Casts itself some work, which takes as long as the script says."""
    seconds = 1.0
    @periodic_task(spacing=3600, run_immediately=True)
    async def cast(self, context):
        await self.attachments.rpc.prepare(topic=self.topic).cast(context, "work")
    topic = "worker"
    @rpc.expose
    async def work(self, context):
        print("at work", flush=True)
        try:
            await deferLater(reactor, self.seconds)
            print("work is done", flush=True)
        finally:
            print("work has ended", flush=True)

class Long(Working):
    seconds = 3600.0

class Busy(Working):
    """Keeps its reactor busy."""
    @rpc.expose
    def work(self, context):
        print("at work", flush=True)
        while True:
            time.sleep(0.1)

class Threaded(Working):
    """Keeps one of the reactor's own threads, which waits for them when it ends."""
    @rpc.expose
    def work(self, context):
        print("at work", flush=True)
        return deferToThread(time.sleep, 3600)

class Failing(Manager):
    def init_host(self):
        raise LookupError("no such hypervisor")

class Again(Manager):
    """Restarts its process once, which a thread of the reactor then keeps from stopping."""
    def post_start_hook(self):
        if Path("again").exists():
            print("the program runs again", flush=True)
        else:
            Path("again").touch()
            reactor.callInThread(time.sleep, 3600)
            reactor.callLater(0, process_control.get(reactor).restart)
'''

SLOWLY = """
from twisted.application.service import Application, IServiceCollection, MultiService, Service
from twisted.internet import reactor, task
from novasvc.service import ServiceLauncher
from novasvc.run.plugin import makeService

class Slow(Service):
    def startService(self):
        reactor.callWhenRunning(print, "all is up", flush=True)
    def stopService(self):
        return task.deferLater(reactor, 2.5, lambda: print("the other has stopped well", flush=True))

application = Application("app")
"""

SCRIPT = """
from novasvc.service import Service, serve, wait

if __name__ == "__main__":
    serve(Service.create(host="h1", binary="nova-worker", topic="worker", manager="managers.{manager}"))
    wait()
"""


class ScriptTestCase(TestCase):
    """A test with a script in a directory of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "managers.py").write_text(MANAGERS)

    def run_script(self, script: str, **environment: str) -> Process:
        """Run the script on the memory transport, with an SQLite file in its directory."""
        (self.folder / "script.py").write_text(script)
        settings = {"NOVASVC_STATE_DIR": "state", "NOVASVC_PERIODIC_FUZZY_DELAY": "0", **environment}
        return Process(self, [sys.executable, "script.py"], self.folder, **settings)

    def serve(self, manager: str, **environment: str) -> Process:
        """Run a script that serves a manager."""
        return self.run_script(SCRIPT.format(manager=manager), **environment)

    def assert_orderly(self, process: Process) -> None:
        """Assert that the output has no error and no traceback."""
        for word in ("Traceback", "Unhandled", "did not exit in time", "#error]", "#critical]"):
            self.assertNotIn(word, process.output)


class TerminatedTests(ScriptTestCase):
    """SIGTERM and SIGINT."""

    def test_drains(self) -> None:
        """SIGTERM lets a call in flight finish, and the script exits with status 1, as in Nova."""
        script = self.serve("Working")
        script.wait_for("at work")
        self.assertEqual(script.stop(), 1, script.output)
        self.assertRegex(script.output, r"(?s)is draining.*work is done.*is stopped")
        self.assert_orderly(script)

    def test_interrupted(self) -> None:
        """SIGINT cancels a call in flight, and the script exits within two seconds."""
        self.ends_at_once(signal.SIGINT)

    def test_second_term(self) -> None:
        """A second SIGTERM cancels it, too."""
        self.ends_at_once(signal.SIGTERM, signal.SIGTERM)

    @pytest.mark.long
    def test_interrupted_while_draining(self) -> None:
        """SIGINT after SIGTERM cancels it, too."""
        self.ends_at_once(signal.SIGTERM, signal.SIGINT)

    def ends_at_once(self, *numbers: signal.Signals) -> None:
        script = self.serve("Long")
        script.wait_for("at work")
        for number in numbers[:-1]:
            script.popen.send_signal(number)
            script.wait_for("is draining")
        began = time.monotonic()
        self.assertEqual(script.stop(numbers[-1]), 1, script.output)
        self.assertLess(time.monotonic() - began, 2)
        self.assertRegex(
            script.output, r"(?s)told to stop immediately: cancelling 1 call and 0 periodic tasks.*is stopped"
        )
        self.assertIn("work has ended", script.output)
        self.assert_orderly(script)

    @pytest.mark.long
    def test_background(self) -> None:
        """A background job of a shell ignores SIGINT, with workers or without, and ends at SIGTERM."""
        for workers, status in ((None, 1), (1, 0)):
            (self.folder / "background.py").write_text(
                SCRIPT.format(manager="Working").replace('"))', f'"), workers={workers})')
            )
            command = ["sh", "-c", f"trap '' INT; exec {sys.executable} background.py"]
            job = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
            job.wait_for("SIGINT stays ignored, as this process inherited it; use SIGTERM to stop")
            job.wait_for("nova-worker@h1 is running" if workers is None else "the supervisor is running")
            job.popen.send_signal(signal.SIGINT)
            job.popen.send_signal(signal.SIGUSR2)
            job.wait_for("stacks:")  # what came before it is over
            self.assertNotIn("draining", job.output)
            self.assertEqual(job.stop(), status, job.output)

    @pytest.mark.long
    def test_busy_reactor(self) -> None:
        """A blocked reactor is ended after two seconds with SignalExit's status, and the log has its stack."""
        script = self.serve("Busy")
        script.wait_for("at work")
        began = time.monotonic()
        self.assertEqual(script.stop(signal.SIGINT), 1)
        self.assertLess(time.monotonic() - began, 3)
        self.assertRegex(script.output, r"(?s)SIGINT: did not exit in time.*managers.py.* in work")

    @pytest.mark.long
    def test_third_signal(self) -> None:
        """A third signal has its default action."""
        script = self.serve("Busy")
        script.wait_for("at work")
        began = time.monotonic()
        while script.popen.poll() is None and time.monotonic() < began + 1.5:
            script.popen.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        self.assertEqual(script.wait(), -signal.SIGTERM)
        self.assertNotIn("did not exit in time", script.output)

    @pytest.mark.long
    def test_reactors_thread(self) -> None:
        """A stuck thread of the reactor does not delay the exit."""
        script = self.serve("Threaded")
        script.wait_for("at work")
        began = time.monotonic()
        self.assertEqual(script.stop(signal.SIGINT), 1)
        self.assertLess(time.monotonic() - began, 3)
        self.assertRegex(script.output, r"(?s)is stopped.*SIGINT: did not exit in time")

    @pytest.mark.long
    def test_while_waiting(self) -> None:
        """SIGTERM while the start waits for the database ends the script promptly."""
        done = self.serve("Working")
        done.wait_for("work is done")
        done.stop()
        holder = sqlite3.connect(self.folder / "state" / "novasvc.sqlite", isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN EXCLUSIVE")
        script = self.run_script(SCRIPT.format(manager="Working").replace("h1", "h2"))  # its row is not there yet
        script.wait_for("the database is unavailable; retrying")
        self.assertEqual(script.stop(), 1)
        self.assertNotIn("Traceback", script.output)

    def test_script_goes_on(self) -> None:
        """wait() raises SignalExit with the signal, and the script may continue."""
        script = self.run_script("""
import signal, time
from novasvc.service import Service, SignalExit, serve, wait

serve(Service.create(host="h1", binary="nova-worker", topic="worker", manager="managers.Long"))
try:
    wait()
except SignalExit as exit:
    print("ended by", exit.signo, "with", exit.code, flush=True)
    time.sleep(2.5)
    print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "and on", flush=True)
""")
        script.wait_for("at work")
        script.popen.send_signal(signal.SIGINT)
        script.wait_for("ended by 2 with 1")
        self.assertEqual(script.wait(), 0)
        self.assertIn("True and on", script.output)


class TwistdTests(ScriptTestCase):
    """The same signals under twistd without workers."""

    def twistd(self, manager: str) -> Process:
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--manager", f"managers.{manager}"]
        options = ["--host", "h1", "--topic", "worker", "--periodic-fuzzy-delay", "0"]
        return Process(self, [*command, *options], self.folder, PYTHONPATH=str(self.folder), NOVASVC_STATE_DIR="state")

    def test_second_term(self) -> None:
        """A second SIGTERM kills it at once, without a traceback."""
        node = self.twistd("Long")
        node.wait_for("at work")
        node.popen.send_signal(signal.SIGTERM)
        node.wait_for("is draining")
        began = time.monotonic()
        self.assertEqual(node.stop(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, 2)
        self.assertIn("work has ended", node.output)
        self.assert_orderly(node)

    def test_interrupted(self) -> None:
        """The first SIGINT does, too."""
        node = self.twistd("Long")
        node.wait_for("at work")
        began = time.monotonic()
        self.assertEqual(node.stop(signal.SIGINT), -signal.SIGINT)
        self.assertLess(time.monotonic() - began, 2)
        self.assert_orderly(node)

    def tac(self, text: str, **environment: str) -> Process:
        """Run a .tac file with a node's settings in the environment."""
        (self.folder / "app.tac").write_text(SLOWLY + text)
        settings = {"NOVASVC_STATE_DIR": "state", "NOVASVC_MANAGER": "managers.Working", "NOVASVC_HOST": "h1"}
        command = [program("twistd"), "-n", "--pidfile=", "-y", "app.tac"]
        return Process(self, command, self.folder, PYTHONPATH=str(self.folder), **settings, **environment)

    def test_restart_with_pid_file(self) -> None:
        """A restart that has to be forced comes back although twistd has not removed its pid file."""
        (self.folder / "app.tac").write_text(f"{SLOWLY}makeService({{}}).setServiceParent(application)\n")
        settings = {"NOVASVC_STATE_DIR": "state", "NOVASVC_MANAGER": "managers.Again", "NOVASVC_HOST": "h1"}
        for arguments in (["novasvc"], ["--pidfile", "app.pid", "-y", "app.tac"]):
            with self.subTest(arguments=arguments):
                (self.folder / "again").unlink(missing_ok=True)
                node = Process(
                    self,
                    [program("twistd"), "-n", *arguments],
                    self.folder,
                    PYTHONPATH=str(self.folder),
                    NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0.2",
                    **settings,
                )
                node.wait_for("restart: did not exit in time; running the program again")
                node.wait_for("the program runs again")
                node.wait_for(RUNNING)
                self.assertEqual(node.stop(), -signal.SIGTERM)
                self.assertEqual(list(self.folder.glob("*.pid")), [])

    @pytest.mark.long
    def test_beside_others(self) -> None:
        """Other services of an application may take longer to stop than graceful_shutdown_timeout."""
        launcher = "launcher = ServiceLauncher(); launcher.launch_server(Service()); launcher"
        for tree in ("makeService({})", launcher):
            node = self.tac(
                f"{tree}.setServiceParent(application)\nSlow().setServiceParent(application)\n",
                NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1",
            )
            node.wait_for("all is up")
            self.assertEqual(node.stop(), -signal.SIGTERM, node.output)
            self.assertIn("the other has stopped well", node.output)
            self.assert_orderly(node)

    @pytest.mark.long
    def test_log_of_a_tac(self) -> None:
        """makeService's "logfile" has the log, whether its parent is an application, its collection or a service."""
        parents = {
            "application": False,
            "IServiceCollection(application)": True,
            "parent": True,
        }
        for number, (parent, beside) in enumerate(parents.items()):
            log = self.folder / f"node{number}.log"
            node = self.tac(
                "parent = MultiService()\nparent.setServiceParent(application)\n"
                f"makeService({{'logfile': '{log.name}'}}).setServiceParent({parent})\n"
            )
            node.wait_for("novasvc .* runs")  # the greeting
            self.assertEqual(node.stop(), -signal.SIGTERM, node.output)
            for line in ("agent@h1 is running", "SIGTERM: draining", "agent@h1 is stopped"):
                self.assertEqual(log.read_text().count(line), 1, log.read_text())
                self.assertEqual(line in node.output, beside, node.output)

    def test_restart(self) -> None:
        """SIGHUP restarts the services with the changed files, and rejects invalid ones."""
        file = self.folder / "novasvc.toml"
        file.write_text("report_interval = 10\n")
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--config", "novasvc.toml", "--host", "h1"]
        node = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
        node.wait_for(RUNNING)
        file.write_text("report_interval = 0.5\n")
        node.popen.send_signal(signal.SIGHUP)
        node.wait_for(r"SIGHUP: .*report_interval = 0.5 .*is too small")
        file.write_text("report_interval = 1\n")
        node.popen.send_signal(signal.SIGHUP)
        node.wait_for("report_interval changed from 10 to 1")
        node.wait_for("is stopped")
        node.wait_for(RUNNING)
        node.wait_for("services restarted")
        self.assertEqual(node.stop(), -signal.SIGTERM)
        self.assertNotIn("Traceback", node.output)


class RestartTests(ScriptTestCase):
    """SIGHUP."""

    def test_restart(self) -> None:
        """SIGHUP restarts the services in the same process, with the changed files that the environment names."""
        file = self.folder / "novasvc.toml"
        file.write_text("report_interval = 10\n")
        script = self.serve("Working", NOVASVC_CONFIG="novasvc.toml")
        script.wait_for("work is done")
        file.write_text("report_interval = 1\n")
        script.popen.send_signal(signal.SIGHUP)
        script.wait_for("report_interval changed from 10 to 1")
        script.wait_for("is stopped")
        script.wait_for("services restarted")
        script.wait_for("work is done")
        deadline = time.monotonic() + 20
        while self.report_count() < 4:  # at intervals of 10 s it would take longer
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        self.assertEqual(script.stop(), 1)
        self.assert_orderly(script)

    def report_count(self) -> int:
        connection = sqlite3.connect(f"file:{self.folder / 'state' / 'novasvc.sqlite'}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT report_count FROM services").fetchone()[0])
        finally:
            connection.close()

    def test_refused(self) -> None:
        """An invalid configuration is rejected with one line, and the services go on."""
        file = self.folder / "novasvc.toml"
        file.write_text("report_interval = 10\n")
        script = self.serve("Working", NOVASVC_CONFIG="novasvc.toml")
        script.wait_for("at work")
        file.write_text("report_interval = 'often'\n")
        script.popen.send_signal(signal.SIGHUP)
        script.wait_for("SIGHUP: .*report_interval")
        script.wait_for("work is done")
        self.assertEqual(script.stop(), 1)
        self.assertNotIn("Traceback", script.output)

    def test_dump(self) -> None:
        """SIGUSR2 logs the stacks of all threads, and recent events."""
        script = self.serve("Long")
        script.wait_for("at work")
        script.popen.send_signal(signal.SIGUSR2)
        script.wait_for("stacks:")
        script.wait_for("most recent call first")
        script.wait_for("last events:")
        script.wait_for("call work began")
        self.assertEqual(script.stop(signal.SIGINT), 1)


class StartTests(ScriptTestCase):
    """Starts that fail, and wrong uses of the launchers."""

    def test_failed_start(self) -> None:
        """A failed start ends the script with status 1 and one line with the reason."""
        script = self.serve("Failing")
        self.assertEqual(script.wait(), 1)
        self.assertRegex(script.output, r"init_host failed: LookupError: no such hypervisor \(.*managers.py:\d+")
        self.assertNotIn("Traceback", script.output)

    def test_wrong_order(self) -> None:
        """A second serve(), a wait() without serve(), and a wrong server are errors that say what is wrong."""
        script = self.run_script("""
from twisted.application.service import Service
from twisted.internet import reactor
from novasvc.service import serve, wait

def says(function, *args):
    try:
        function(*args)
    except (RuntimeError, TypeError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)

says(wait)
says(serve, object())
serve(Service())
says(serve, Service())
reactor.callLater(0, reactor.stop)
print("returned", wait(), flush=True)
says(wait)
serve(Service())
says(wait)
""")
        self.assertEqual(script.wait(), 0)
        said = [line.rstrip() for line in script.lines if "Error: " in line or "returned" in line]
        self.assertEqual(said[0], "RuntimeError: nothing to wait for: call serve(server) before wait()")
        self.assertRegex(said[1], "^TypeError: <object object at .*> does not provide IService: give a ")
        self.assertRegex(said[2], r"^RuntimeError: serve\(\) was already called")
        self.assertEqual(said[3:5], ["returned None", said[0]])
        self.assertRegex(said[5], "^RuntimeError: the reactor has already run")
        self.assertEqual(len(said), 6)

    def test_running_reactor(self) -> None:
        """With a running reactor wait() returns a Deferred, and existing logging is left alone."""
        script = self.run_script("""
import sys
from twisted.application.service import Service
from twisted.internet import reactor, task
from twisted.logger import globalLogBeginner, textFileLogObserver
from novasvc.run import script
from novasvc.service import serve, wait

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)

async def main(reactor):
    await task.deferLater(reactor, 0)
    for _ in range(2):
        server = Service()
        serve(server)
        waiting = wait()
        reactor.callLater(0, script._launchers.get(reactor).stop)
        await waiting
        print("ended", server.running, flush=True)

task.react(main)
""")
        self.assertEqual(script.wait(), 0, script.output)
        self.assertEqual(script.output.count("ended 0"), 2)
        self.assertNotIn("beginLoggingTo", script.output)
        self.assert_orderly(script)

    @pytest.mark.long
    def test_log_of_launchers(self) -> None:
        """A script with its own launcher logs as one with serve() does, workers included."""
        launches = (
            "ProcessLauncher(); launcher.launch_server(service, workers=1); launcher.wait()",
            "ServiceLauncher(); launcher.launch_server(service); launcher.wait()",
            "Launcher(); launcher.launch_server(service); launcher.wait()",
            "Launcher.run_server(service)",
        )
        for host, launch in enumerate(launches):  # a host each, because the ones that are killed leave their rows
            script = self.run_script(
                f"""
from novasvc.service import *

if __name__ == "__main__":
    service = Service.create(host="h{host}", binary="nova-worker", topic="worker", manager="managers.Long")
    launcher = {launch}
""",
                NOVASVC_LOG_JSON="true",
                NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1",
            )
            for _ in range(2):  # in any order
                script.wait_for("at work|nova-worker@h[0-3] is running")
            if launch.startswith("ProcessLauncher"):
                self.assertIn('"message": "the supervisor is starting"', script.output)
            script.stop(signal.SIGKILL)

    def test_wrong_settings(self) -> None:
        """A server that needs no settings runs despite invalid ones, and the log says so."""
        script = self.run_script(
            """
from twisted.application.service import Service
from twisted.internet import reactor
from novasvc.service import Launcher

launcher = Launcher()
launcher.launch_server(Service())
reactor.callLater(0, launcher.stop)
launcher.wait()
print("after", launcher.state, flush=True)
""",
            NOVASVC_NONSENSE="1",
        )
        self.assertEqual(script.wait(), 0, script.output)
        self.assertRegex(
            script.output, "invalid configuration; using default log settings: .* has an error: .*NOVASVC_NONSENSE"
        )
        self.assertIn("after stopped", script.output)
        self.assertNotIn("Traceback", script.output)

    def test_settings_in_the_log(self) -> None:
        """At debug level the log has all settings, with passwords masked."""
        script = self.serve(
            "Working", NOVASVC_LOG_LEVEL="debug", NOVASVC_TRANSPORT_URL="amqp://me:tellnobody@localhost:1/"
        )
        script.wait_for("effective settings:")
        script.wait_for(r"report_interval = 10 \(default\)")
        script.wait_for("the broker is unavailable")  # the reactor runs, and answers to signals
        script.stop(signal.SIGINT)
        self.assertNotIn("tellnobody", script.output)

    def test_server_that_ends(self) -> None:
        """A script whose server ends by itself exits with status 0."""
        script = self.run_script("""
from twisted.internet import reactor
from novasvc.service import Service, serve, wait

service = Service.create(host="h1", binary="nova-worker", topic="worker", manager="managers.Working")
serve(service)
service.when_started().addCallback(lambda _: reactor.callLater(0, service.stop))
wait()
print("after", service.state, flush=True)
""")
        self.assertEqual(script.wait(), 0, script.output)
        self.assertIn("after stopped", script.output)
        self.assert_orderly(script)
