"""WSGIService: from a paste configuration to answers, and back."""

import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from zope.interface.verify import verifyObject

from novasvc.errors import (
    AppError,
    BrokerUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    ListenError,
    ManagerError,
    SettingError,
    StartError,
)
from novasvc.interfaces import IExitRequester, IPreforkable, IStartable
from novasvc.node.paste import Loader
from novasvc.node.runtime import SharedConnection
from novasvc.run.services import deployments, make_parts
from novasvc.service import WSGIService
from novasvc.testing import MemoryRegistry
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.workers.reports import waited_for
from tests.servers.certificates import Certificates
from tests.support.http_rig import GET, LAST, ask, connect
from tests.support.pickling import carried
from tests.support.waiting import until
from tests.support.wsgi_rig import Noting, WSGICase, events


class ServedTests(WSGICase):
    async def test_life(self) -> None:
        """It loads its application, serves it on a port that it knows, and ends."""
        service = self.make()
        for interface in (IService, IStartable, IPreforkable):
            verifyObject(interface, service)
        self.assertEqual((service.state, service.port, events), ("initial", None, []))
        await service.start()
        self.assertGreater(service.port or 0, 0)
        (answer,) = await ask(service.port or 0)
        self.assertEqual(answer.body, b"hello by http")
        ended = service.wait()
        await service.stop()
        await ended
        self.assertEqual(service.state, "stopped")

    async def test_again(self) -> None:
        """It can be started again when it has stopped."""
        service = self.make("brave")
        for _ in range(2):
            await service.start()
            (answer,) = await ask(service.port or 0)
            self.assertEqual(answer.body, b"good morning by http")
            service.reset()
            await service.stop()

    async def test_as_a_part(self) -> None:
        """As a part of an application it binds with the rights that there are, and starts later."""
        service = self.make()
        service.privilegedStartService()
        port = service.port
        self.assertIsNotNone(port)
        service.startService()
        await service.when_started()
        self.assertEqual(service.port, port)
        await service.stopService()

    async def test_managers_process(self) -> None:
        """The manager is made where the API is served: at the start, or when a worker gets it."""
        service = self.make(hello_manager="tests.support.wsgi_rig.NoSuchManager")
        await self.assertFailure(service.start(), StartError)
        self.assertRaises(ManagerError, carried, service, reactor)

    async def test_manager(self) -> None:
        """The manager's hooks are called around the start, and around the end."""
        service = self.make(hello_manager=f"{Noting.__module__}.Noting")
        await service.start()
        self.assertEqual(events, ["load", "init_host", "pre_start_hook", "post_start_hook"])
        await service.stop()
        self.assertEqual(events[4:], ["cleanup_host"])

    def make_without_servers(self, **options: Any) -> tuple[WSGIService, dict[str, Exception], MemoryRegistry]:
        """Make a service whose broker and database are away until an error is deleted, and an outage ends."""
        registry = MemoryRegistry(reactor)
        registry.outage = DatabaseUnavailableError("memory:", "away")
        away: dict[str, Exception] = {"broker": BrokerUnavailableError("memory:", "away")}

        class Transport(MemoryTransport):
            def open(self) -> Deferred[None]:
                return fail(away["broker"]) if away else super().open()

        runtime = attrs.evolve(
            self.runtime(hello_manager=f"{Noting.__module__}.Noting", **options),
            broker=SharedConnection("broker", lambda: Transport(MemoryBroker(), clock=reactor)),
            database=SharedConnection("database", lambda: registry),
            retry=lambda _: 0.01,
        )
        service = WSGIService("hello", runtime=runtime)
        self.addCleanup(service.stop)
        return service, away, registry

    async def test_outages(self) -> None:
        """With a manager the start waits for broker and database, says which, and goes on when they are back."""
        service, away, registry = self.make_without_servers()
        starting = service.start()
        await until(lambda: waited_for(service) == "broker")
        away.clear()
        await until(lambda: waited_for(service) == "database")
        self.assertEqual(events, ["load"])
        registry.outage = None
        await starting
        self.assertIsNone(waited_for(service))
        self.assertEqual(events, ["load", "init_host", "pre_start_hook", "post_start_hook"])

    async def test_stop_during_an_outage(self) -> None:
        """A stop ends the wait."""
        service, _, _ = self.make_without_servers()
        starting = service.start()
        await until(lambda: service.waiting_for == "broker")
        await service.stop()
        await self.assertFailure(starting, Exception)
        self.assertIsNone(service.waiting_for)

    async def test_fail_fast(self) -> None:
        """With fail_fast an outage ends the start."""
        service, _, _ = self.make_without_servers(fail_fast=True)
        await self.assertFailure(service.start(), StartError)

    async def test_manager_that_leaves(self) -> None:
        """A SystemExit of cleanup_host is the status of the process; the other steps of the stop still run."""
        service = self.make(hello_manager=f"{Noting.__module__}.Noting")
        await service.start()
        self.patch(Noting, "cleanup_host", lambda _: sys.exit(3))
        await service.stop()
        leaving = IExitRequester(service).leaving
        assert leaving is not None
        self.assertEqual((leaving.code, service.runtime.broker._users), (3, 0))

    async def test_own_loader(self) -> None:
        """The application may come from another loader."""

        class Loading:
            def load_app(self, name: str) -> Any:
                def app(environ: Any, start: Any) -> list[bytes]:
                    start("200 OK", [])
                    return [name.encode()]

                return app

        service = WSGIService("mine", Loading(), runtime=self.runtime())
        self.addCleanup(service.stop)
        await service.start()
        self.assertEqual((await ask(service.port or 0))[0].body, b"mine")

    async def test_limits(self) -> None:
        """The limits are those of the settings, and the longest URL that of the constructor."""
        service = self.make(max_url_len=20, max_header_line=300, max_request_body_size=5)
        await service.start()
        port = service.port or 0
        put = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"
        for status, request in (
            (414, LAST.replace(b"/ ", b"/" + b"x" * 20 + b" ")),
            (431, LAST[:-2] + b"A: " + b"x" * 300 + b"\r\n\r\n"),
            (413, put),
        ):
            self.assertEqual([answer.status for answer in await ask(port, request)], [status])

    async def test_keepidle(self) -> None:
        """Connections of clients are probed when they are silent."""
        service = self.make(tcp_keepidle=77)
        await service.start()
        caller = await connect(service.port or 0)
        caller.transport.write(GET)
        await caller.until(b"hello")
        (channel,) = service._site.channels
        accepted = channel.transport.getHandle()
        self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 77)
        caller.transport.loseConnection()
        await caller.gone

    async def test_preforked(self) -> None:
        """Copies that were pickled serve on the same socket, each with an application of its own."""
        service = self.make()
        opened = service.open_sockets(())
        for listening in opened:
            self.addCleanup(listening.close)
        for _ in range(2):
            copy: WSGIService = carried(service, reactor)
            self.addCleanup(copy.stop)
            copy.adopt_sockets([socket.socket(fileno=os.dup(listening.fileno())) for listening in opened])
            await copy.start()
            self.assertEqual(copy.port, service.port)
            self.assertEqual((await ask(service.port or 0))[0].body, b"hello by http")
            await copy.stop()
        self.assertEqual(events, ["load", "load"])

    async def test_drained(self) -> None:
        """What is under way when it stops is answered, and nothing new is accepted."""
        service = self.make()
        await service.start()
        port = service.port or 0
        caller = await connect(port)
        caller.transport.write(GET[:-2])
        while not service._site.channels:
            await deferToThread(lambda: None)
        stopped = service.stop()
        caller.transport.write(b"\r\n")
        await caller.gone
        self.assertIn(b"Connection: close", caller.data)
        self.assertIn(b"hello", caller.data)
        await stopped


