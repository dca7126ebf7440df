"""TLS to the broker: who it is not, is refused with the reason, and nobody is spoken to in clear instead."""

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.trial.unittest import TestCase

from novasvc import rpc
from novasvc.config.transport_url import BrokerAddress
from novasvc.context import RequestContext
from novasvc.errors import BrokerRefusedError, BrokerUnavailableError, SettingError
from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, BrokerOptions
from tests.servers import shared_broker, vhost_url
from tests.servers.certificates import Identity


class Recorder(Protocol):
    """Answers nothing, and keeps what it gets."""

    received = b""

    def dataReceived(self, data: bytes) -> None:
        type(self).received += data


class TLSCase(TestCase):
    def setUp(self) -> None:
        self.broker = shared_broker()
        self.certificates = self.broker.certificates
        self.plain = vhost_url(self)

    def url(self, *, host: str = "localhost", port: int | None = None, scheme: str = "amqps") -> str:
        vhost = self.plain.rpartition("/")[2]
        return f"{scheme}://guest:guest@{host}:{port or self.broker.tls_port}/{vhost}"

    def transport(self, url: str, *, tls: bool = False, **given: Any) -> AMQPTransport:
        options = BrokerOptions(**{"ssl_ca_file": self.certificates.ca, "connect_timeout": 5.0, **given})
        transport = AMQPTransport(BrokerAddress.parse(url, tls=tls), reactor=reactor, options=options)
        self.addCleanup(transport.close)
        return transport

    def serve(self, identity: Identity) -> int:
        """Be a server of TLS with another certificate, that would wait for AMQP."""
        factory = Factory.forProtocol(type("Heard", (Recorder,), {}))
        self.heard = factory.protocol
        context = DefaultOpenSSLContextFactory(str(identity.key), str(identity.certificate), SSL.TLS_SERVER_METHOD)
        port = reactor.listenSSL(0, factory, context, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return port.getHost().port

    async def refused(self, transport: AMQPTransport, kind: type = BrokerRefusedError) -> str:
        return str(await self.assertFailure(transport.open(), kind))


class AcceptedTests(TLSCase):
    async def calls(self, transport: AMQPTransport) -> None:
        """Make a call all the way and back."""

        class Echo:
            @rpc.expose
            def echo(self, context: RequestContext, value: Any) -> Any:
                return value

        await transport.open()
        target = Target("secure", "h")
        server = rpc.Server(transport, target, rpc.Endpoints(Echo()), clock=reactor, run_blocking=None)
        await server.start()
        client = rpc.Client(transport, clock=reactor, timeout=5, target=target)
        self.assertEqual(await client.call(RequestContext(), "echo", value="é" * 200_000), "é" * 200_000)
        client.close()
        await server.stop_consuming()
        await server.close()

    async def test_by_name(self) -> None:
        """A broker whose authority is trusted is spoken to."""
        await self.calls(self.transport(self.url()))

    async def test_by_address(self) -> None:
        """So is one that is named by its address."""
        await self.calls(self.transport(self.url(host="127.0.0.1")))

    async def test_by_setting(self) -> None:
        """rabbit: with the setting for TLS speaks it, too."""
        await self.calls(self.transport(self.url(scheme="rabbit"), tls=True))

    async def test_own_certificate(self) -> None:
        """A certificate of our own is shown to the broker."""
        client = self.certificates.client
        await self.calls(
            self.transport(self.url(), ssl_cert_file=client.certificate, ssl_key_file=client.key),
        )


class RefusedTests(TLSCase):
    async def test_unknown_authority(self) -> None:
        """A certificate of an authority that is not trusted is refused, with the setting that would trust it."""
        text = await self.refused(self.transport(self.url(), ssl_ca_file=self.certificates.other_ca))
        self.assertIn("signed by an unknown authority; set rabbit_ssl_ca_file to the authority's certificate", text)

    async def test_system_authorities(self) -> None:
        """Without a file the system's authorities are trusted, and no other."""
        text = await self.refused(self.transport(self.url(), ssl_ca_file=None))
        self.assertIn("signed by an unknown authority", text)

    async def test_other_host(self) -> None:
        """A certificate for another host is refused."""
        port = self.serve(self.certificates.misnamed)
        text = await self.refused(self.transport(self.url(port=port)))
        self.assertIn("is for elsewhere.example, not for localhost", text)
        self.assertEqual(self.heard.received, b"")

    async def test_expired(self) -> None:
        """A certificate that has expired is refused, and when it did is said."""
        port = self.serve(self.certificates.expired)
        text = await self.refused(self.transport(self.url(port=port)))
        self.assertRegex(text, r"expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC")
        self.assertEqual(self.heard.received, b"")

    async def test_plain_port(self) -> None:
        """A port that speaks no TLS is refused, and is not spoken to in clear."""
        text = await self.refused(self.transport(self.url(port=self.broker.port)))
        self.assertIn("does not speak TLS", text)

    async def test_never_in_clear(self) -> None:
        """Whoever answers nonsense to the beginning of TLS gets nothing else."""

        class Nonsense(Recorder):
            def connectionMade(self) -> None:
                self.transport.write(b"AMQP\x00\x00\x09\x01")

        port = reactor.listenTCP(0, Factory.forProtocol(Nonsense), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        await self.refused(self.transport(self.url(port=port.getHost().port)))
        self.assertTrue(Nonsense.received.startswith(b"\x16\x03"))
        for secret in (b"AMQP", b"guest"):
            self.assertNotIn(secret, Nonsense.received)

    async def test_tls_port(self) -> None:
        """amqp: to a port that speaks TLS is refused, with the scheme to use."""
        text = await self.refused(self.transport(self.url(scheme="amqp")), BrokerUnavailableError)
        self.assertIn("the port speaks TLS; use amqps://", text)

    async def test_files(self) -> None:
        """Files that cannot be used are named at once, with their settings."""
        here, client = Path.cwd(), self.certificates.client
        (here / "empty.pem").touch()
        (here / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        own = {"ssl_cert_file": client.certificate, "ssl_key_file": client.key}
        for given, setting, reason in (
            ({"ssl_ca_file": here / "none.pem"}, "rabbit_ssl_ca_file", "No such file"),
            ({"ssl_ca_file": here / "empty.pem"}, "rabbit_ssl_ca_file", "no readable PEM certificate"),
            ({"ssl_ca_file": here / "broken.pem"}, "rabbit_ssl_ca_file", "no readable PEM certificate"),
            ({**own, "ssl_cert_file": here / "none.pem"}, "rabbit_ssl_cert_file", "No such file"),
            ({**own, "ssl_key_file": client.certificate}, "rabbit_ssl_key_file", "no unencrypted PEM private key"),
            ({**own, "ssl_key_file": self.certificates.server.key}, "rabbit_ssl_key_file", "or not the key of"),
        ):
            text = await self.refused(self.transport(self.url(), **given), SettingError)
            self.assertIn(setting, text)
            self.assertIn(reason, text)
