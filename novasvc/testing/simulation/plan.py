"""The faults of a simulation: which, where and when, from its seed."""

from collections.abc import Sequence
from random import Random

import attrs

from novasvc.testing.simulation.randomness import happens

KINDS = {
    "kill": 4,
    "pause": 3,
    "cut": 4,
    "broker partition": 3,
    "database partition": 2,
    "slow": 3,
    "broker stall": 1,
    "database stall": 2,
    "database refusal": 1,
    "broker refusal": 1,
    "lost queue": 2,
    "twin": 1,
    "forced down": 1,
    "restart": 4,
}
"""The kinds of faults and their weights.

- kill: a process ends without a word, and its host starts another one later.
- pause: a process runs nothing for some time, as after SIGSTOP.
- cut: processes lose their connections to the broker, in one direction or in both.
- broker partition, database partition: nothing passes between processes and the server for some time.
- slow: messages of a process take up to seconds, each differently.
- broker stall, database stall: the server does nothing for some time.
- broker refusal, database refusal: the server answers, and refuses.
- lost queue: the broker forgets the queue of a host.
- twin: another process of a node is started on another machine, while the first one lives.
- forced down: an operator declares the services of a host down, and lets them up again.
- restart: a node is stopped as by SIGTERM, and started again: no fault, but what an upgrade does.
"""


@attrs.frozen(kw_only=True)
class Fault:
    """One fault.

    :param number: its place in the plan, from which the details are drawn, so that they do not depend on other faults.
    :param kind: of KINDS.
    :param at: seconds after the start of the simulation.
    :param seconds: how long it lasts.
    :param places: the hosts that it happens to; () for a server.
    """

    number: int
    kind: str
    at: float
    seconds: float
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" of {', '.join(self.places)}" if self.places else ""
        return f"fault {self.number}: {self.kind}{where} at {self.at:.3f} s for {self.seconds:.3f} s"


def draw_plan(
    source: Random, hosts: Sequence[str], begin: float, end: float, count: int, kinds: Sequence[str] = tuple(KINDS)
) -> list[Fault]:
    """Draw the faults of one run, in the order of their times.

    :param hosts: the hosts that nodes and callers run on.
    :param begin: seconds after the start before which nothing happens.
    :param end: seconds after the start after which no fault begins.
    :param count: how many.
    :param kinds: of KINDS; all by default.
    """
    weights = [KINDS[kind] for kind in kinds]
    times = sorted(source.uniform(begin, end) for _ in range(count))
    plan = []
    for number, at in enumerate(times):
        (kind,) = source.choices(kinds, weights)
        longest = source.choice((2.0, 15.0, 60.0))
        seconds = source.uniform(0.0, longest)
        several = kind in {"cut", "broker partition", "database partition", "broker refusal"} and happens(source, 0.4)
        if "stall" in kind or kind == "database refusal":
            places: tuple[str, ...] = ()
        elif several:
            places = tuple(source.sample(hosts, source.randint(1, len(hosts))))
        else:
            places = (source.choice(hosts),)
        plan.append(Fault(number=number, kind=kind, at=at, seconds=seconds, places=places))
    return plan
