"""`python -m tests.simulation --seeds N [--first S]`: simulate the fleet of this folder for many seeds.

Each seed that breaks a promise is printed with the faults that it needs for that, and with the command that repeats it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from twisted.logger import globalLogBeginner

from novasvc.testing.simulation import Outcome, run_seed, shrink
from tests.simulation.fleet import build

_REPLAY = "python -m tests.simulation --replay"


def run_all(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Run seeds in several processes; yield each outcome when it is there."""
    if jobs == 1:
        yield from map(_run, seeds)
        return
    with get_context("fork").Pool(jobs, maxtasksperchild=1000) as pool:
        yield from pool.imap_unordered(_run, seeds, chunksize=10)


def _run(seed: int) -> Outcome:
    return run_seed(build, seed)


def replay(seed: int, trace: Path | None) -> bool:
    """Print what a seed breaks, with the faults that it needs; return whether all was well.

    :param trace: write the trace there.
    """
    outcome = run_seed(build, seed, keep_trace=True)
    if outcome.broken:
        outcome = shrink(build, outcome)
    for text in outcome.broken:
        print(text)
    print("faults:", *(outcome.plan or ["none"]), sep="\n  ")
    if trace is not None:
        trace.write_text("\n".join(outcome.trace) + "\n")
    else:
        print("trace:", *outcome.trace, sep="\n  ")
    print(f"digest: {outcome.digest}")
    return not outcome.broken


def main(words: Sequence[str] | None = None) -> int:
    """Run the seeds; return the exit status.

    :param words: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many; 200 by default")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first one; 0 by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    parser.add_argument("--replay", type=int, metavar="SEED", help="repeat one seed, and print its trace")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="with --replay: write the trace there")
    arguments = parser.parse_args(words)
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    if arguments.replay is not None:
        return 0 if replay(arguments.replay, arguments.trace) else 1
    began = time.monotonic()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    failed: list[Outcome] = []
    requests = 0
    for outcome in run_all(seeds, arguments.jobs):
        requests += outcome.requests
        if outcome.broken:
            failed.append(outcome)
            print(f"seed {outcome.seed}: {outcome.broken[0]}\n  {_REPLAY} {outcome.seed}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds, {requests} requests, {len(failed)} seeds failed, in {seconds:.1f} s")
    if arguments.json is not None:
        found: dict[str, Any] = {
            "simulation.seeds": len(seeds),
            "simulation.failed": len(failed),
            "simulation.requests": requests,
            "simulation.seconds": round(seconds, 3),
            "failed": {str(outcome.seed): outcome.broken for outcome in failed},
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
