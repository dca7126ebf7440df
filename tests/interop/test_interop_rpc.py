import tempfile
import time
from math import inf, pi
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    NoSuchMethodError,
    RemoteError,
    RPCTimeoutError,
    ServiceNotFoundError,
    UnsupportedVersionError,
)
from tests.interop.peer import InteropCase, Peer, PeerError
from tests.support.keys import KeyRing

CONTEXT = RequestContext(request_id="req-1", user_id="u1")
VALUES = {
    "text": 'é 漢字 😀 "\\ \n\x00\x7f\u2028',
    "names": {"ключ": [], "": None},
    "numbers": [0, -1, 2**63, 10**40, pi, 1e300, inf, -inf],
    "deep": [[[[[[{"a": [True, False, None]}]]]]]],
}
DISPATCHER = "oslo_messaging.rpc.dispatcher"
REMOTE_ERROR = "oslo_messaging.rpc.client.RemoteError"


class OwnError(Exception):
    """An error that only this side knows."""


class Ours:
    """What we serve, much as the peer does."""

    def __init__(self, name: str = "ours") -> None:
        self.name = name
        self.noted: list[Any] = []
        self.context: RequestContext | None = None
        self.contexts: list[RequestContext] = []
        self.hanging: list[Deferred[str]] = []

    @rpc.expose
    def echo(self, context: RequestContext, value: Any) -> Any:
        return value

    @rpc.expose(version="1.3", idempotent=True)
    def note(self, context: RequestContext, what: Any = None) -> str:
        self.noted.append(what)
        self.context = context
        return self.name

    @rpc.expose(expected=(ValueError, ServiceNotFoundError, OwnError))
    async def fail(self, context: RequestContext, kind: str) -> None:
        raise {
            "builtin": ValueError("bad value é", 7),
            "known": ServiceNotFoundError("é"),
            "own": OwnError("ours alone", 7),
        }[kind]

    @rpc.expose
    def hang(self, context: RequestContext) -> Deferred[str]:
        self.contexts.append(context)
        self.hanging.append(Deferred())
        return self.hanging[-1]

    @rpc.expose(namespace="laboratory", version="2.1")
    def measure(self, context: RequestContext, value: Any) -> list[Any]:
        return ["laboratory", value]


