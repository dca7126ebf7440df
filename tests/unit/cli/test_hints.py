"""Tests for novasvc.cli.hints; tests/e2e/test_mistakes.py has the errors of real nodes."""

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.hints import CallFailedError, argument_names, explained
from novasvc.cli.reactor import run_on_reactor
from novasvc.cli.registry import with_registry
from novasvc.cli.thread_reactor import ThreadReactor
from novasvc.config import Settings, load
from novasvc.errors import InvalidArgumentsError, NoSuchMethodError, RPCTimeoutError, UnsupportedVersionError
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.record import ServiceChanges
from novasvc.registry.sql.migrate import create
from novasvc.rpc.target import Target

STOCK = Target("stock", "h1")
ROWS = [
    {"method": "reserve", "namespace": None, "version": "1.2", "signature": "(item: str, amount: int = 1) -> str"},
    {"method": "sweep", "namespace": "admin", "version": "2.0", "signature": "()"},
    {"method": "ping", "namespace": "baseapi", "version": "1.1", "signature": "(arg)"},
]


class FakeClient:
    """Answers ``interface`` with rows, or fails."""

    def __init__(self, rows: list[dict[str, Any]] | None) -> None:
        self.rows = rows

    def prepare(self, **_changes: Any) -> "FakeClient":
        return self

    def call(self, _context: object, method: str) -> Deferred[Any]:
        assert method == "interface"
        return fail(RPCTimeoutError("stock", method, 1.0)) if self.rows is None else succeed({"methods": self.rows})


class ExplainedTests(SynchronousTestCase):
    def text(self, error: Any, method: str, rows: list[dict[str, Any]] | None, **arguments: Any) -> str:
        """Return the explained text; "" if the error stays as it is."""
        explaining = explained(error, Settings(), FakeClient(rows), None, STOCK, (method, arguments))
        result = self.successResultOf(Deferred.fromCoroutine(explaining))
        if result is error:
            return ""
        self.assertIsInstance(result, CallFailedError)
        return str(result)

    def test_method(self) -> None:
        """A method is suggested, or all are listed; one of another interface is called with its namespace."""
        error = NoSuchMethodError("reserv")
        self.assertEqual(
            self.text(error, "reserv", ROWS),
            "stock.h1 exposes no method 'reserv'; did you mean 'reserve'? `novasvc describe stock.h1` lists all",
        )
        self.assertIn("it has: reserve. Check the name", self.text(NoSuchMethodError("paint"), "paint", ROWS))
        self.assertIn("with --namespace admin --version 2.0", self.text(NoSuchMethodError("sweep"), "sweep", ROWS))
        unserved = UnsupportedVersionError("9.0", "reserve")
        self.assertIn("; call it with --version 1.2", self.text(unserved, "reserve", ROWS))
        self.assertIn("decorate the methods of its manager", self.text(error, "reserv", ROWS[2:]))

    def test_arguments(self) -> None:
        """Misspelt arguments are corrected; those of a call within the method are not the caller's."""
        error = InvalidArgumentsError("reserve", "missing: item; unknown: itm")
        self.assertIn("; did you mean item=?; it takes (item: str", self.text(error, "reserve", ROWS, itm="tea"))
        self.assertEqual(self.text(InvalidArgumentsError("other", "missing: x"), "reserve", ROWS), "")

    def test_unknown(self) -> None:
        """A service that does not describe itself, such as one of oslo.messaging, leaves the error as it is."""
        for error in (NoSuchMethodError("x"), InvalidArgumentsError("x", "missing: y")):
            for rows in (None, []):
                self.assertEqual(self.text(error, "x", rows), "")
        unconfirmed = RPCTimeoutError("stock", "x", 1.0, unconfirmed="the broker has not confirmed it yet")
        self.assertEqual(self.text(unconfirmed, "x", ROWS), "")

    def test_down(self) -> None:
        """A timeout says that the service is down, although the registry's answer came too late for the call itself."""
        url = f"sqlite:///{self.mktemp()}"
        create(url)
        settings = load((), {}, {"database-url": url}).settings

        async def register(registry: IServiceRegistry) -> None:
            record = await registry.register("h1", "novasvc-stock", "stock", 0)
            await registry.update(record.id, ServiceChanges(forced_down=True))

        async def explain(reactor: Any) -> str:
            error = RPCTimeoutError(str(STOCK), "reserve", 1.0)
            return str(await explained(error, settings, FakeClient(None), reactor, STOCK, ("reserve", {})))

        with_registry(settings, register)
        text = run_on_reactor(explain, ThreadReactor())
        self.assertIn("according to the registry the only such service is down or still starting", text)

    def test_control_characters(self) -> None:
        """Names from another host are escaped."""
        rows = [{"method": "a\x1b[2J", "namespace": None, "version": "1.0", "signature": "()"}]
        self.assertIn(r"it has: a\x1b[2J", self.text(NoSuchMethodError("paint"), "paint", rows))

    def test_many_methods(self) -> None:
        """Of many methods the first ones are named."""
        rows = [{**ROWS[0], "method": f"m{number:02}"} for number in range(20)]
        self.assertIn(", m06, m07 and 12 more. Check", self.text(NoSuchMethodError("paint"), "paint", rows))

    def test_arguments_of_signatures(self) -> None:
        """Names of arguments are read from any signature."""
        for signature, expected in (
            ("()", []),
            ("(item: str, amount: int = 1) -> dict[str, int]", ["item", "amount"]),
            ("(a, *, note: str = 'b: c, d=', **rest)", ["a", "note"]),
            ("(a: dict[str, int] = {}, b='it\\'s, c=')", ["a", "b"]),
        ):
            self.assertEqual(argument_names(signature), expected, signature)
