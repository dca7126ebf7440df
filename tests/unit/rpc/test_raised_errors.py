"""Errors on their way through services: order.buy on h1 calls stock.reserve on h2, and a client calls both."""

import traceback
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import InvalidArgumentsError, NoSuchMethodError, RemoteError
from novasvc.rpc.failures.error_classes import WireName, error_classes
from novasvc.rpc.failures.origin import Origin
from novasvc.rpc.message import encode_failure, unwrap
from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport

CONTEXT = RequestContext(request_id="req-1")
STOCK = Origin(topic="stock", method="reserve", host="h2", worker=3, request_id="req-1")
ORDER = Origin(topic="order", method="buy", host="h1", request_id="req-1")
BOTH = Origin(topic="stock", method="reserve", host="h2", worker=3, request_id="req-1", through=(ORDER,))


@rpc.error
class OutOfStock(Exception):  # noqa: N818 - a user's
    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"only {left} {item} left")
        self.item, self.left = item, left


class Retired(OutOfStock):
    """Not registered by itself."""

    def __init__(self, item: str) -> None:
        super().__init__(item, 0)
        self.since = 2025


@rpc.error
class Broken(OutOfStock):
    """Registered by itself."""

    def __init__(self, item: str) -> None:
        super().__init__(item, 0)


class Unregistered(Exception):  # noqa: N818 - as above
    pass


class Stock:
    @rpc.expose(expected=(OutOfStock,))
    def reserve(self, context: RequestContext, item: str, amount: int = 1) -> str:
        if item == "lamp":
            raise KeyError(item)
        if item == "cup":
            raise Unregistered("no cups", 7)
        if item == "jar":
            raise Retired(item)
        if item == "mug":
            raise Broken(item)
        if amount > 2:
            raise OutOfStock(item, 2)
        if amount < 0:
            raise InvalidArgumentsError("reserve", "amount: expected a positive number")
        return f"{amount} {item}"


class Order:
    """Passes on whatever it is told to call."""

    def __init__(self, client: rpc.Client) -> None:
        self.client = client
        self.timeout = 5.0

    @rpc.expose
    async def buy(self, context: RequestContext, method: str = "reserve", topic: str = "stock", **args: Any) -> Any:
        return await self.client.prepare(topic=topic, timeout=self.timeout).call(context, method, **args)

    @rpc.expose
    async def reserve(self, context: RequestContext, item: str) -> Any:
        """Have the name of what is called, and send what JSON cannot hold."""
        return await self.client.prepare(topic="stock").call(context, "reserve", item=object())


class PassedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.client = rpc.Client(self.transport(), clock=self.clock)
        self.order = Order(rpc.Client(self.transport(), clock=self.clock))
        self.serve(Target("stock", "h2"), Stock(), worker=3)
        self.serve(Target("order", "h1"), self.order)
        self.addCleanup(self.flushLoggedErrors)  # each server logs what its methods raise

    def transport(self) -> MemoryTransport:
        return MemoryTransport(self.broker, clock=self.clock)

    def serve(self, target: Target, endpoint: object, **given: Any) -> rpc.Server:
        server = rpc.Server(
            self.transport(), target, rpc.Endpoints(endpoint), clock=self.clock, run_blocking=lambda f: f(), **given
        )
        self.successResultOf(server.start())
        return server

    def call(self, topic: str, method: str, /, **args: Any) -> Deferred[Any]:
        calling = self.client.prepare(topic=topic).call(CONTEXT, method, **args)
        self.clock.pump([0] * 10)
        return calling

    def raised(self, topic: str, method: str, /, **args: Any) -> Any:
        """Make a call that fails; return its error."""
        return self.failureResultOf(self.call(topic, method, **args)).value

    def remote(self, topic: str, method: str, /, **args: Any) -> RemoteError:
        """Make a call that fails with a RemoteError; return it."""
        error = self.raised(topic, method, **args)
        assert type(error) is RemoteError, repr(error)
        return error


