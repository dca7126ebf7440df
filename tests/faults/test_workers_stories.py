"""Stories that users of other supervisors know, told with ours: clients that are connected, servers that stop badly."""

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from datetime import datetime

import pytest

from tests.e2e.process import PATIENCE, ROOT, program
from tests.faults.fleet_rig import ORPHANED, Fleet, FleetCase, handles, until
from tests.servers.process import free_ports

AT_ONCE = 3.0
"""Seconds from a signal that ends all at once to the end: two for the workers, and one."""
LATE = 0.5
"""Seconds after a deadline within which all is over but for the end of the interpreter."""

PARTS = '''
import sys, threading, time
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

lock = threading.Lock()

class Locked(Service):
    """Needs a lock of its module to start."""
    def startService(self):
        with lock:
            super().startService()

class Unpicklable(Service):
    def __init__(self):
        self.callback = lambda: None

class Stubborn(Service):
    """Blocks its reactor when it is to stop."""
    def stopService(self):
        print("stops stubbornly", flush=True)
        time.sleep(60)
        print("has stopped", flush=True)

class Endless(Service):
    """Never says that it has stopped."""
    def startService(self):
        print("endless", flush=True)
    def stopService(self):
        return Deferred()

class Raising(Service):
    """Raises when it is to stop."""
    def stopService(self):
        raise LookupError("no such hypervisor")

class Leaving(Service):
    def startService(self):
        sys.exit(42)

class Busy(Service):
    """Has a thread that works when it is to stop."""
    def stopService(self):
        from twisted.internet.threads import deferToThread
        deferToThread(self.work)
    def work(self):
        time.sleep(2.5)
        print("the thread is done", flush=True)

class Parting(Service):
    """Calls sys.exit when it is to stop."""
    def stopService(self):
        sys.exit(43)

class Ending(Service):
    """Ends by itself a moment after its start."""
    def __init__(self, error):
        self.error = error
    def wait(self):
        from twisted.internet import reactor
        def fail():
            raise self.error
        return deferLater(reactor, 0.1, fail)

class Waiter(Service):
    """Has a method that is called wait, and is something else."""
    def wait(self, patience):
        return patience

def make_late(reactor):
    """Take more than a second to find out that it cannot be."""
    time.sleep(1.2)
    raise ValueError("no such hypervisor")

class Slow(Resource):
    """Answers after a second, or, at /never, never."""
    isLeaf = True
    def render_GET(self, request):
        from twisted.internet import reactor
        print("asked", flush=True)
        if request.path != b"/never":
            deferLater(reactor, 1.0, lambda: (request.write(b"served"), request.finish()))
        return NOT_DONE_YET

def make_site():
    return Site(Slow())
'''

TAC = """
from twisted.application.internet import TimerService
from twisted.application.service import Application
from novasvc.service import ProcessLauncher
from novasvc.node.stream_server import StreamServer
import parts

application = Application("app")
launcher = ProcessLauncher()
launcher.launch_server(StreamServer("tcp:{port}:interface=127.0.0.1", parts.make_site), workers=2)
launcher.setServiceParent(application)
if {others}:
    TimerService(0.5, print, "the other goes on").setServiceParent(application)
"""

SCRIPT = """
import threading
import parts
from novasvc.service import serve, wait
from novasvc.node.stream_server import StreamServer

if __name__ == "__main__":
    {before}
    serve({server}, workers={workers})
    wait()
    print("the script goes on", flush=True)
"""

RELOADED = """
[[service]]
binary = "novasvc-agent"
workers = 2
manager = "tests.faults.fleet_parts.{manager}"
"""


def lasted(fleet: Fleet) -> float:
    """Return the seconds from the signal to the end of the main loop, as the log has them.

    What a busy machine takes to end an interpreter is not in them.
    """
    (began, *_), (ended,) = (
        [line.split()[0] for line in fleet.lines if pattern in line and "worker " not in line]
        for pattern in ("Received SIGTERM", "Main loop terminated")
    )
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


class StoryCase(FleetCase):
    """A script that serves something with workers."""

    def serve(self, server: str, workers: object = 2, before: str = "pass", **environment: str) -> Fleet:
        (self.folder / "parts.py").write_text(PARTS)
        (self.folder / "script.py").write_text(SCRIPT.format(server=server, workers=repr(workers), before=before))
        return Fleet(
            self, [sys.executable, "script.py"], self.folder, PYTHONPATH=f"{ROOT}:{self.folder}", **environment
        )


