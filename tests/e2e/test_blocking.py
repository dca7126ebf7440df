"""Tests for novasvc.blocking in programs of their own, with a real node."""

import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import Process, program
from tests.servers import shared_broker, vhost_url

MANAGER = '''
import time
from novasvc import Manager, RequestContext, rpc

class Desk(Manager):
    @rpc.expose
    def echo(self, context: RequestContext, value: str) -> str:
        return value

    @rpc.expose(blocking=True)
    def slow(self, context: RequestContext, seconds: float) -> None:
        time.sleep(seconds)

    @rpc.expose(blocking=True)
    def through(self, context: RequestContext, value: str) -> str:
        """Call its own service, from the thread in which it runs."""
        return self.attachments.blocking.prepare(topic="desk").call(context, "echo", value=value)

    @rpc.expose
    def wrong(self, context: RequestContext) -> str:
        return self.attachments.blocking.prepare(topic="desk").call(context, "echo", value="x")
'''

PLAIN = """
from novasvc import RequestContext, blocking
from novasvc.errors import NovasvcError

with blocking.connect() as client:
    desk = client.prepare(topic="desk", timeout=20)
    for method, args in (
        ("echo", {"value": "hello"}),
        ("through", {"value": "by thread"}),
        ("wrong", {}),
        ("echo", {"value": 7}),
        ("nothing", {}),
    ):
        try:
            print(method, desk.call(RequestContext(), method, **args))
        except NovasvcError as error:
            print(method, type(error).__name__, error)
try:
    desk.call(RequestContext(), "echo", value="late")
except NovasvcError as error:
    print("closed", type(error).__name__)
with blocking.connect(timeout=20) as client:
    print("again", client.prepare(topic="desk").call(RequestContext(), "echo", value="hello"))
    print("left open for the end of the program")
blocking.connect()
"""

FORKING = """
import os
from novasvc import RequestContext, blocking
from novasvc.errors import ForkedClientError

client = blocking.connect().prepare(topic="desk")
if os.fork():
    os.wait()
    print("parent", client.call(RequestContext(), "echo", value="hello"), flush=True)
else:
    for call in (lambda: client.call(RequestContext(), "echo", value="hello"), blocking.connect):
        try:
            call()
        except ForkedClientError as error:
            print("child", error, flush=True)
    client.close()  # does nothing
"""

INTERRUPTED = """
import signal
from novasvc import RequestContext, blocking

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
with blocking.connect() as client:
    desk = client.prepare(topic="desk", timeout=50)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        desk.call(RequestContext(), "slow", seconds=3)
    except KeyboardInterrupt:
        print("interrupted, waiting:", client.waiting)
    print(desk.call(RequestContext(), "echo", value="hello"))
"""

TWISTED = """
import sys
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from novasvc import RequestContext, blocking
from novasvc.errors import NovasvcError

def work():
    # It uses the reactor that runs; the end of the reactor ends the wait.
    desk = blocking.connect().prepare(topic="desk", timeout=50)
    print("thread", desk.call(RequestContext(), "echo", value="hello"), flush=True)
    reactor.callFromThread(reactor.callLater, 0.3, reactor.stop)
    try:
        desk.call(RequestContext(), "slow", seconds=30)
    except NovasvcError as error:
        print("ended", type(error).__name__, flush=True)

def begin():
    try:
        blocking.connect()
    except NovasvcError as error:
        print("reactor", type(error).__name__, flush=True)
    deferToThread(work).addErrback(lambda failure: failure.printTraceback(sys.stdout))

reactor.callWhenRunning(begin)
reactor.run()
"""


class ProgramTests(TestCase):
    transport = "memory:"

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "desks.py").write_text(MANAGER)
        self.environment = {"NOVASVC_STATE_DIR": "state", "NOVASVC_TRANSPORT_URL": self.url()}
        node = Process(self, [program("novasvc"), "run", "desks:Desk"], self.folder, **self.environment)
        node.wait_for("is running")

    def url(self) -> str:
        return "memory:"

    def run_program(self, text: str) -> list[str]:
        process = Process(self, [program("python"), "-W", "error", "-c", text], self.folder, **self.environment)
        self.assertEqual(process.wait(), 0, process.output)
        return process.output.splitlines()

    def check_plain(self) -> None:
        hello, through, wrong, invalid, nothing, closed, again, left = self.run_program(PLAIN)
        self.assertEqual([hello, through], ["echo hello", "through by thread"])
        self.assertIn("ReactorThreadError", wrong)
        self.assertEqual(
            invalid, "echo InvalidArgumentsError invalid arguments for 'echo': value: expected str, got int"
        )
        self.assertIn("nothing NoSuchMethodError", nothing)
        self.assertEqual((closed, again), ("closed TransportClosedError", "again hello"))
        self.assertIn("left open", left)


class HostTests(ProgramTests):
    """Without a broker."""

    def test_plain(self) -> None:
        """A plain program connects, calls, gets the errors, closes, connects again, and ends with an open client."""
        self.check_plain()

    @pytest.mark.long
    def test_forked(self) -> None:
        """In a child neither client nor connect() work, and they say so; the parent's client goes on."""
        first, second, parent = self.run_program(FORKING)
        for line in (first, second):
            self.assertIn("which forked this one, and does not run here; fork first", line)
        self.assertEqual(parent, "parent hello")

    def test_interrupted(self) -> None:
        """An exception of a signal's handler ends the wait, and the client goes on."""
        self.assertEqual(self.run_program(INTERRUPTED), ["interrupted, waiting: 0", "hello"])

    def test_running_reactor(self) -> None:
        """In a program of Twisted it uses the reactor that runs, whose end ends the wait, and refuses its thread."""
        expected = ["reactor ReactorThreadError", "thread hello", "ended TransportClosedError"]
        self.assertEqual(self.run_program(TWISTED), expected)


class BrokerTests(ProgramTests):
    """Over RabbitMQ."""

    def url(self) -> str:
        return vhost_url(self, shared_broker())

    @pytest.mark.long
    def test_plain(self) -> None:
        """A plain program connects, calls, gets the errors, closes, connects again, and ends with an open client."""
        self.check_plain()

    @pytest.mark.long
    def test_running_reactor(self) -> None:
        """The end of the reactor ends the wait."""
        expected = ["reactor ReactorThreadError", "thread hello", "ended TransportClosedError"]
        self.assertEqual(self.run_program(TWISTED), expected)

    @pytest.mark.long
    def test_no_broker(self) -> None:
        """A broker that is not there is an error of connect(), with the URL masked."""
        text = "from novasvc import blocking\nblocking.connect('amqp://guest:secret@127.0.0.1:1/')"
        process = Process(self, [program("python"), "-c", text], self.folder, **self.environment)
        self.assertEqual(process.wait(), 1, process.output)
        self.assertIn("BrokerUnavailableError", process.output)
        self.assertNotIn("secret", process.output.replace(text, "").replace(repr(text), ""))