class OriginTests(PassedCase):
    def test_direct(self) -> None:
        """Each error says the service that raised it, in a note and by origin_of: registered, built-in and refusal."""
        for args, kind in (
            ({"item": "tea", "amount": 3}, OutOfStock),
            ({"item": "lamp"}, KeyError),
            ({"itm": "tea"}, InvalidArgumentsError),
        ):
            error = self.raised("stock", "reserve", **args)
            self.assertEqual((type(error), rpc.origin_of(error)), (kind, STOCK))
            shown = "".join(traceback.format_exception(error))
            self.assertIn("Raised by stock.reserve on h2 worker 3; request req-1", shown)
        error = self.raised("stock", "nothing")
        self.assertEqual(type(error), NoSuchMethodError)
        self.assertEqual(str(rpc.origin_of(error)), "stock.nothing on h2 worker 3; request req-1")

    def test_remote_error(self) -> None:
        """A RemoteError has its origin in its text, and a note that says how to register its class."""
        error = self.remote("stock", "reserve", item="cup")
        self.assertEqual(
            str(error), "remote error: Unregistered ('no cups', 7) (from stock.reserve on h2 worker 3; request req-1)"
        )
        self.assertEqual((error.module, rpc.origin_of(error)), (__name__, STOCK))
        self.assertEqual(
            error.__notes__,
            [f"To have it raised as itself, register {__name__}.Unregistered in this process with rpc.error"],
        )

    def test_local(self) -> None:
        """An error that was raised here has no origin."""
        for error in (self.raised("nobody", "x"), self.raised("stock", "reserve", item=object()), ValueError()):
            self.assertIsNone(rpc.origin_of(error))

    def test_older_server(self) -> None:
        """For a server that does not tell its origin, it is what the caller knows."""
        requests: list[Any] = []
        transport = self.transport()
        self.successResultOf(transport.listen(Target("old", "h3"), requests.append, 1))
        calling = self.client.prepare(topic="old", server="h3").call(CONTEXT, "work")
        self.clock.pump([0] * 5)
        fields = unwrap(requests[0].body)
        body = encode_failure(fields["_msg_id"], '{"class": "KeyError", "module": "builtins"}')
        self.successResultOf(transport.reply(fields["_reply_q"], body))
        self.clock.pump([0] * 5)
        error = self.failureResultOf(calling).value
        self.assertEqual(str(rpc.origin_of(error)), "old.work on h3; request req-1")


class RegisteredTests(PassedCase):
    def test_raised(self) -> None:
        """A registered error is raised as itself, with its attributes."""
        error = self.raised("stock", "reserve", item="tea", amount=3)
        self.assertEqual((type(error), error.item, error.left, str(error)), (OutOfStock, "tea", 2, "only 2 tea left"))

    def test_derived(self) -> None:
        """An unregistered class that is derived from a registered one is raised as that, so that except finds it."""
        error = self.raised("stock", "reserve", item="jar")
        self.assertEqual((type(error), error.item, error.since), (OutOfStock, "jar", 2025))
        self.assertIn(
            f"Raised as its base class: {__name__}.Retired is not registered in this process", error.__notes__
        )

    def test_through(self) -> None:
        """Through a service, a registered error stays itself; the origin names the service."""
        error = self.raised("order", "buy", item="tea", amount=3)
        self.assertEqual((type(error), error.left, rpc.origin_of(error)), (OutOfStock, 2, BOTH))
        self.assertEqual(
            [note for note in error.__notes__ if "Raised" in note],
            ["Raised by stock.reserve on h2 worker 3, through order.buy on h1; request req-1"],
        )

    def test_derived_between(self) -> None:
        """A service that knows only the base class of an error passes the error on to a caller that knows more."""
        received: list[Any] = []

        class Between:
            def __init__(self, client: rpc.Client) -> None:
                self.client = client.prepare(topic="stock")

            @rpc.expose
            async def buy(self, context: RequestContext, item: str) -> Any:
                forgotten = error_classes._classes.pop(WireName(__name__, "Broken"))
                try:
                    await self.client.call(context, "reserve", item=item)
                except OutOfStock as error:
                    received.append(error)
                    raise
                finally:
                    error_classes.add(forgotten)

        self.serve(Target("between", "h1"), Between(self.order.client))
        error = self.raised("between", "buy", item="mug")
        self.assertEqual((type(received[0]), type(error), error.item), (OutOfStock, Broken, "mug"))
        self.assertEqual(str(error), str(Broken("mug")))

    def test_unregistered_between(self) -> None:
        """A service that did not register an error passes it on to a caller that did."""
        seen: list[Exception] = []
        call = self.order.client.prepare(topic="stock").call

        async def buy(context: RequestContext, **args: Any) -> Any:
            classes = error_classes._classes
            known = {WireName(__name__, kind.__name__): kind for kind in (OutOfStock, Broken)}
            for name in known:
                del classes[name]
            calling = call(context, "reserve", **args)
            calling.addErrback(lambda failure: seen.append(failure.value) or failure)  # type: ignore[func-returns-value]
            try:
                return await calling
            finally:
                classes.update(known)

        class Between:
            @rpc.expose
            def buy(self, context: RequestContext, item: str, amount: int = 1) -> Any:
                return buy(context, item=item, amount=amount)

        self.serve(Target("between", "h1"), Between())
        error = self.raised("between", "buy", item="tea", amount=3)
        self.assertIsInstance(seen[0], RemoteError)
        self.assertEqual((type(error), error.left), (OutOfStock, 2))
        error = self.raised("between", "buy", item="mug")
        self.assertIsInstance(seen[1], RemoteError)
        self.assertEqual((type(error), error.item), (Broken, "mug"))


