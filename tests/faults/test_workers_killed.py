"""Workers that are killed, again and again, and those that end by themselves."""

import os
import random
import re
import signal
from datetime import datetime

import pytest

from tests.faults.fleet_rig import FleetCase
from tests.faults.kill_rounds import KillCase

BUDGET = 5
"""The setting worker_restart_budget's default."""
ROUNDS = 30

AGAIN = r"restarting it (?:now|in ([\d.]+) s)"

KILLS = {
    number
    for number in (*(each for each in signal.Signals if each < signal.SIGRTMIN), signal.SIGRTMIN + 1, signal.SIGRTMAX)
    if number
    not in {
        # These are ignored, by the system, by Python, or because a terminal sends them to all of its processes,
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        # this comes with each message of the supervisor,
        signal.SIGIO,
        # this has the stacks logged, this drains,
        signal.SIGUSR2,
        signal.SIGTERM,
        # and these stop a process: see test_workers_hanging.
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
}


class StormTests(FleetCase):
    @pytest.mark.long
    def test_one(self) -> None:
        """A worker that is killed whenever it comes back is started ever more slowly; its siblings feel nothing."""
        fleet = self.script("obedient:one=3")
        before = fleet.ready(3)
        for death in range(1, BUDGET + 1):
            pid = fleet.kill(1)
            for number in (2, 3):
                self.assertEqual(fleet.tell(f"worker-{number}", "pid"), str(before[number]))
            if death < BUDGET:
                fleet.replaced(1, pid)
        fleet.says(r"in 30\.0 s")
        pauses = re.findall(rf"worker 1 .* was killed by SIGKILL; {AGAIN}", fleet.output)
        self.assertEqual(pauses[0], "")
        self.assertEqual(len(pauses), BUDGET)
        self.assertGreater(min(float(pause) for pause in pauses[1:]), 0.2)
        row = fleet.worker(1)
        self.assertEqual((row["state"], row["restarts"]), ("backing off", BUDGET))
        self.assertEqual({number: fleet.worker(number)["pid"] for number in (2, 3)}, {2: before[2], 3: before[3]})
        self.assertEqual(fleet.stop(), 0)

    def test_all(self) -> None:
        """Workers that are killed all at once come back at once; after that at most as many within as many seconds."""
        number = 4
        fleet = self.script(f"obedient:one={number}")
        gone: list[int] = []
        for _ in range(2):
            before = fleet.ready(number, but=gone)
            gone += before.values()
            for pid in before.values():
                os.kill(pid, signal.SIGKILL)
        fleet.ready(number, but=gone)
        found = re.findall(rf"(?m)^(\S+) .*worker \d .* {AGAIN}", fleet.output)
        self.assertEqual([pause for _, pause in found[:number]], [""] * number)
        forks = sorted(_seconds(time) + float(pause or 0) for time, pause in found)
        self.assertEqual(len(forks), 2 * number)
        for first, beyond in zip(forks, forks[number:], strict=False):
            self.assertGreater(beyond - first, number - 0.5)  # pauses are logged to a tenth, and by a busy machine late


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


class RoundsTests(KillCase):
    @pytest.mark.long
    def test_rounds(self) -> None:
        """Rounds of kill -9 at random leave no descriptor, thread, process or memory behind."""
        self.check(ROUNDS, random.randrange(2**32))


class ExitTests(FleetCase):
    def test_each(self) -> None:
        """However a worker ends, the log says how, and it comes back."""
        ways = {f"exit {code}": f"exited with status {code}" for code in (0, 1, 2, 255)}
        for number in sorted(KILLS):
            known = number in {*signal.Signals}
            ways[f"kill {number}"] = f"was killed by {signal.Signals(number).name if known else f'signal {number}'}"
        ways["terminate"] = "exited with status 0"
        fleet = self.script(*(f"obedient:{way}=1" for way in ways))
        before = fleet.ready(len(ways))
        for number, way in enumerate(ways, start=1):
            match way.split():
                case ["exit", _]:
                    fleet.tell(f"worker-{number}", way)
                case ["kill", sign]:
                    os.kill(before[number], int(sign))
                case _:
                    os.kill(before[number], signal.SIGTERM)
        fleet.ready(len(ways), but=[*before.values()])
        for (number, pid), (way, how) in zip(before.items(), ways.items(), strict=True):
            fleet.says(rf"worker {number} \(pid {pid}\) of {way} {how}; restarting it")

    @pytest.mark.long
    def test_signals_that_end_none(self) -> None:
        """Signals that a terminal sends to all processes of a group do not end a worker, nor do those that ask it."""
        fleet = self.script("obedient:one=1")
        before = fleet.ready(1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGXFSZ):
            os.kill(before[1], number)
        fleet.says(r"stacks:\n(?s:.*)fleet_script|stacks:\n(?s:.*)worker.py")
        self.assertEqual(fleet.tell("worker-1", "pid"), str(before[1]))


class DeafTests(FleetCase):
    def test_deaf(self) -> None:
        """One that takes no notice of SIGTERM is told by other means when its time is over; who spins is killed."""
        fleet = self.script("obedient:one=3", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="1")
        before = fleet.ready(3)
        fleet.tell("worker-1", "turn deaf")
        fleet.tell("worker-2", "spin")
        self.assertEqual(fleet.stop(), 1)
        fleet.says(rf"worker 1 \(pid {before[1]}\) of one drained: it exited with status 0")
        fleet.says(rf"worker 2 \(pid {before[2]}\) of one did not exit in time; killing it")
        fleet.says(rf"worker 3 \(pid {before[3]}\) of one drained: it exited with status 0")
