"""Workers that are killed at random for as long as one likes: python -m tests.faults.kill_rounds [ROUNDS]

Afterwards the supervisor and the forkserver have to have what they had before, and nothing more.
"""

import os
import random
import signal
import sys
import time
import unittest

import attrs
import psutil

from tests.faults.fleet_rig import Fleet, FleetCase, until

SERVERS = 10
"""Of one worker each: forks are throttled for each server, and the rounds are not about that."""
WARM_UP = SERVERS
"""Rounds after which all that is made only once has been made."""
LIFE = 1.1
"""Seconds that a worker is ready before it is killed: one that dies younger is started again more slowly."""
GROWTH = 1.0
"""MiB that each of the two processes may grow by, whatever the number of rounds."""


@attrs.frozen
class Belongings:
    """What a process has.

    :param memory: MiB that it shares with no other.
    """

    children: int
    descriptors: int
    threads: int
    memory: float = attrs.field(eq=False, converter=lambda octets: round(octets / 2**20, 2))

    @classmethod
    def of(cls, pid: int) -> "Belongings":
        process = psutil.Process(pid)
        return cls(len(process.children()), process.num_fds(), process.num_threads(), process.memory_full_info().uss)


@attrs.define
class Worker:
    """One that is ready since then."""

    pid: int
    since: float = attrs.field(factory=time.monotonic)


class KillCase(FleetCase):
    def check(self, rounds: int, seed: int) -> str:
        """Kill, and see that nothing has grown.

        :return: what the supervisor and the forkserver had before and after.
        """
        chance = random.Random(seed)
        fleet = self.script(*(f"obedient:s{number}=1" for number in range(SERVERS)))
        workers = {number: Worker(pid) for number, pid in fleet.ready(SERVERS).items()}
        # One that had another's channel would hide that one's end.
        self.assertEqual(len({psutil.Process(worker.pid).num_fds() for worker in workers.values()}), 1)
        fleet.wait_for("the supervisor is running")
        _kill(fleet, workers, chance, WARM_UP)
        both = fleet.pid, fleet.forkserver
        before = [Belongings.of(pid) for pid in both]
        _kill(fleet, workers, chance, rounds)
        after = [Belongings.of(pid) for pid in both]
        what = f"{rounds} rounds (seed {seed})\nbefore: {before}\nafter:  {after}"
        self.assertEqual(after, before, what)
        for earlier, later in zip(before, after, strict=True):
            self.assertLess(later.memory - earlier.memory, GROWTH, what)
        return what


def _kill(fleet: Fleet, workers: dict[int, Worker], chance: random.Random, rounds: int) -> None:
    def grown_up() -> list[int]:
        return [number for number, worker in workers.items() if time.monotonic() - worker.since > LIFE]

    for _ in range(rounds):
        number = chance.choice(until(grown_up))
        os.kill(workers[number].pid, signal.SIGKILL)
        ready = fleet.wait_for(rf"worker {number} \(pid (\d+)\) of \S+ is ready")
        workers[number] = Worker(int(ready[1]))


def main(rounds: str = "1000") -> None:
    class Rounds(KillCase):
        def runTest(self) -> None:
            print(self.check(int(rounds), random.randrange(2**32)))  # noqa: T201 - asked for

    sys.exit(not unittest.TextTestRunner().run(Rounds()).wasSuccessful())


if __name__ == "__main__":
    main(*sys.argv[1:])
