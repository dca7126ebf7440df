"""Tests for novasvc.cli.suggestion, in commands and options."""

from novasvc.cli.suggestion import nearest
from tests.unit.cli.test_program import ProgramCase


class NearestTests(ProgramCase):
    def test_nearest(self) -> None:
        """The most similar name is found, whatever its case; none if all are different."""
        self.assertEqual(nearest("stok", ["stock", "till"]), "stock")
        self.assertEqual(nearest("STOCK", ["Stock", "till"]), "Stock")
        self.assertIsNone(nearest("lamp", ["stock", "till"]))
        self.assertIsNone(nearest("lamp", []))

    def test_commands(self) -> None:
        """A misspelt command is corrected, in groups too; for one like no other all commands are listed."""
        for arguments, shown in (
            (["cal", "stock"], "No such command 'cal'. Did you mean 'call'? See `novasvc --help`."),
            (["services"], "Did you mean 'service'?"),
            (["xyzzy"], "Commands: new, run, service, "),
            (["service", "lst"], "No such command 'lst'. Did you mean 'list'? See `novasvc service --help`."),
            (["config", "chekc"], "Did you mean 'check'?"),
            (["db", "upgrad"], "Did you mean 'upgrade'?"),
            (["lease", "xyzzy"], "Commands: list."),
            (["workers", "sett"], "Did you mean 'set'?"),
            (["call", "stock", "m", "--timeut", "3"], "--timeout"),
        ):
            ran = self.run_program(*arguments)
            self.assertEqual(ran.status, 2)
            self.assertIn(shown, ran.stderr)

    def test_missing_method(self) -> None:
        """An argument in place of the method shows the command that was probably meant."""
        for arguments, shown in (
            (["call", "a.b", "item=tea"], "Did you mean `novasvc call a b item=tea`?"),
            (["cast", "a.b", "item=two words"], "Did you mean `novasvc cast a b 'item=two words'`?"),
            (["call", "stock.reserve"], "Did you mean `novasvc call stock reserve`?"),
            (["call", "stock.h-1", "item=tea"], "`novasvc describe stock.h-1` lists the methods."),
            (["call", "stock"], "METHOD is missing. `novasvc describe stock` lists the methods."),
        ):
            ran = self.run_program(*arguments)
            self.assertEqual(ran.status, 2)
            self.assertIn(shown, ran.stderr)

    def test_run_target(self) -> None:
        """A file in place of a module, or a module without a class, shows the name that was probably meant."""
        for target, shown in (
            ("shop/stock.py", "did you mean shop.stock:Stock?"),
            ("./shop/stock.py:Tea", "did you mean shop.stock:Tea?"),
            ("stock", "did you mean stock:Stock?"),
            ("shop.stock:", "did you mean shop.stock:Stock?"),
            ("shop-1:Stock", "such as shop.stock:Stock."),
        ):
            ran = self.run_program("run", target)
            self.assertEqual(ran.status, 2)
            self.assertIn(f"{target!r} is not PACKAGE.MODULE:CLASS; {shown}", ran.stderr)
