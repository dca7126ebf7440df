"""Tests for novasvc.rpc.contracts.stub."""

import dataclasses
from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, InvalidArgumentsError, MessageFormatError
from novasvc.rpc.blocking import BlockingClient
from tests.support.rpc_rig import CONTEXT, RPCCase


@dataclasses.dataclass
class Line:
    item: str
    amount: int = 1


class Shop:
    """The service."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.packed = 0

    @rpc.expose
    def order(self, context: RequestContext, lines: list[Line], note: str = "") -> Line:
        self.calls.append((lines, note))
        return lines[0]

    @rpc.expose
    def note(self, context: RequestContext, text: str) -> None:
        self.calls.append(text)

    @rpc.expose(idempotent=True, expected=(ConnectionError,))
    def pack(self, context: RequestContext, line: Line) -> Deferred[None]:
        self.packed += 1
        context.progress(0.5, line.item)
        if self.packed == 1:
            raise ConnectionError
        return Deferred()

    @rpc.expose
    def count(self, context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return "seven"


class ShopAPI(Protocol):
    """The service, as callers see it."""

    def order(self, context: RequestContext, lines: list[Line], note: str = "") -> Deferred[Line]: ...

    def note(self, context: RequestContext, text: str) -> None: ...

    def count(self, context: RequestContext) -> Awaitable[int]: ...

    def missing(self, context: RequestContext) -> Deferred[None]: ...

    def pack(self, context: RequestContext, line: Line) -> Deferred[None]: ...


class StubTests(RPCCase):
    def make_endpoint(self) -> Any:
        return Shop()

    def setUp(self) -> None:
        super().setUp()
        self.shop = rpc.stub(ShopAPI, self.client)

    def done(self, calling: Any) -> Any:
        self.clock.advance(0)
        return self.successResultOf(calling)

    def test_call(self) -> None:
        """Arguments are given by place or by name, and converted to JSON; the result is of the annotated type."""
        self.assertEqual(self.done(self.shop.order(CONTEXT, [Line("tea", 2)], note="x")), Line("tea", 2))
        self.assertEqual(self.diary.calls, [([Line("tea", 2)], "x")])

    def test_prepared(self) -> None:
        """A stub calls as its client does, with retries and reports of progress; a cancellation reaches the method."""
        reports: list[Any] = []
        client = self.client.prepare(
            idempotent=True,
            retry=rpc.Retry(attempts=2, on=(ConnectionError,), backoff=lambda _: 1.0),
            on_progress=lambda *report: reports.append(report),
        )
        packing = rpc.stub(ShopAPI, client)
        calling: Any = packing.pack(CONTEXT, Line("tea"))
        for seconds in (0, 0, 1, 0, 0, 0):
            self.clock.advance(seconds)
        self.assertEqual((self.diary.packed, reports), (2, [(0.5, "tea")] * 2))
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(self.server.in_flight, 0)

    def test_forwarded(self) -> None:
        """An object that was itself made of an argument is sent with all its fields."""
        sent: list[dict[str, Any]] = []

        class Recorder:
            def call(self, context: RequestContext, method: str, /, **args: Any) -> Deferred[Any]:
                sent.append(args)
                return succeed({"item": "tea"})

        client: Any = Recorder()
        received = msgspec.convert({"item": "tea"}, Line)
        rpc.stub(ShopAPI, client).order(CONTEXT, [received])
        self.assertEqual(sent, [{"lines": [{"item": "tea", "amount": 1}]}])

    def test_cast(self) -> None:
        """A method that returns None at once is cast."""
        self.shop.note(CONTEXT, "a")
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, ["a"])

    def test_wrong_result(self) -> None:
        """A result of another type is an error."""
        calling: Any = self.shop.count(CONTEXT)
        self.clock.advance(0)
        error = self.failureResultOf(calling, MessageFormatError).value
        self.assertIn("the result of 'count' is not of the type that the interface says", str(error))

    def test_refused(self) -> None:
        """Arguments that do not fit the interface fail at once; a service that differs refuses."""
        self.assertRaises(TypeError, self.shop.order, CONTEXT)  # type: ignore[call-arg]
        self.assertRaises(AttributeError, getattr, self.shop, "ordr")
        for wrong in (("tea",), ()):
            error = self.assertRaises(TypeError, self.shop.note, *wrong)
            self.assertIn("its first argument is a RequestContext: write note(context, text=...)", str(error))
        error = self.assertRaises(TypeError, self.shop.note, "tea", "cup")
        self.assertIn("note() takes a RequestContext first, not 'tea'; write note(context, text=...)", str(error))
        calling = self.shop.note(CONTEXT, 7)  # type: ignore[arg-type, func-returns-value]
        self.clock.advance(0)
        self.assertIsNone(self.successResultOf(calling))  # type: ignore[arg-type]
        self.assertEqual(self.diary.calls, [])
        wrong: Any = self.shop.order(CONTEXT, [Line(7)])  # type: ignore[arg-type]
        self.clock.advance(0)
        self.failureResultOf(wrong, InvalidArgumentsError)

    def test_not_json(self) -> None:
        """An argument that JSON cannot hold is an error of the call, which names it; nothing is sent."""
        endless: list[Any] = []
        endless.append(endless)
        for note, problem in (
            (object(), "note: TypeError: object is not JSON serializable"),
            (endless, "note: RecursionError"),
        ):
            sending: Any = self.shop.order(CONTEXT, [], note=note)  # type: ignore[arg-type]
            error = self.failureResultOf(sending, InvalidArgumentsError).value
            self.assertIn(problem, str(error))
            self.assertFalse(hasattr(error, "__notes__"))  # that the interface may differ from the service
            sending = self.shop.note(CONTEXT, note)  # type: ignore[arg-type,func-returns-value]
            self.failureResultOf(sending, InvalidArgumentsError)
        blocking: Any = rpc.stub(ShopAPI, BlockingClient(self.client, reactor=self.clock))
        self.assertRaises(InvalidArgumentsError, blocking.order, CONTEXT, [], note=object())
        self.assertEqual(self.diary.calls, [])

    def test_no_context(self) -> None:
        """An interface whose method takes no context is refused."""

        class Wrong(Protocol):
            def count(self) -> Deferred[int]: ...

        error = self.assertRaises(DeclarationError, rpc.stub, Wrong, self.client)
        self.assertIn("it takes no context", str(error))