class ScriptTests(StoryCase):
    """serve() and wait()."""

    def test_terminated(self) -> None:
        """SIGTERM drains the workers, and wait() returns to the script, whose status is its own."""
        fleet = self.serve("parts.Locked()")
        fleet.ready(2)
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertIn("the script goes on", fleet.output)

    def test_interrupted(self) -> None:
        """SIGINT, which a terminal sends to all processes, ends it at once, and no worker has anything to say."""
        fleet = self.serve("parts.Locked()")
        fleet.ready(2)
        began = time.monotonic()
        os.killpg(fleet.pid, signal.SIGINT)
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assertLess(time.monotonic() - began, AT_ONCE)
        self.assertNotIn("Traceback", fleet.output)
        self.assertNotIn("KeyboardInterrupt", fleet.output)

    def test_lock_held(self) -> None:
        """A lock that a thread of the script holds is not held in the workers: they are no forks of the script."""
        before = (
            "held = threading.Event(); threading.Thread("
            "target=lambda: (parts.lock.acquire(), held.set(), threading.Event().wait()), daemon=True).start(); "
            "held.wait()"
        )
        fleet = self.serve("parts.Locked()", before=before)
        fleet.ready(2, patience=10)
        self.assertEqual(fleet.stop(), 0, fleet.output)

    def test_not_by_pickle(self) -> None:
        """A server that cannot be brought into a worker is refused, with its name; nothing is started."""
        fleet = self.serve("parts.Unpicklable()")
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assertRegex(fleet.lines[-1], "^novasvc.*NotPreforkableError: .*Unpicklable")
        self.assertNotIn("is starting", fleet.output)

    @pytest.mark.long
    def test_numbers(self) -> None:
        """A number of workers that is none is refused with what it was."""
        for workers in ("2", 2.5, -1, True):
            fleet = self.serve("parts.Locked()", workers)
            self.assertEqual(fleet.wait(), 1, f"{workers!r}: {fleet.output}")
            self.assertIn(f"ResizeError: cannot run {workers!r} workers", fleet.lines[-1])