class RefusedTests(WSGICase):
    def problem(self, kind: type[Exception], *args: Any, **options: Any) -> str:
        return str(self.assertRaises(kind, self.make, *args, **options))

    def test_paste(self) -> None:
        """A paste configuration that is not there, is none, or has no such application, is named."""
        self.assertIn("api-paste.ini: there is no such application in it; it has: brave", self.problem(AppError, "x"))
        self.paste.write_text("oops")
        self.assertIn("it is not a paste configuration", self.problem(AppError))
        self.paste.write_text("")
        self.assertIn("write a section [app:hello]", self.problem(AppError))
        self.paste.unlink()
        self.assertIn(f"application 'hello' of {self.paste}: the file cannot be read", self.problem(AppError))

    async def test_broken(self) -> None:
        """An application that cannot be made fails the start; the error says what was raised, and where."""
        service = self.make("broken")
        failed = await self.assertFailure(service.start(), StartError)
        self.assertIn("loading it raised RuntimeError: no room", str(failed))
        self.assertEqual(service.state, "failed")

    async def test_port(self) -> None:
        """A port that is taken fails the start."""
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        service = self.make(hello_listen_port=taken.getsockname()[1])
        failed = await self.assertFailure(service.start(), StartError)
        self.assertIn("Address already in use", str(failed))
        self.assertRaises(ListenError, service.open_sockets, ())

    def test_workers(self) -> None:
        """The number of workers is that of the processors, or what is set, which is at least one."""
        self.assertEqual(self.make().workers, os.cpu_count())
        self.assertEqual(self.make(hello_workers=3).workers, 3)
        self.assertIn("NOVASVC_HELLO_WORKERS", str(self.assertRaises(ConfigurationError, self.make, hello_workers=0)))

    def test_certificates(self) -> None:
        """TLS without a certificate and its own key is refused; the setting and the file are named."""
        made = Certificates(Path("tls").absolute())
        server, client = made.server, made.client
        nothing = Path("nothing").absolute()
        nothing.write_text("nothing")

        def problem(**files: Path) -> str:
            options = {f"ssl_{name}_file": path for name, path in files.items()}
            return str(self.assertRaises(SettingError, self.make, use_ssl=True, **options))

        self.assertIn("ssl_cert_file (from nowhere): TLS needs a certificate", problem())
        gone = Path("gone").absolute()
        for files, expected in (
            ({"cert": gone, "key": server.key}, f"ssl_cert_file = '{gone}'"),
            ({"cert": server.certificate, "key": gone}, f"ssl_key_file = '{gone}'"),
            ({"cert": nothing, "key": server.key}, "it contains no PEM certificate"),
            ({"cert": server.certificate, "key": nothing}, "it contains no PEM private key without"),
            ({"cert": server.certificate, "key": client.key}, "or not the key of"),
            ({"cert": server.certificate, "key": server.key, "ca": nothing}, f"ssl_ca_file = '{nothing}'"),
        ):
            self.assertIn(expected, problem(**files))


