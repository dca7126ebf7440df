"""Tests for `novasvc key`."""

import tempfile
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.program import program
from novasvc.cli.remote import signer_of
from novasvc.config import load
from novasvc.errors import SettingError
from novasvc.rpc.identity.keys import read_callers


class KeyTests(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.file = Path(temporary.name) / "ops.key"

    def test_created(self) -> None:
        """The file has the key of the identity, and the line that is printed is for the callers' file."""
        ran = CliRunner().invoke(program, ["key", "ops", "--file", str(self.file)])
        self.assertEqual((ran.exit_code, ran.output[:11]), (0, "ops public:"))
        callers = self.file.with_name("callers")
        callers.write_text(ran.output)
        callers.chmod(0o600)
        signer = signer_of(load((), {"NOVASVC_RPC_SIGNING_KEY_FILE": str(self.file)}, {}).settings)
        self.assertEqual(list(read_callers(callers)), [signer.key.key_id])
        self.assertIsNone(signer_of(load((), {}, {}).settings))

    def test_refused(self) -> None:
        """Without a file, with a file that exists, and for a name that is none, there is no key."""
        self.file.touch()
        for arguments, problem in (
            (["ops"], "no file is configured"),
            (["ops", "--file", str(self.file)], "it exists already"),
            (["the ops", "--file", str(self.file) + "2"], "cannot be an identity"),
        ):
            ran = CliRunner().invoke(program, ["key", *arguments])
            self.assertIsInstance(ran.exception, SettingError)
            self.assertIn(problem, str(ran.exception))