class ConnectedTests(StoryCase):
    """Clients that are connected at the end."""

    def setUp(self) -> None:
        super().setUp()
        (self.port,) = free_ports(1)
        self.clients = ExitStack()
        self.addCleanup(self.clients.close)

    def web(self, **environment: str) -> Fleet:
        fleet = self.serve(f"StreamServer('tcp:{self.port}:interface=127.0.0.1', parts.make_site)", **environment)
        fleet.ready(2)
        return fleet

    def ask(self, fleet: Fleet, path: str) -> socket.socket:
        client = self.clients.enter_context(socket.create_connection(("127.0.0.1", self.port), PATIENCE))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        fleet.wait_for("asked$")
        return client

    def answer(self, client: socket.socket) -> bytes:
        """Read until the server closes."""
        answer = b""
        try:
            while part := client.recv(4096):
                answer += part
        except ConnectionResetError:
            pass
        return answer

    def test_served(self) -> None:
        """After SIGTERM a client whose request was taken gets its answer; only then is the end."""
        fleet = self.web()
        client = self.ask(fleet, "/")
        fleet.popen.send_signal(signal.SIGTERM)
        self.assertIn(b"served", self.answer(client))
        self.assertEqual(fleet.wait(), 0, fleet.output)
        self.assertNotIn("killed", fleet.output)

    @pytest.mark.long
    def test_no_new_client(self) -> None:
        """Meanwhile nobody new is served."""
        fleet = self.web(NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="4")
        first = self.ask(fleet, "/never")
        fleet.popen.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0):
                    return False
            except ConnectionResetError:  # it closed in this moment
                return False
            except ConnectionRefusedError:
                return True

        until(refused, 3.0)
        self.assertIsNone(fleet.popen.poll())
        self.assertEqual(self.answer(first), b"")
        self.assertEqual(fleet.wait(), 0, fleet.output)

    def test_too_slow(self) -> None:
        """A client that is not served within graceful_shutdown_timeout is cut off, and the end is in time."""
        fleet = self.web(NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1")
        client = self.ask(fleet, "/never")
        began = time.monotonic()
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertGreater(time.monotonic() - began, 0.9)
        self.assertLess(lasted(fleet), 1 + LATE)
        self.assertEqual(self.answer(client), b"")

    @pytest.mark.long
    def test_interrupted(self) -> None:
        """SIGINT does not wait for a client."""
        fleet = self.web()
        client = self.ask(fleet, "/never")
        began = time.monotonic()
        self.assertEqual(fleet.stop(signal.SIGINT), 1, fleet.output)
        self.assertLess(time.monotonic() - began, AT_ONCE)
        self.assertEqual(self.answer(client), b"")


class StopTests(StoryCase):
    """Servers that stop badly."""

    def test_blocks(self) -> None:
        """A server that blocks in stopService is killed when its time is over."""
        fleet = self.serve("parts.Stubborn()", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1")
        fleet.ready(2)
        self.assertEqual(fleet.stop(), 1, fleet.output)
        self.assertLess(lasted(fleet), 1 + LATE)
        self.assertEqual(len(fleet.said("did not exit in time; killing it")), 2)
        self.assertNotIn("has stopped", fleet.output)

    def test_stopped(self) -> None:
        """A worker that is stopped is killed when its time is over."""
        fleet = self.serve("parts.Locked()", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1")
        os.kill(fleet.ready(2)[1], signal.SIGSTOP)
        self.assertEqual(fleet.stop(), 1, fleet.output)
        self.assertLess(lasted(fleet), 1 + LATE)
        self.assertEqual(len(fleet.said("did not exit in time; killing it")), 1)

    @pytest.mark.long
    def test_blocks_when_orphaned(self) -> None:
        """When the supervisor is killed, such a server ends in time, too."""
        fleet = self.serve("parts.Stubborn()", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1")
        fleet.ready(2)
        fleet.popen.kill()
        until(lambda: not fleet.family, ORPHANED)
        self.assertNotIn("has stopped", fleet.output)

    @pytest.mark.long
    def test_never(self) -> None:
        """One whose stopService never fires is killed as well; at a second SIGTERM at once."""
        fleet = self.serve("parts.Endless()", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0")
        fleet.ready(2)
        fleet.popen.send_signal(signal.SIGTERM)
        until(lambda: {row["state"] for row in fleet.workers()} == {"draining"})
        began = time.monotonic()
        self.assertEqual(fleet.stop(), 1, fleet.output)
        self.assertLess(time.monotonic() - began, AT_ONCE)

    @pytest.mark.long
    def test_raises(self) -> None:
        """One that raises is named in the log, and ends its worker as any other."""
        fleet = self.serve("parts.Raising()")
        fleet.ready(2)
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertEqual(len(fleet.said("the server did not stop cleanly")), 2)
        self.assertIn("LookupError: no such hypervisor", fleet.output)

    def test_leaves(self) -> None:
        """One that calls sys.exit while it starts ends with its own status, and is tried a few times."""
        fleet = self.serve("parts.Leaving()", 1, NOVASVC_WORKER_RESTART_BUDGET="2")
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assertEqual(len(fleet.said(r"exited with status 42: it raised SystemExit\(42\)")), 2)

    @pytest.mark.long
    def test_ends(self) -> None:
        """One whose wait() fails ends its worker with a status that says so, and the log has the reason."""
        for error, status, reason in (
            ("LookupError('no such disk')", 2, "LookupError: no such disk"),
            ("SystemExit(3)", 3, r"it raised SystemExit\(3\)"),
        ):
            fleet = self.serve(
                f"parts.Ending({error})", 1, NOVASVC_WORKER_RESTART_BUDGET="2", NOVASVC_WORKER_CRASH_LOOP="exit"
            )
            self.assertEqual(fleet.wait(), 1, fleet.output)
            self.assertEqual(len(fleet.said(f"exited with status {status}: {reason}.*; ")), 2, fleet.output)

    @pytest.mark.long
    def test_something_else(self) -> None:
        """A method of the name that takes something is none that tells of the end."""
        fleet = self.serve("parts.Waiter()", 1)
        fleet.ready(1)
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertNotIn("restarting it", fleet.output)

    @pytest.mark.long
    def test_late_reason(self) -> None:
        """However long it took to fail, the reason is told."""
        fleet = self.serve("parts.make_late", 1, NOVASVC_WORKER_RESTART_BUDGET="1")
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assertIn("exited with status 2: ValueError: no such hypervisor", fleet.output)

    @pytest.mark.long
    def test_threads(self) -> None:
        """One that is done, and waits for its threads longer than a reactor may be silent, is not taken for hanging."""
        fleet = self.serve("parts.Busy()", 1, NOVASVC_WORKER_WATCHDOG="1")
        fleet.ready(1)
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertIn("the thread is done", fleet.output)
        self.assertNotIn("hangs", fleet.output)

    def test_alone(self) -> None:
        """Without workers, too, one that does not stop is cut short when its time is over."""
        fleet = self.serve("parts.Endless()", None, NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1")
        fleet.says("endless")
        until(lambda: handles(fleet.pid, signal.SIGTERM))  # from wait() on
        self.assertEqual(fleet.stop(), 1, fleet.output)
        self.assertLess(lasted(fleet), 1 + LATE)
        self.assertIn("graceful_shutdown_timeout (1 s) expired", fleet.output)
        self.assertIn("did not stop in time; no longer waiting for it", fleet.output)

    @pytest.mark.long
    def test_parts(self) -> None:
        """One that calls sys.exit while it stops ends with its status; that is no failure, as it was to end."""
        fleet = self.serve("parts.Parting()")
        fleet.ready(2)
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertEqual(len(fleet.said("drained: it exited with status 43")), 2)


class ApplicationTests(StoryCase):
    """A launcher in a .tac file."""

    def test_fails(self) -> None:
        """One that is all there is ends the process with status 1 when it fails; others it leaves alone."""
        (port,) = free_ports(1)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            for others, status in ((0, 1), (1, None)):
                (self.folder / "parts.py").write_text(PARTS)
                (self.folder / "app.tac").write_text(TAC.format(port=port, others=others))
                command = [program("twistd"), "-n", "--pidfile=", "-y", "app.tac"]
                fleet = Fleet(self, command, self.folder, PYTHONPATH=f"{ROOT}:{self.folder}")
                fleet.says(f"the supervisor did not start: cannot listen on 127.0.0.1:{port}")
                if status is None:
                    fleet.says("the other goes on")
                    fleet.stop()
                else:
                    self.assertEqual(fleet.wait(), status, fleet.output)


class MomentTests(FleetCase):
    """Signals at awkward moments."""

    @pytest.mark.long
    def test_terminated_while_ten_start(self) -> None:
        """SIGTERM anywhere in the start of ten workers ends them, without a traceback or a restart."""
        for sign in ("the supervisor is starting", "worker 1 .* is ready", "worker 7 .* is ready"):
            fleet = self.script("obedient:one=10")
            fleet.wait_for(sign)
            began = time.monotonic()
            self.assertEqual(fleet.stop(), 0, fleet.output)
            self.assertLess(time.monotonic() - began, AT_ONCE)
            self.assertNotIn("Traceback", fleet.output)
            self.assertNotIn("restarting it", fleet.output)
            until(lambda fleet=fleet: not fleet.family, ORPHANED)

    def reloading(self) -> Fleet:
        """Return a fleet whose workers are about to get successors that never get ready."""
        settings = self.folder / "node.toml"
        settings.write_text(RELOADED.format(manager="Node"))
        fleet = self.twistd("--config", str(settings), manager=None)
        before = fleet.ready(2)
        settings.write_text(RELOADED.format(manager="Waits"))
        fleet.popen.send_signal(signal.SIGHUP)
        until(lambda: len([row for row in fleet.workers() if row["pid"] not in {None, *before.values()}]) > 0)
        return fleet

    def test_terminated_while_reloading(self) -> None:
        """SIGTERM while workers are replaced ends the old and the new."""
        fleet = self.reloading()
        began = time.monotonic()
        self.assertEqual(fleet.stop(), -signal.SIGTERM, fleet.output)
        self.assertLess(time.monotonic() - began, AT_ONCE)
        self.assertNotIn("Traceback", fleet.output)
        until(lambda: not fleet.family, ORPHANED)

    def test_killed_while_reloading(self) -> None:
        """When the supervisor is killed then, old and new end, and both forkservers."""
        fleet = self.reloading()
        fleet.popen.kill()
        until(lambda: not fleet.family, ORPHANED)

    @pytest.mark.long
    def test_terminated_while_backing_off(self) -> None:
        """SIGTERM while a worker's place is empty ends the others, and waits for nothing."""
        fleet = self.script("obedient:one=2")
        fleet.ready(2)
        for _ in range(3):
            fleet.kill(1)
        until(lambda: fleet.worker(1)["state"] == "backing off")
        began = time.monotonic()
        self.assertEqual(fleet.stop(), 0, fleet.output)
        self.assertLess(time.monotonic() - began, AT_ONCE)