class TLSTests(WSGICase):
    def setUp(self) -> None:
        super().setUp()
        self.made = Certificates(Path("tls").absolute())

    def fetch(self, port: int, context: ssl.SSLContext) -> Deferred[bytes]:
        def get() -> bytes:
            with urlopen(f"https://127.0.0.1:{port}/", context=context, timeout=10) as answer:
                return bytes(answer.read())

        return deferToThread(get)

    async def test_served(self) -> None:
        """An application is served over TLS, and knows that."""
        made = self.made
        service = self.make(use_ssl=True, ssl_cert_file=made.server.certificate, ssl_key_file=made.server.key)
        await service.start()
        context = ssl.create_default_context(cafile=str(made.ca))
        context.set_alpn_protocols(["h2", "http/1.1"])
        self.assertEqual(await self.fetch(service.port or 0, context), b"hello by https")

    async def test_clients(self) -> None:
        """With ssl_ca_file, clients need a certificate of those who are trusted."""
        made = self.made
        files = {"ssl_cert_file": made.server.certificate, "ssl_key_file": made.server.key, "ssl_ca_file": made.ca}
        service = self.make(use_ssl=True, **files)
        await service.start()
        context = ssl.create_default_context(cafile=str(made.ca))
        await self.assertFailure(self.fetch(service.port or 0, context), OSError)
        context.load_cert_chain(made.stranger.certificate, made.stranger.key)
        await self.assertFailure(self.fetch(service.port or 0, context), OSError)
        context = ssl.create_default_context(cafile=str(made.ca))
        context.load_cert_chain(made.client.certificate, made.client.key)
        self.assertEqual(await self.fetch(service.port or 0, context), b"hello by https")

    async def test_refused_clients(self) -> None:
        """The log says who could not speak TLS with us, and why."""
        made = self.made
        made.server.key.chmod(0o644)
        told: list[str] = []

        def tell(event: LogEvent) -> None:
            told.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(tell)
        self.addCleanup(globalLogPublisher.removeObserver, tell)
        files = {"ssl_cert_file": made.server.certificate, "ssl_key_file": made.server.key, "ssl_ca_file": made.ca}
        service = self.make(use_ssl=True, **files)
        self.assertIn(f"ssl_key_file {made.server.key} is readable by all users of this host; chmod 600 it", told)
        await service.start()
        context = ssl.create_default_context(cafile=str(made.ca))
        await self.assertFailure(self.fetch(service.port or 0, context), OSError)
        await self.assertFailure(self.fetch(service.port or 0, context), OSError)
        told = [line for line in told if "TLS with" in line]
        self.assertEqual(told, ["hello: TLS with 127.0.0.1 failed: peer did not return a certificate"])

    async def test_carried(self) -> None:
        """A copy in a worker has the certificate that was read, whatever the files are by then."""
        made = self.made
        files = {"ssl_cert_file": made.server.certificate, "ssl_key_file": made.server.key, "ssl_ca_file": made.ca}
        service = self.make(use_ssl=True, **files)
        made.server.certificate.write_text("something else")
        made.server.key.unlink()
        made.ca.rename(made.ca.with_name("old"))
        copy = carried(service, reactor)
        self.addCleanup(copy.stop)
        await copy.start()
        context = ssl.create_default_context(cafile=str(made.ca.with_name("old")))
        context.load_cert_chain(made.client.certificate, made.client.key)
        self.assertEqual(await self.fetch(copy.port or 0, context), b"hello by https")
        self.assertRaises(SettingError, self.make, use_ssl=True, **files)

    async def test_drained(self) -> None:
        """Idle connections do not hold up the end, under TLS as well."""
        made = self.made
        service = self.make(use_ssl=True, ssl_cert_file=made.server.certificate, ssl_key_file=made.server.key)
        await service.start()
        idle = await connect(service.port or 0)
        while not service._site.channels:
            await deferToThread(lambda: None)
        began = reactor.seconds()
        await service.stop()
        await idle.gone
        self.assertLess(reactor.seconds() - began, 5)

    async def test_drained_pool(self) -> None:
        """Nor does a connection that a client keeps for later, and on which it does not see the end."""
        made = self.made
        service = self.make(use_ssl=True, ssl_cert_file=made.server.certificate, ssl_key_file=made.server.key)
        await service.start()
        context = ssl.create_default_context(cafile=str(made.ca))

        def ask() -> ssl.SSLSocket:
            kept = context.wrap_socket(
                socket.create_connection(("127.0.0.1", service.port or 0), 10), server_hostname="127.0.0.1"
            )
            kept.sendall(GET)
            answer = b""
            while b"hello by https" not in answer:
                answer += kept.recv(4096)
            return kept

        with await deferToThread(ask):
            began = reactor.seconds()
            await service.stop()
        self.assertLess(reactor.seconds() - began, 8)


