"""Reloads of configurations that cannot be used."""

import signal

from tests.faults.fleet_rig import FleetCase

GOOD = """
report_interval = 7
[[service]]
binary = "novasvc-agent"
workers = 2
manager = "tests.faults.fleet_parts.Node"
"""


class ReloadTests(FleetCase):
    def test_broken(self) -> None:
        """Whatever is wrong with a configuration, the old one stays, and the error is named; once mended it is used."""
        config = self.folder / "novasvc.toml"
        config.write_text(GOOD)
        fleet = self.twistd("--config", str(config), manager=None)
        before = fleet.ready(2)
        for text, problem in (
            ("report_interval = ", "novasvc.toml .*: invalid TOML: Invalid value"),
            (GOOD + "unheard_of = 1", "unheard_of .*: no such setting"),
            (
                GOOD.replace("= 7", "= 0.5"),
                "report_interval = 0.5 .*: is too small; give a number of seconds, at least 1, or 0",
            ),
            (
                GOOD.replace("parts.Node", "parts.Nobody"),
                "manager 'tests.faults.fleet_parts.Nobody': .* has no 'Nobody'",
            ),
            (GOOD.replace("parts.Node", "parts.FailsToInit"), "worker 1 .* init_host failed: LookupError: no such"),
            (
                GOOD.replace("parts.Node", "parts.Vanishes"),
                "worker 1 .* did not become ready: it was killed by SIGKILL",
            ),
        ):
            config.write_text(text)
            fleet.popen.send_signal(signal.SIGHUP)
            refused = fleet.wait_for(r"error.* reload failed, previous configuration kept: (.*)")
            self.assertRegex(refused[1], problem)
            self.assertEqual(fleet.ready(2), before)
        config.write_text(GOOD.replace("= 7", "= 8"))
        fleet.popen.send_signal(signal.SIGHUP)
        fleet.wait_for("reload: report_interval changed from 7 to 8")
        fleet.wait_for("reloaded: ")
        fleet.ready(2, but=[*before.values()])
        self.assertEqual(fleet.stop(), -signal.SIGTERM)
