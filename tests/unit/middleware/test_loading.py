from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.preflight import problems
from novasvc.config import load
from novasvc.errors import ConfigurationError, MiddlewareError
from novasvc.middleware import load_middleware
from novasvc.node.runtime import Runtime
from tests.support.middleware_rig import NeedsArguments, Recorder

RIG = "tests.support.middleware_rig"


class LoadMiddlewareTests(SynchronousTestCase):
    def error(self, given: object) -> str:
        return str(self.assertRaises(MiddlewareError, load_middleware, [given]))

    def test_order(self) -> None:
        """Names, classes and objects are loaded in order."""
        recorder = Recorder()
        first, second, third = load_middleware([f"{RIG}.Answering", Recorder, recorder])
        self.assertEqual((type(first).__name__, type(second), third), ("Answering", Recorder, recorder))

    def test_missing(self) -> None:
        """What cannot be imported is named, with what to do."""
        self.assertIn("there is no module 'shop'", self.error("shop.audit.Audit"))
        self.assertIn("has no class 'Recorde'", self.error(f"{RIG}:Recorde"))
        self.assertIn("has no module", self.error("Recorder"))

    def test_raises(self) -> None:
        """A constructor that raises is named, with what it raised."""
        self.assertRegex(self.error(f"{RIG}.NeedsArguments"), "NeedsArguments': its constructor raised TypeError")
        self.assertIn("without arguments", self.error(NeedsArguments))

    def test_no_middleware(self) -> None:
        """What does not provide IMiddleware, or has no valid kinds, is refused."""
        self.assertIn("does not provide IMiddleware", self.error(object))
        for kinds in (frozenset(), frozenset({"calls"}), "call"):
            self.assertIn("its kinds are", self.error(Recorder(kinds=kinds)))  # type: ignore[arg-type]


class SettingTests(SynchronousTestCase):
    def test_value(self) -> None:
        """The setting is a list in TOML, and names separated by commas elsewhere."""
        settings = load((), {"NOVASVC_RPC_MIDDLEWARE": "a.B, c.d:E"}, {}).settings
        self.assertEqual(settings.rpc_middleware, ("a.B", "c.d:E"))
        file = Path(f"{self.mktemp()}.toml")
        file.write_text('rpc_middleware = ["a.B"]')
        self.assertEqual(load([file], {}, {}).settings.rpc_middleware, ("a.B",))
        self.assertEqual(load((), {}, {}).settings.rpc_middleware, ())

    def test_wrong(self) -> None:
        """Other values are refused, and so is a class that is given twice."""
        for value in ("B", "a.B,a.B", "a.B,,c.D"):
            error = self.assertRaises(ConfigurationError, load, (), {"NOVASVC_RPC_MIDDLEWARE": value}, {})
            self.assertIn("RPC_MIDDLEWARE", str(error))

    def test_runtime(self) -> None:
        """A process makes its middleware once, when it is first used."""
        settings = load((), {"NOVASVC_RPC_MIDDLEWARE": f"{RIG}.Recorder"}, {}).settings
        runtime = Runtime.from_settings(settings, Clock())
        self.assertIsInstance(runtime.middleware[0], Recorder)
        self.assertIs(runtime.middleware[0], runtime.middleware[0])

    def test_checked(self) -> None:
        """`novasvc config check` finds a class that is not there."""
        settings = load((), {"NOVASVC_RPC_MIDDLEWARE": "shop.Nothing"}, {}).settings
        self.assertTrue(any("shop.Nothing" in str(error) for error in problems(settings, running=True)))