class EnabledTests(WSGICase):
    def test_alone(self) -> None:
        """In one process the enabled_apis are beside the nodes, those of enabled_ssl_apis over TLS."""
        made = Certificates(Path("tls").absolute())
        settings = self.settings(
            enabled_apis="hello, brave",
            enabled_ssl_apis="brave",
            ssl_cert_file=made.server.certificate,
            ssl_key_file=made.server.key,
        )
        parts = [part for part in make_parts(settings, reactor, ()) if isinstance(part, WSGIService)]
        self.assertEqual([(part.name, part.use_ssl) for part in parts], [("hello", False), ("brave", True)])

    def test_supervised(self) -> None:
        """Under a supervisor each is a server with processes of its own."""
        settings = self.settings(enabled_apis="hello,brave", brave_workers=5, transport_url="memory:")
        wrappers = {wrapper.server.name: wrapper.workers for wrapper in deployments(settings, reactor)}
        self.assertEqual(wrappers, {"novasvc-agent": 1, "hello": os.cpu_count(), "brave": 5})
        self.assertEqual(deployments(self.settings(enabled_apis="hello"), reactor), [])

    def test_loader(self) -> None:
        """Nova's loader has its place and its names."""
        self.assertTrue(callable(Loader(self.paste).load_app("hello")))
