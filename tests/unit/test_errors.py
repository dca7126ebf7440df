"""How errors are written for those who read them."""

import asyncio
import importlib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, errors, periodic_task, rpc
from novasvc.errors import (
    ConfigurationError,
    DeclarationError,
    ListenError,
    NovasvcError,
    ProblemError,
    RPCTimeoutError,
    SettingError,
    StartError,
    add_remedy,
    describe,
)
from novasvc.rpc import event, expose
from novasvc.testing import FleetMixin


class DescribeTests(SynchronousTestCase):
    """Tests for novasvc.errors.describe."""

    def test_place(self) -> None:
        """What was raised is said in one line, with the file, line and function that raised it."""
        error = self.assertRaises(ValueError, self.stumble)
        self.assertRegex(describe(error), r"^ValueError: two lines \(.*test_errors.py:\d+ in stumble\)$")

    def stumble(self) -> None:
        raise ValueError("two\nlines")

    def test_syntax(self) -> None:
        """A syntax error is said with its own file, line and text, not with that of the import."""
        error = self.assertRaises(SyntaxError, compile, "x = 1\nclass Stock(:\n", "shop.py", "exec")
        self.assertEqual(describe(error), "SyntaxError: invalid syntax (shop.py:2: class Stock(:)")

    def test_wrong_use(self) -> None:
        """An error of ours is said with the line that used novasvc wrongly."""

        def declare() -> None:
            expose(timeout=-1)(declare)

        error = self.assertRaises(DeclarationError, declare)
        self.assertRegex(describe(error), r"\(.*test_errors.py:\d+ in declare\)$")

    def test_no_such_name(self) -> None:
        """A name that a module of ours does not have is said with the line that used it, and what was meant."""

        def declare() -> None:
            rpc.exposed  # type: ignore[attr-defined]  # noqa: B018

        error = self.assertRaises(AttributeError, declare)
        self.assertRegex(
            describe(error),
            r"^AttributeError: module 'novasvc.rpc' has no attribute 'exposed'; did you mean 'expose'\? "
            r"\(.*test_errors.py:\d+ in declare\)$",
        )

    def test_secrets(self) -> None:
        """A password in a URL is masked, whoever wrote it into the text."""
        text = describe(ValueError("no way to postgresql://u:s3cret@h/d"))
        self.assertNotIn("s3cret", text)
        self.assertIn("postgresql://u:***@h/d", text)
        text = describe(ValueError("no way to postgresql://u@srv:s3cret@h/d, nor to http://h:80/a@b"))
        self.assertIn("postgresql://u@srv:***@h/d, nor to http://h:80/a@b", text)


class RemedyTests(FleetMixin, SynchronousTestCase):
    """Tests for novasvc.errors.add_remedy."""

    class Sleeper(Manager):
        """Waits by asyncio, in each kind of method."""

        @expose
        async def call(self, context: RequestContext) -> None:
            await asyncio.sleep(1)

        @event("bed.made")
        async def handle(self, context: RequestContext, payload: Any) -> None:
            await asyncio.sleep(1)

        @periodic_task(spacing=10)
        async def look(self, context: RequestContext) -> None:
            await asyncio.sleep(1)

        @expose
        async def in_thread(self, context: RequestContext) -> str:
            return str(await self.attachments.run_blocking(asyncio.run, asyncio.sleep(0, "slept")))

        @expose(blocking=True)
        def blocking(self, context: RequestContext) -> str:
            return asyncio.run(asyncio.sleep(0, "slept"))

    def test_asyncio(self) -> None:
        """What awaits asyncio without its event loop fails with a text that says what to await, wherever it runs."""
        node = self.fleet.start(self.Sleeper)
        error = self.assertRaises(RuntimeError, self.fleet.run, node.call("call"))
        self.assertIn("await self.attachments.run_blocking(asyncio.run, coroutine)", str(error))
        self.assertRaises(RuntimeError, self.fleet.run, node.run_task("look"))
        self.fleet.run(self.fleet.emit("bed.made", None))
        self.fleet.advance(0)
        logged = [failure.getErrorMessage() for failure in self.flushLoggedErrors(RuntimeError)]
        self.assertEqual(logged, [str(error)] * 3)

    def test_hook(self) -> None:
        """The error of a start has the remedy too."""

        class Early(Manager):
            async def init_host(self) -> None:
                await asyncio.sleep(1)

        self.assertRaisesRegex(StartError, "no running event loop; async methods run on", self.fleet.start, Early)
        self.flushLoggedErrors(RuntimeError)

    def test_remedy(self) -> None:
        """What the text says instead works."""
        node = self.fleet.start(self.Sleeper)
        self.assertEqual([self.fleet.run(node.call(name)) for name in ("in_thread", "blocking")], ["slept"] * 2)

    def test_others(self) -> None:
        """Any other error keeps its text."""
        for error in (RuntimeError("no loop"), RuntimeError(), ValueError("no running event loop")):
            before = error.args
            add_remedy(error)
            self.assertEqual(error.args, before)


class ErrorTests(SynchronousTestCase):
    """Tests for the errors themselves."""

    def test_data(self) -> None:
        """An error carries its data as attributes, and as args in the same order."""
        error = RPCTimeoutError("compute.h1", "ping", 3.0)
        self.assertEqual((error.args, error.method), (("compute.h1", "ping", 3.0, False, "", None, 0, ""), "ping"))
        self.assertEqual(type(error)(*error.args).args, error.args)

    def test_old_name(self) -> None:
        """The old name of ConfigurationError is the same class."""
        self.assertIs(errors.SettingsError, ConfigurationError)

    def test_problem(self) -> None:
        """The text of a ProblemError says what it is about, what is wrong and what to do; a class says what it is."""
        self.assertEqual(str(ProblemError("a", "it is bad", "be good")), "a: it is bad; be good")
        error = ListenError("127.0.0.1:80", "permission denied", "choose a port above 1023")
        self.assertEqual(str(error), "cannot listen on 127.0.0.1:80: permission denied; choose a port above 1023")

    def test_one_place(self) -> None:
        """The errors of all packages are attributes of novasvc.errors; nothing else of them is."""
        self.assertIs(errors.BrokerError, importlib.import_module("novasvc.transport.errors").BrokerError)
        for name in ("NoSuchError", "Sequence", "Manager"):
            self.assertRaises(AttributeError, getattr, errors, name)

    def test_wire(self) -> None:
        """Each name in WIRE_ERRORS is that of an error."""
        for name in errors.WIRE_ERRORS:
            self.assertTrue(issubclass(getattr(errors, name), NovasvcError), name)

    def test_together(self) -> None:
        """Several wrong settings are listed one a line; a single one is a sentence."""
        one = SettingError("a", "1", "default", "is bad", "be good")
        self.assertEqual(str(ConfigurationError([one])), f"the configuration has an error: {one}")
        self.assertEqual(str(ConfigurationError([one, one])).count("\n  - "), 2)
