"""Tests for `novasvc broker` without a broker."""

from tests.unit.cli.test_program import ProgramCase


class BrokerTests(ProgramCase):
    """Tests for what `novasvc broker migrate` refuses before it connects."""

    def refusal(self, *arguments: str, **environ: str) -> str:
        ran = self.run_program(*arguments, environ=environ)
        self.assertEqual((ran.status, ran.stdout), (1, ""))
        return ran.stderr

    def test_usage(self) -> None:
        """The type is needed, and is one of two."""
        for arguments in ((), ("--to", "stream")):
            ran = self.run_program("broker", "migrate", *arguments)
            self.assertEqual((ran.status, ran.stdout), (2, ""))
            self.assertIn("--to", ran.stderr)

    def test_no_broker(self) -> None:
        """Without a broker there is nothing to replace."""
        self.assertIn("give the URL", self.refusal("broker", "migrate", "--to", "quorum"))

    def test_auto_delete(self) -> None:
        """Queues that end with their last consumer cannot be replaced."""
        environ = {"NOVASVC_TRANSPORT_URL": "amqp://guest:secret@127.0.0.1:1/", "NOVASVC_AMQP_AUTO_DELETE": "true"}
        self.assertIn("restart the services", self.refusal("broker", "migrate", "--to", "quorum", **environ))
