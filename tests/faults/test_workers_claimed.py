"""Places that somebody else has, or had."""

import signal
import socket

from tests.e2e.process import program
from tests.faults.fleet_rig import Fleet, FleetCase


class ClaimTests(FleetCase):
    def node(self, pidfile: str) -> Fleet:
        command = [program("twistd"), "-n", f"--pidfile={pidfile}", "novasvc", "--workers", "1"]
        return Fleet(self, command, self.folder)

    def assert_ends(self, fleet: Fleet, reason: str) -> None:
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assertRegex(fleet.output, reason)
        self.assertNotIn("Traceback", fleet.output)

    def test_second_supervisor(self) -> None:
        """A second supervisor ends with an error, and the first goes on; one that follows a killed one starts."""
        first = self.node("one.pid")
        before = first.ready(1)
        self.assert_ends(self.node("one.pid"), f"process {first.pid} is running with this pid file")
        self.assert_ends(
            self.node("two.pid"),
            rf"control socket '.*novasvc.control': another supervisor, pid {first.pid}, already uses it; stop",
        )
        self.assertEqual(first.ready(1), before)
        first.stop(signal.SIGKILL)
        for left in ("one.pid", "novasvc.control"):
            self.assertTrue((self.folder / left).exists())
        second = self.node("one.pid")
        second.ready(1)
        self.assertEqual(second.stop(), -signal.SIGTERM)

    def test_no_socket(self) -> None:
        """What is at the control socket's place and is no socket stays there, and is named."""
        place = self.folder / "novasvc.control"
        place.write_text("precious")
        self.assert_ends(self.script("obedient:one=1"), "control socket .*: the file there is not a socket; rem")
        self.assertEqual(place.read_text(), "precious")

    def test_port(self) -> None:
        """A port that somebody has ends the start with an error that names it."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            fleet = self.script("obedient:one=1", f"echo:tcp:{port}:interface=127.0.0.1=2")
            self.assert_ends(
                fleet, f"did not start: cannot listen on 127.0.0.1:{port}: Address already in use; end the"
            )
            self.assertNotIn("worker", fleet.output)