class ErrorOfErrorTests(PassedCase):
    def test_one_name(self) -> None:
        """A RemoteError that a method lets through keeps class, module and text, however often."""
        direct = self.remote("stock", "reserve", item="cup")
        once = self.remote("order", "buy", item="cup")
        twice = self.remote("order", "buy", topic="order", method="buy", item="cup")
        for error in (once, twice):
            self.assertEqual(
                (error.exc_type, error.module, error.value), (direct.exc_type, direct.module, direct.value)
            )
        self.assertEqual(rpc.origin_of(once), BOTH)
        self.assertEqual(
            str(once),
            "remote error: Unregistered ('no cups', 7) (from stock.reserve on h2 worker 3, through order.buy on h1; "
            "request req-1)",
        )

    def test_builtin(self) -> None:
        """A built-in exception stays one."""
        error = self.raised("order", "buy", item="lamp")
        self.assertEqual((type(error), error.args, rpc.origin_of(error)), (KeyError, ("lamp",), BOTH))

    def test_refusals(self) -> None:
        """What is wrong with a call that a method made is not taken for what is wrong with the call of the method."""
        for args, name, text in (
            ({"itm": "tea"}, "InvalidArgumentsError", "invalid arguments for 'reserve': missing: item; unknown: itm"),
            ({"method": "nothing"}, "NoSuchMethodError", "the service exposes no method 'nothing'"),
            ({"item": "tea", "amount": -1}, "InvalidArgumentsError", "amount: expected a positive number"),
        ):
            error = self.remote("order", "buy", **args)
            self.assertEqual((error.exc_type, error.module), (name, "novasvc.rpc.errors"))
            self.assertIn(text, error.value)
            self.assertIn("on h2 worker 3, through order.buy on h1; request req-1", str(error))

    def test_not_sent(self) -> None:
        """The same for a call that a method could not send, or to which no reply came."""
        error = self.remote("order", "buy", topic="nobody")
        self.assertEqual((error.exc_type, rpc.origin_of(error)), ("UndeliverableError", ORDER))
        self.assertIn("no server for nobody", error.value)
        error = self.remote("order", "reserve", item="tea")
        self.assertEqual(error.exc_type, "InvalidArgumentsError")
        self.assertIn("(from order.reserve on h1; request req-1)", str(error))

    def test_timeout(self) -> None:
        """A call within a method that times out is the method's."""

        class Slow:
            @rpc.expose
            def wait(self, context: RequestContext) -> Deferred[Any]:
                return Deferred()

        self.serve(Target("slow", "h4"), Slow())
        calling = self.call("order", "buy", topic="slow", method="wait")
        self.clock.advance(5)
        self.clock.pump([0] * 5)
        error = self.failureResultOf(calling, RemoteError).value
        # The server of the slow method measures the same time, and either may be first.
        self.assertIn(error.exc_type, ("RPCTimeoutError", "MethodTimeoutError"))
        self.assertIn("order.buy on h1; request req-1", str(error))

    def test_own_refusal(self) -> None:
        """A method may refuse its own arguments."""
        error = self.raised("stock", "reserve", item="tea", amount=-1)
        self.assertEqual((type(error), error.problem), (InvalidArgumentsError, "amount: expected a positive number"))

    def test_logged(self) -> None:
        """The log of the service in between says which service raised the error."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.raised("order", "buy", item="lamp")
        (where,) = [event["where"] for event in events if event.get("method") == "buy"]
        self.assertTrue(where.endswith(".Order.buy; raised by stock.reserve on h2 worker 3; request req-1"), where)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)
