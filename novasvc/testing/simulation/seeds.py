"""Run a simulation for many seeds, and say what a failing one needs to fail."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from novasvc.testing.errors import BrokenPromiseError
from novasvc.testing.simulation.plan import Fault
from novasvc.testing.simulation.promises import check
from novasvc.testing.simulation.simulation import Simulation

Build = Callable[[Simulation], object]
"""Adds nodes and callers to a simulation."""

SHOWN_LINES = 40
"""The last lines of a trace that an error shows."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one seed.

    :param broken: what was not kept, one sentence each; empty if all was well.
    :param digest: the hash of the trace; the same for each run of the seed.
    :param plan: the faults.
    :param requests: how many calls, casts and events the callers sent.
    :param seconds: how long it was, on its own clock.
    :param trace: its lines, if they were kept.
    """

    seed: int
    broken: list[str]
    digest: str
    plan: list[Fault]
    requests: int
    seconds: float
    trace: list[str] = attrs.field(repr=False)


def run_seed(
    build: Build, seed: int, *, plan: Sequence[Fault] | None = None, keep_trace: bool = False, **options: Any
) -> Outcome:
    """Run one seed, and check all promises.

    :param build: adds nodes and callers.
    :param plan: the faults, in place of those of the seed.
    :param keep_trace: return the lines of the trace.
    :param options: for :class:`Simulation`.
    """
    simulation = Simulation(seed, keep_trace=keep_trace, **options)
    build(simulation)
    if plan is not None:
        simulation.plan = list(plan)
    simulation.run()
    assert simulation.plan is not None
    return Outcome(
        seed=seed,
        broken=check(simulation),
        digest=simulation.trace.digest(),
        plan=simulation.plan,
        requests=len(simulation.ledger.requests),
        seconds=simulation.clock.seconds(),
        trace=simulation.trace.lines,
    )


def shrink(build: Build, failed: Outcome, **options: Any) -> Outcome:
    """Leave out the faults that a failing seed does not need to break the same promise.

    Each fault is left out in turn, the last one first; a run that still breaks it goes on without that fault.

    :param failed: an outcome with something broken.
    :return: an outcome of the same seed, with a trace; its plan may be empty.
    """
    promise = failed.broken[0].partition(":")[0]
    plan = list(failed.plan)
    for fault in reversed(failed.plan):
        without = [each for each in plan if each is not fault]
        if any(text.startswith(promise) for text in run_seed(build, failed.seed, plan=without, **options).broken):
            plan = without
    return run_seed(build, failed.seed, plan=plan, keep_trace=True, **options)


def check_seeds(build: Build, seeds: Iterable[int], **options: Any) -> list[Outcome]:
    """Run many seeds.

    :param build: adds nodes and callers to each simulation.
    :param options: for :func:`run_seed`.
    :return: the outcome of each seed.
    :raises BrokenPromiseError: for the first seed that breaks a promise, with the faults that it needs to do so.
    """
    outcomes = []
    for seed in seeds:
        outcome = run_seed(build, seed, **options)
        if outcome.broken:
            own = {name: value for name, value in options.items() if name not in {"plan", "keep_trace"}}
            raise BrokenPromiseError(*describe(shrink(build, outcome, **own)))
        outcomes.append(outcome)
    return outcomes


def describe(outcome: Outcome) -> tuple[str, str, str]:
    """Return subject, problem and remedy of a failing seed's error."""
    faults = [str(fault) for fault in outcome.plan] or ["no fault at all"]
    lines = [*outcome.broken, "", "with these faults:", *faults, "", "the last lines of its trace:"]
    problem = "\n".join([*lines, *outcome.trace[-SHOWN_LINES:]])
    return f"seed {outcome.seed}", problem, f"run_seed(build, {outcome.seed}, keep_trace=True) repeats it"