class CallsByPeerTests(InteropCase):
    """A client written with oslo.messaging, and our server."""

    async def served(self, *modules: str) -> tuple[Ours, Peer]:
        """Start a server of ours, and connect the peer.

        :param modules: whose errors the peer rebuilds.
        """
        ours = Ours()
        await self.we_serve(ours)
        return ours, await self.peer(modules)

    async def test_values(self) -> None:
        """A call's arguments and its result arrive as they were sent."""
        _, peer = await self.served()
        self.assertEqual(await peer.call("echo", value=VALUES), VALUES)
        self.assertIsNone(await peer.call("echo", value=None))
        self.assertEqual(await peer.call("echo", value=False), False)

    async def test_large(self) -> None:
        """Bodies of many frames arrive whole."""
        _, peer = await self.served()
        for value in ("é" * 70_000, "é" * 400_000, "x" * 5_000_000):
            self.assertTrue(await peer.call("echo", value=value) == value)

    async def test_server(self) -> None:
        """A call to a server reaches that one of several."""
        for name in ("h1", "h2"):
            await self.we_serve(Ours(name), name)
        peer = await self.peer()
        for name in ("h2", "h1", "h2"):
            self.assertEqual(await peer.call("note", target={"server": name}), name)

    async def test_cast(self) -> None:
        """A cast is run, though nobody is answered."""
        ours, peer = await self.served()
        await peer.cast("note", what="cast")
        await peer.cast("note", target={"server": "ours"}, what="to a server")
        await self.until(lambda: ours.noted == ["cast", "to a server"])

    async def test_fanout(self) -> None:
        """A fanout is run by each server, once."""
        all_of_us = [Ours(name) for name in ("h1", "h2")]
        for one in all_of_us:
            await self.we_serve(one, one.name)
        peer = await self.peer()
        await peer.cast("note", target={"fanout": True}, what="all")
        await self.until(lambda: all(one.noted for one in all_of_us))
        self.assertEqual([one.noted for one in all_of_us], [["all"], ["all"]])

    async def test_many(self) -> None:
        """Calls in flight at a time get each its own reply."""
        _, peer = await self.served()
        replies = await gatherResults([peer.call("echo", value=number) for number in range(100)])
        self.assertEqual(replies, list(range(100)))

    async def test_versions(self) -> None:
        """Versions up to the interface's are served, and a call that names none is."""
        _, peer = await self.served()
        for version in (None, "1.0", "1.2", "1.2.9", "1.3"):
            self.assertEqual(await peer.call("echo", target={"version": version}, value=1), 1)
        for version in ("1.4", "1.3.5", "2.0", "0.9"):
            error = await self.assertFailure(peer.call("echo", target={"version": version}, value=1), PeerError)
            self.assertEqual((error.kind, error.exc_type), (REMOTE_ERROR, "UnsupportedVersion"))

    async def test_namespaces(self) -> None:
        """A namespace is an interface by itself."""
        _, peer = await self.served()
        laboratory = {"namespace": "laboratory", "version": "2.0"}
        self.assertEqual(await peer.call("measure", target=laboratory, value=1), ["laboratory", 1])
        for method, target, refusal in (
            ("measure", {}, "NoSuchMethod"),
            ("echo", laboratory, "NoSuchMethod"),
            ("measure", {"namespace": "office"}, "UnsupportedVersion"),
            ("measure", {"namespace": "laboratory"}, "UnsupportedVersion"),
        ):
            error = await self.assertFailure(peer.call(method, target=target, value=1), PeerError)
            self.assertEqual(error.exc_type, refusal)

    async def test_refusals(self) -> None:
        """A client that allows the dispatcher's errors gets them as its own."""
        _, peer = await self.served(DISPATCHER)
        error = await self.assertFailure(peer.call("nothing"), PeerError)
        self.assertIn(f"{DISPATCHER}.NoSuchMethod", error.bases)
        self.assertIn("nothing", error.text)
        error = await self.assertFailure(peer.call("echo", target={"version": "1.4"}, value=1), PeerError)
        self.assertIn(f"{DISPATCHER}.UnsupportedVersion", error.bases)
        self.assertIn("1.4", error.text)

    async def test_private(self) -> None:
        """What is not exposed does not exist for it."""
        _, peer = await self.served()
        for method in ("__init__", "_seen", "hanging", "name"):
            error = await self.assertFailure(peer.call(method), PeerError)
            self.assertEqual(error.exc_type, "NoSuchMethod")

    async def test_arguments(self) -> None:
        """Arguments that the method does not take are refused with their names."""
        _, peer = await self.served()
        error = await self.assertFailure(peer.call("echo", valeu=1), PeerError)
        self.assertEqual((error.kind, error.exc_type), (REMOTE_ERROR, "InvalidArgumentsError"))
        self.assertIn("valeu", str(error.value))

    async def test_python_error(self) -> None:
        """An exception of Python's own is raised there as itself."""
        _, peer = await self.served()
        error = await self.assertFailure(peer.call("fail", kind="builtin"), PeerError)
        self.assertEqual(error.kind, "builtins.ValueError")
        self.assertIn("bad value é", error.text)

    async def test_error_allowed(self) -> None:
        """An error of ours is raised there as itself, if its module is allowed."""
        _, peer = await self.served("novasvc.errors")
        error = await self.assertFailure(peer.call("fail", kind="known"), PeerError)
        self.assertEqual(error.kind, "novasvc.errors_Remote.ServiceNotFoundError_Remote")
        self.assertIn("novasvc.registry.errors.ServiceNotFoundError", error.bases)
        self.assertIn(str(ServiceNotFoundError("é")), error.text)

    async def test_error_not_allowed(self) -> None:
        """Any other error is raised there as a RemoteError with its class and its text."""
        _, peer = await self.served()
        for kind, name, text in (
            ("known", "ServiceNotFoundError", str(ServiceNotFoundError("é"))),
            ("own", "OwnError", "('ours alone', 7)"),
        ):
            error = await self.assertFailure(peer.call("fail", kind=kind), PeerError)
            self.assertEqual((error.kind, error.exc_type, error.value), (REMOTE_ERROR, name, text))

    async def test_draining(self) -> None:
        """A server that drains refuses what belongs to nothing there, and serves what bears an operation's id."""
        ours = Ours()
        server = await self.we_serve(ours)
        for modules, kind in (
            ((), REMOTE_ERROR),
            (("novasvc.errors",), "novasvc.errors_Remote.ServiceDrainingError_Remote"),
        ):
            peer = await self.peer(modules)
            if not ours.hanging:
                hanging = peer.call("hang", target={"server": "ours"}, context={"request_id": "req-7"})
                await self.until(lambda: ours.hanging)
                await server.drain()
            refused = peer.call("echo", target={"server": "ours"}, context={"request_id": "req-8"}, value=1)
            error = await self.assertFailure(refused, PeerError)
            self.assertEqual(error.kind, kind)
            self.assertIn("ours is draining", error.text)
            served = peer.call("echo", target={"server": "ours"}, context={"request_id": "req-7"}, value=1)
            self.assertEqual(await served, 1)
        ours.hanging[0].callback("done")
        self.assertEqual(await hanging, "done")

    async def test_context(self) -> None:
        """The entries of its context are those of ours, and of what ours passes on."""
        ours, peer = await self.served()
        entries = {
            "request_id": "req-7",
            "user_id": "u1",
            "project_id": "p1",
            "is_admin": True,
            "roles": ["member", "é"],
            "auth_token": None,
        }
        await peer.call("note", context=entries)
        context = ours.context
        assert context is not None
        self.assertEqual(
            (context.request_id, context.user_id, context.project_id, context.is_admin), ("req-7", "u1", "p1", True)
        )
        self.assertEqual(context.extra, {"roles": ["member", "é"], "auth_token": None})
        self.assertEqual(context.to_wire(), entries)

    async def test_deadline(self) -> None:
        """The method knows until when its caller waits, and of a cast that nobody does."""
        ours, peer = await self.served()
        called_at = reactor.seconds()
        await peer.call("note", options={"timeout": 7})
        assert ours.context is not None
        assert ours.context.deadline is not None
        self.assertTrue(called_at < ours.context.deadline <= reactor.seconds() + 7)
        await peer.cast("note", what="cast")
        await self.until(lambda: "cast" in ours.noted)
        self.assertIsNone(ours.context.deadline)

    async def test_timeout(self) -> None:
        """A call that takes too long ends with its own error there, and a method that nobody waits for is ended."""
        ours, peer = await self.served()
        error = await self.assertFailure(peer.call("hang", options={"timeout": 1}), PeerError)
        # Both measure the time: either is first.
        self.assertIn(
            error.exc_type or error.kind, ("oslo_messaging.exceptions.MessagingTimeout", "MethodTimeoutError")
        )
        await self.until(lambda: ours.hanging[0].called)

    async def test_nobody(self) -> None:
        """A call that nobody serves ends with its timeout there."""
        peer = await self.peer()
        error = await self.assertFailure(peer.call("echo", value=1, options={"timeout": 1}), PeerError)
        self.assertEqual(error.kind, "oslo_messaging.exceptions.MessagingTimeout")

    async def test_expired(self) -> None:
        """A call whose caller has given up while nobody served is not run any more; a cast is."""
        ours = Ours()
        server = await self.we_serve(Ours())
        await server.close()
        peer = await self.peer()
        await self.assertFailure(peer.call("note", what="call", options={"timeout": 1}), PeerError)
        await peer.cast("note", what="cast")
        await self.we_serve(ours)
        await self.until(lambda: ours.noted)
        self.assertEqual(ours.noted, ["cast"])

    async def test_call_monitor(self) -> None:
        """A call that runs longer than the client is patient without a sign of life gets its result."""
        ours, peer = await self.served()
        calling = peer.call("hang", options={"timeout": 10, "call_monitor_timeout": 2})
        await self.until(lambda: ours.hanging)
        await deferLater(reactor, 2.5)
        ours.hanging[0].callback("let go")
        self.assertEqual(await calling, "let go")

    async def test_progress(self) -> None:
        """What a method reports of its progress is a heartbeat of the call for the client, and nothing else."""
        ours, peer = await self.served()
        calling = peer.call("hang", options={"timeout": 10, "call_monitor_timeout": 2})
        await self.until(lambda: ours.contexts)
        before = self.process.log()
        for number in range(6):
            await deferLater(reactor, 0.5)
            ours.contexts[0].progress(number / 6, "copying")
        ours.hanging[0].callback("let go")
        self.assertEqual(await calling, "let go")
        self.assertEqual(self.process.log(), before)

    async def test_progress_not_monitored(self) -> None:
        """A client that asked for no heartbeats is sent no report, which it would not understand."""
        ours, peer = await self.served()
        calling = peer.call("hang")
        await self.until(lambda: ours.contexts)
        ours.contexts[0].progress(0.5, "copying")
        ours.hanging[0].callback("let go")
        self.assertEqual(await calling, "let go")

    async def test_ping(self) -> None:
        """What every service of OpenStack answers is answered."""
        await self.we_serve(rpc.BaseAPI("compute"))
        peer = await self.peer()
        target = {"namespace": "baseapi", "version": "1.0"}
        self.assertEqual(await peer.call("ping", target=target, arg=1), {"service": "compute", "arg": 1})
        target["version"] = "1.1"
        self.assertIsNone(await peer.call("get_backdoor_port", target=target))


