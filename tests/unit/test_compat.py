"""Tests for novasvc._compat: the private parts of other packages are where it expects them, and do what it says."""

import ast
import json
import subprocess
import sys
import typing
import zlib
from pathlib import Path
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import HTTPChannel, HTTPFactory
from twisted.web.resource import EncodingResourceWrapper, Resource
from twisted.web.server import GzipEncoderFactory

from novasvc import _compat
from novasvc._compat import (
    buffered_octets,
    http_channel,
    import_alchimia,
    json_encoder,
    json_scanner,
    machine_state,
    set_request_in_progress,
)
from novasvc.http import make_site
from novasvc.reactor.machine import build_machine


class RequestInProgressTests(SynchronousTestCase):
    """Tests for set_request_in_progress."""

    def test_pause(self) -> None:
        """A full buffer pauses the reading of a connection, but not while a request is being answered."""
        for in_progress, expected in ((False, "paused"), (True, "producing")):
            channel = HTTPChannel()
            transport = StringTransport()
            channel.makeConnection(transport)
            set_request_in_progress(channel, in_progress=in_progress)
            channel.pauseProducing()
            self.assertEqual(transport.producerState, expected)


class Text(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return b"text" * 100


class ContentEncodingTests(SynchronousTestCase):
    """Tests for apply_content_encoding, through the site that calls it."""

    def get(self, resource: Resource) -> tuple[bytes, bytes]:
        """Return head and body of the response to a client that accepts gzip."""
        transport = StringTransport()
        protocol = make_site(resource, reactor=Clock()).buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(b"GET / HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
        head, _, body = transport.value().partition(b"\r\n\r\n")
        return head, body

    def test_compressed(self) -> None:
        """A resource with an encoder is compressed, as by twisted.web itself; another one is not."""
        head, body = self.get(EncodingResourceWrapper(Text(), [GzipEncoderFactory()]))
        self.assertIn(b"content-encoding: gzip", head.lower())
        self.assertEqual(zlib.decompress(body, 31), b"text" * 100)
        head, body = self.get(Text())
        self.assertEqual(body, b"text" * 100)


class HTTPChannelTests(SynchronousTestCase):
    """Tests for http_channel."""

    def test_factory(self) -> None:
        """The channel behind the protocol that twisted.web's own factory makes is found."""
        protocol: Any = HTTPFactory(reactor=Clock()).buildProtocol(None)
        self.assertNotIsInstance(protocol, HTTPChannel)
        self.assertIsInstance(http_channel(protocol), HTTPChannel)

    def test_channel(self) -> None:
        """A channel is its own channel."""
        channel = HTTPChannel()
        self.assertIs(http_channel(channel), channel)

    def test_other(self) -> None:
        """Another protocol has none."""
        self.assertIsNone(http_channel(Protocol()))


class BufferedOctetsTests(SynchronousTestCase):
    """Tests for buffered_octets."""

    def test_counted(self) -> None:
        """What was written and not sent is counted, also when a part of it was sent."""

        class Slow(FileDescriptor):
            connected = True
            SEND_LIMIT = 6

            def writeSomeData(self, data: bytes) -> int:
                return min(4, len(data))

            def startWriting(self) -> None:
                pass

            def stopWriting(self) -> None:
                pass

        transport = Slow()
        self.assertEqual(buffered_octets(transport), 0)
        transport.write(b"0123456789")
        self.assertEqual(buffered_octets(transport), 10)
        transport.doWrite()
        self.assertEqual(buffered_octets(transport), 6)
        transport.write(b"ab")
        self.assertEqual(buffered_octets(transport), 8)

    def test_wrapped(self) -> None:
        """A wrapper has no buffer of its own: that of the transport below is counted."""
        transport = FileDescriptor()
        transport.dataBuffer = b"0123"
        wrapper = ProtocolWrapper(WrappingFactory(Factory.forProtocol(Protocol)), Protocol())
        wrapper.transport = transport
        self.assertEqual(buffered_octets(wrapper), 4)

    def test_unknown(self) -> None:
        """A transport that is no file descriptor does not tell."""
        self.assertIsNone(buffered_octets(StringTransport()))


class Switch(typing.Protocol):
    """The inputs of a machine."""

    def toggle(self) -> None:
        """Change."""


class MachineStateTests(SynchronousTestCase):
    """Tests for machine_state."""

    def test_state(self) -> None:
        """It is the new state from the moment an input is handled, in its action already."""
        seen: list[str] = []

        class Lamp:
            def note(self) -> None:
                seen.append(machine_state(machine))

        rows = ("off", Switch.toggle, "on", Lamp.note), ("on", Switch.toggle, "off", Lamp.note)
        machine = build_machine(Switch, Lamp, "off", rows)(Lamp())
        self.assertEqual(machine_state(machine), "off")
        machine.toggle()
        machine.toggle()
        self.assertEqual((seen, machine_state(machine)), (["on", "off"], "off"))


class Interpreter(SynchronousTestCase):
    """A new interpreter runs a script; for what a process does only once."""

    def run_script(self, script: str, *options: str) -> list[str]:
        """Return the lines that a script prints."""
        command = [sys.executable, *options, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()


class LogBegunTests(Interpreter):
    """Tests for is_log_begun."""

    def test_begun(self) -> None:
        """Logging has not begun before beginLoggingTo is called, and has then."""
        script = """
from twisted.logger import globalLogBeginner
from novasvc._compat import is_log_begun
print(is_log_begun())
globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
print(is_log_begun())
"""
        self.assertEqual(self.run_script(script), ["False", "True"])


class AlchimiaTests(SynchronousTestCase):
    """Tests for import_alchimia."""

    def test_deferred(self) -> None:
        """Work is done by a worker, and its outcome reaches the Deferred when it is delivered, and not before."""
        engine, defer_to_worker = import_alchimia()
        self.assertEqual(engine.__name__, "TwistedEngine")
        queued: list[Any] = []

        class Worker:
            def do(self, work: Any) -> None:
                work()

        for work, check in (
            (lambda value: value + 1, lambda waiter: self.assertEqual(self.successResultOf(waiter), 2)),
            (lambda value: value / 0, lambda waiter: self.failureResultOf(waiter, ZeroDivisionError)),
        ):
            waiter = defer_to_worker(queued.append, Worker(), work, 1)
            self.assertNoResult(waiter)
            queued.pop()()
            check(waiter)


class JSONTests(SynchronousTestCase):
    """Tests for json_encoder and json_scanner."""

    def test_encoder(self) -> None:
        """Values are encoded as by the encoder's own method, unknown types included, and each time from the start."""
        encoder = json.JSONEncoder(default=lambda value: [type(value).__name__])
        encode = json_encoder(encoder)
        assert encode is not None, "this Python has no C accelerator for json"
        value = {"text": 'a"\u20ac', "list": [1, 2.5, None, True, float("nan"), 2**80], "object": object(), "empty": {}}
        for _ in range(2):
            self.assertEqual("".join(encode(value, 0)), encoder.encode(value))

    def test_circle(self) -> None:
        """A circular value ends in RecursionError."""
        encode = json_encoder(json.JSONEncoder())
        assert encode is not None
        value: list[Any] = []
        value.append(value)
        self.assertRaises(RecursionError, encode, value, 0)

    def test_scanner(self) -> None:
        """A value is decoded from an index on, and the index after it is told."""
        scan = json_scanner()
        text = 'x{"a": [1, "\u20ac"]} rest'
        self.assertEqual(scan(text, 1), ({"a": [1, "\u20ac"]}, text.index(" rest")))
        self.assertRaises(StopIteration, scan, text, 0)
        self.assertRaises(ValueError, scan, '{"a"', 0)


class InterpreterOptionsTests(Interpreter):
    """Tests for interpreter_options."""

    def test_passed_on(self) -> None:
        """A child that is given the options has the same optimisation, warning filters and -X options."""
        options = "-O", "-W", "error::ImportWarning", "-X", "utf8=1", "-B"
        script = (
            "import json\nfrom novasvc._compat import interpreter_options\nprint(json.dumps(interpreter_options()))"
        )
        (found,) = self.run_script(script, *options)
        shown = "import sys\nprint(sys.flags)\nprint(sys.warnoptions, sys._xoptions['utf8'])"
        self.assertEqual(self.run_script(shown, *json.loads(found)), self.run_script(shown, *options))


class ExitFunctionsTests(Interpreter):
    """Tests for run_exit_functions."""

    def test_called(self) -> None:
        """Registered functions are called in reverse order, an exception in one does not keep back the others."""
        script = """
import atexit, os, sys
from novasvc._compat import run_exit_functions
atexit.register(print, "first")
atexit.register(lambda: 1 / 0)
atexit.register(print, "last")
run_exit_functions()
sys.stdout.flush()
os._exit(0)
"""
        self.assertEqual(self.run_script(script), ["last", "first"])


class ElsewhereTests(SynchronousTestCase):
    """Tests for the other modules of the package."""

    def test_imports(self) -> None:
        """No other module imports a private name of another package; ruff's SLF001 finds attributes."""
        package = Path(_compat.__file__).parent
        found = [
            f"{path.relative_to(package)}: {node.module}.{name.name}"
            for path in package.rglob("*.py")
            if path.name != "_compat.py"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("novasvc", "__"))
            for name in node.names
            if name.name.startswith("_")
        ]
        self.assertEqual(found, [])
