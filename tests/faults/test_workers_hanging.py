"""Workers whose reactor does not turn."""

import os
import signal
import sqlite3

import pytest

from tests.faults.fleet_rig import FleetCase, until

WATCHDOG = 2.0
SOON = {"NOVASVC_WORKER_WATCHDOG": f"{WATCHDOG:g}"}


class HangingTests(FleetCase):
    def test_each(self) -> None:
        """Workers that are busy, deaf to signals, or stopped, are dumped, ended and replaced; others go on."""
        fleet = self.script("obedient:one=4", **SOON)
        before = fleet.ready(4)
        fleet.tell("worker-1", "spin")
        fleet.tell("worker-2", "freeze")
        os.kill(before[3], signal.SIGSTOP)
        after = fleet.ready(4, but=[before[number] for number in (1, 2, 3)])
        self.assertEqual(after[4], before[4])
        for number, sign in ((1, "SIGABRT"), (2, "SIGKILL"), (3, "SIGKILL")):
            worker = rf"worker {number} \(pid {before[number]}\) of one"
            fleet.says(rf"{worker} hangs: its reactor was blocked for \d s; aborting it")
            end = rf"{worker} was killed by {sign}"
            stacks = r"(?s:.)*fleet_parts.py\S+ line \d+ in spin" if number == 1 else r"\s+none were written"
            fleet.says(rf"{end}; stacks:{stacks}\s(?s:.)*last events:\s.*Z worker ready")
            fleet.says(rf"{end}: its reactor was blocked for \d s; restarting it now")

    @pytest.mark.long
    def test_in_drain(self) -> None:
        """A worker that hangs when it is to drain delays the end by the watchdog, even without a deadline."""
        fleet = self.script("obedient:one=2", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0", **SOON)
        before = fleet.ready(2)
        fleet.tell("worker-1", "spin")
        self.assertEqual(fleet.stop(), 1)
        fleet.says(rf"worker 1 \(pid {before[1]}\) of one hangs: .* while draining; aborting it")
        fleet.says(rf"worker 2 \(pid {before[2]}\) of one drained: it exited with status 0")

    def test_beats(self) -> None:
        """While a worker hangs its node does not beat; when the worker is replaced, it goes on."""
        fleet = self.twistd("--workers", "1", "--report-interval", "1", "--service-down-time", "5", **SOON)
        pid = fleet.ready(1)[1]
        until(lambda: self.beats > 1)
        fleet.tell("worker-1", "spin")
        beats = self.beats
        fleet.says("worker 1 .* hangs")  # after two beats and more would have been due
        self.assertEqual(self.beats, beats)
        fleet.replaced(1, pid)
        until(lambda: self.beats > beats + 1)

    @property
    def beats(self) -> int:
        connection = sqlite3.connect(f"file:{self.folder / 'h1/novasvc.sqlite'}?mode=ro", uri=True)
        try:
            (beats,) = connection.execute("SELECT report_count FROM services").fetchone()
        finally:
            connection.close()
        return int(beats)
