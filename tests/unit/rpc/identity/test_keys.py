import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import SettingError
from novasvc.rpc.identity.keys import create_signing_key, read_callers, read_signing_key


class KeyFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.key, self.callers = self.directory / "key", self.directory / "callers"
        self.line = create_signing_key(self.key, "shop")

    def write(self, text: str, mode: int = 0o600) -> Path:
        path = self.directory / "file"
        path.write_text(text)
        path.chmod(mode)
        return path

    def refused(self, problem: str, path: Path, *, callers: bool = False) -> None:
        error = self.assertRaises(SettingError, read_callers if callers else read_signing_key, path)
        self.assertIn(problem, str(error))
        for secret in (self.key.read_text().split(":")[1].strip(), self.line.split(":")[1]):
            self.assertNotIn(secret, str(error))

    def test_pair(self) -> None:
        """A key is written for its owner only, and its public line names the same key."""
        self.assertEqual(self.key.stat().st_mode & 0o777, 0o600)
        key = read_signing_key(self.key)
        callers = read_callers(self.write(f"# those we know\n\n{self.line}\n", 0o644))
        self.assertEqual((key.identity, callers[key.key_id].identity), ("shop", "shop"))
        self.assertNotIn(self.key.read_text().split(":")[1].strip(), repr(key))

    def test_rotation(self) -> None:
        """An identity may have several keys at a time."""
        newer = create_signing_key(self.directory / "newer", "shop")
        callers = read_callers(self.write(f"{self.line}\n{newer}\n"))
        self.assertEqual([caller.identity for caller in callers.values()], ["shop", "shop"])

    def test_modes(self) -> None:
        """A private key that others can read, and a list of callers that others can write, are refused."""
        for mode in (0o640, 0o604, 0o660):
            self.refused(f"its mode is 0{mode:o}, so users other than its owner can read it", self.write("", mode))
        for mode in (0o664, 0o646):
            path = self.write(self.line, mode)
            self.refused("users other than its owner can write it", path, callers=True)

    def test_contents(self) -> None:
        """Files that do not have what they should are refused, without a word of the keys in them."""
        private = self.key.read_text()
        self.refused("it has 0 keys", self.write("# none\n"))
        self.refused("it has 2 keys", self.write(private + private))
        self.refused("line 1 has a public key", self.write(self.line))
        self.refused("line 1 has a private key", self.write(private), callers=True)
        self.refused("it has no key", self.write(""), callers=True)
        self.refused("line 2 repeats the key of 'shop'", self.write(f"{self.line}\n{self.line}"), callers=True)
        for line in ("shop", "shop public", "a/b public:AA==", f"{'x' * 65} public:AA=="):
            self.refused("line 1 is invalid", self.write(line), callers=True)
        for key in ("AA==", "%%%", "x" * 44):
            self.refused("is not 32 octets in base64", self.write(f"shop public:{key}"), callers=True)
        self.refused("cannot be read", self.directory / "nothing")

    def test_create(self) -> None:
        """A file that exists is never overwritten, and an identity has to be a name."""
        before = self.key.read_text()
        for path, identity, problem in (
            (self.key, "shop", "it exists already"),
            (self.directory / "other", "the shop", "cannot be an identity"),
            (self.directory / "none" / "key", "shop", "it cannot be written"),
        ):
            error = self.assertRaises(SettingError, create_signing_key, path, identity)
            self.assertIn(problem, str(error))
        self.assertEqual(self.key.read_text(), before)
