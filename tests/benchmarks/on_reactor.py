"""`python -m tests.benchmarks.on_reactor NAME`: run ``measure(reactor)`` of one module, print it as JSON.

A process of its own: what ran before it on a reactor would be in its figures.
"""

import importlib
import json
import sys
from typing import Any

from twisted.internet.task import react

from novasvc.run.process_tree import tune_garbage_collector


async def _main(reactor: Any, name: str) -> None:
    tune_garbage_collector()  # as a node does when it has started
    measure = importlib.import_module(f"tests.benchmarks.{name}").measure
    print(json.dumps(await measure(reactor)))


if __name__ == "__main__":
    react(_main, sys.argv[1:])
