"""`python -m tests.benchmarks NAME [--json FILE]`: measure, print, and keep the figures."""

import argparse
import importlib
import json
from pathlib import Path

BENCHMARKS = ("node",)


def main() -> None:
    """Run one benchmark; its module has ``measure() -> dict[str, float]``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one flat object: figure name to number")
    arguments = parser.parse_args()
    figures = importlib.import_module(f"tests.benchmarks.{arguments.name}").measure()
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>12,.3f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
