"""Tests for novasvc._compat: the private parts of other packages are where it expects them, and do what it says."""

import zlib
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import HTTPChannel
from twisted.web.resource import EncodingResourceWrapper, Resource
from twisted.web.server import GzipEncoderFactory

from novasvc._compat import buffered_octets, machine_state, set_request_in_progress
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

    def test_unknown(self) -> None:
        """A transport that is no file descriptor does not tell."""
        self.assertIsNone(buffered_octets(StringTransport()))


class Switch(Protocol):
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