class CallsToPeerTests(InteropCase):
    """Our client, and a server written with oslo.messaging."""

    async def served(self) -> tuple[str, rpc.Client]:
        """Start a server of the peer's, and make a client of ours."""
        return await self.peer_serves(), await self.our_client()

    async def test_values(self) -> None:
        """A call's arguments and its result arrive as they were sent."""
        _, client = await self.served()
        self.assertEqual(await client.call(CONTEXT, "echo", value=VALUES), VALUES)
        self.assertIsNone(await client.call(CONTEXT, "echo", value=None))
        self.assertEqual(await client.call(CONTEXT, "echo", value=False), False)

    async def test_large(self) -> None:
        """Bodies of many frames arrive whole."""
        _, client = await self.served()
        for value in ("é" * 70_000, "é" * 400_000, "x" * 5_000_000):
            self.assertTrue(await client.call(CONTEXT, "echo", value=value) == value)

    async def test_server(self) -> None:
        """A call to a server reaches that one of several."""
        peer = await self.peer()
        names = [await self.peer_serves(peer) for _ in range(2)]
        client = await self.our_client()
        for name in (*names, *names):
            self.assertEqual(await client.prepare(server=name).call(CONTEXT, "note"), name)

    async def test_cast(self) -> None:
        """A cast is run, though nobody is answered."""
        name, client = await self.served()
        await client.cast(CONTEXT, "note", what="cast")
        self.assertEqual(await self.process.report(name), {"what": "cast"})
        await client.prepare(server=name).cast(CONTEXT, "note", what="to a server")
        self.assertEqual(await self.process.report(name), {"what": "to a server"})

    async def test_fanout(self) -> None:
        """A fanout is run by each server, once."""
        peer = await self.peer()
        names = [await self.peer_serves(peer) for _ in range(2)]
        client = await self.our_client()
        await client.fanout(CONTEXT, "note", what="all")
        for name in names:
            self.assertEqual(await self.process.report(name), {"what": "all"})
            await client.prepare(server=name).call(CONTEXT, "note", what="the next")
            self.assertEqual(await self.process.report(name), {"what": "the next"})

    async def test_many(self) -> None:
        """Calls in flight at a time get each its own reply."""
        _, client = await self.served()
        replies = await gatherResults([client.call(CONTEXT, "echo", value=number) for number in range(100)])
        self.assertEqual(replies, list(range(100)))

    async def test_versions(self) -> None:
        """Versions up to the interface's are served, and a call that names none is."""
        _, client = await self.served()
        for version in (None, "1.0", "1.2", "1.2.9", "1.3"):
            self.assertEqual(await client.prepare(version=version).call(CONTEXT, "echo", value=1), 1)
        for version in ("1.4", "1.3.5", "2.0", "0.9"):
            calling = client.prepare(version=version).call(CONTEXT, "echo", value=1)
            error = await self.assertFailure(calling, UnsupportedVersionError)
            self.assertEqual((error.version, error.method), (version, "echo"))

    async def test_namespaces(self) -> None:
        """A namespace is an interface by itself."""
        _, client = await self.served()
        laboratory = client.prepare(namespace="laboratory", version="2.0")
        self.assertEqual(await laboratory.call(CONTEXT, "measure", value=1), ["laboratory", 1])
        error = await self.assertFailure(laboratory.call(CONTEXT, "echo", value=1), NoSuchMethodError)
        self.assertEqual(error.method, "echo")
        calling = client.prepare(namespace="office").call(CONTEXT, "measure", value=1)
        await self.assertFailure(calling, UnsupportedVersionError)

    async def test_no_such_method(self) -> None:
        """A method that it does not have is refused with the error that we have for it."""
        _, client = await self.served()
        error = await self.assertFailure(client.call(CONTEXT, "nothing"), NoSuchMethodError)
        self.assertEqual(error.method, "nothing")

    async def test_python_error(self) -> None:
        """An exception of Python's own is raised here as itself, and shows where it was raised."""
        _, client = await self.served()
        error = await self.assertFailure(client.call(CONTEXT, "fail", kind="builtin"), ValueError)
        self.assertEqual((type(error), error.args), (ValueError, ("bad value é", 7)))
        self.assertIn("oslo_peer.py", "".join(error.__notes__))
        error = await self.assertFailure(client.call(CONTEXT, "echo", valeu=1), TypeError)
        self.assertIn("valeu", str(error))

    async def test_other_error(self) -> None:
        """Any other error is raised here as a RemoteError with its class, its text and its traceback."""
        _, client = await self.served()
        for kind, name, text in (("own", "PeerError", "('ours alone', 7)"), ("signal", "StopIteration", "over")):
            error = await self.assertFailure(client.call(CONTEXT, "fail", kind=kind), RemoteError)
            self.assertEqual((error.exc_type, error.value), (name, text))
            self.assertIn("oslo_peer.py", "".join(error.traceback))

    async def test_context(self) -> None:
        """The entries of our context, and of what it passes on, are those of its own."""
        _, client = await self.served()
        context = RequestContext(
            request_id="req-7", user_id="u1", project_id="p1", is_admin=True, extra={"roles": ["member", "é"]}
        )
        self.assertEqual(
            await client.call(context, "context"),
            {
                "request_id": "req-7",
                "user_id": "u1",
                "project_id": "p1",
                "is_admin": True,
                "roles": ["member", "é"],
                "client_timeout": None,  # its server's own
            },
        )

    async def test_timeout(self) -> None:
        """A call that takes too long ends with our timeout, and its late reply is passed over."""
        name, client = await self.served()
        error = await self.assertFailure(client.prepare(timeout=0.5).call(CONTEXT, "hang"), RPCTimeoutError)
        self.assertEqual((error.method, error.silent), ("hang", False))
        self.assertEqual(await self.process.report(name), {"what": "hanging"})
        await self.process.ask("let_go")
        await self.until(lambda: client.unmatched_replies == 1)
        self.assertEqual(await client.call(CONTEXT, "echo", value=1), 1)

    async def test_options(self) -> None:
        """What our client asks beside a call is ignored: for reports of progress, retries, a cancellation."""
        _, client = await self.served()
        reports: list[Any] = []
        asking = client.prepare(
            idempotent=True,
            retry=rpc.Retry(),
            on_progress=lambda *report: reports.append(report),
            call_monitor_timeout=10,
        )
        self.assertEqual(await asking.call(CONTEXT, "echo", value=1), 1)
        self.assertEqual(reports, [])

    async def test_cancelled(self) -> None:
        """A cancellation does not reach the server: the method goes on, and nothing is logged."""
        name, client = await self.served()
        before = self.process.log()
        calling = client.call(CONTEXT, "hang")
        self.assertEqual(await self.process.report(name), {"what": "hanging"})
        calling.cancel()
        await self.assertFailure(calling, CancelledError)
        await self.process.ask("let_go")
        await self.until(lambda: client.unmatched_replies == 1)
        self.assertEqual(await client.call(CONTEXT, "echo", value=1), 1)
        self.assertEqual(self.process.log(), before)

    async def test_gather(self) -> None:
        """A gather is answered by servers of theirs and by ours; theirs do not say their host."""
        name, client = await self.served()
        await self.we_serve(Ours(), server="ours")
        gathering = client.prepare(timeout=2).gather(CONTEXT, "note", what="to all")
        gathered = await gathering.all()
        self.assertEqual(await self.process.report(name), {"what": "to all"})
        self.assertEqual(gathered.results, {None: name, "ours": "ours"})
        self.assertEqual(gathered.missing, None)

    async def test_gather_errors(self) -> None:
        """An error of a server of theirs is an answer, too."""
        _, client = await self.served()
        gathered = await client.prepare(timeout=1).gather(CONTEXT, "fail", kind="builtin").all()
        ((host, error),) = gathered.errors.items()
        self.assertEqual((host, type(error)), (None, ValueError))

    async def test_call_monitor(self) -> None:
        """A call that runs longer than our client is patient without a sign of life gets its result."""
        name, client = await self.served()
        calling = client.prepare(timeout=None, call_monitor_timeout=2).call(CONTEXT, "hang")
        self.assertEqual(await self.process.report(name), {"what": "hanging"})
        await deferLater(reactor, 2.5)
        await self.process.ask("let_go")
        self.assertEqual(await calling, "let go")


class SignedTests(InteropCase):
    """Signatures of ours, and the peer, which knows nothing of them."""

    async def test_signed(self) -> None:
        """The peer serves a signed call as any other; its own calls are refused where a signature is needed."""
        ring = KeyRing(Path(tempfile.mkdtemp(dir=self.directory())), time.time, "shop")

        class Closed:
            @rpc.expose(allow="shop")
            def close(self, context: RequestContext) -> str:
                return "closed"

        peer = await self.peer(modules=["novasvc.errors"])
        await self.peer_serves(peer, f"{self.topic}-peer")
        await self.serve(None, self.topic, "ours", diary=Closed(), authorizer=ring.authorizer())
        client = rpc.Client(await self.connect(), clock=reactor, timeout=20.0, signer=ring.signer("shop"))
        self.addCleanup(client.close)
        self.assertEqual(await client.prepare(topic=f"{self.topic}-peer").call(CONTEXT, "echo", value=VALUES), VALUES)
        self.assertEqual(await client.prepare(topic=self.topic).call(CONTEXT, "close"), "closed")
        error = await self.assertFailure(peer.call("close"), PeerError)
        self.assertIn("novasvc.rpc.errors.NotAllowedError", error.bases)

    def directory(self) -> str:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        return temporary.name
