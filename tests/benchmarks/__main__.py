"""`python -m tests.benchmarks NAME [--json FILE]`: measure, print, and keep the figures."""

import argparse
import importlib
import json
from pathlib import Path

BENCHMARKS = ("contracts", "fleet", "http", "node", "prefork", "reachability", "rpc")


def main() -> None:
    """Run one benchmark.

    Its module has ``measure(**options) -> dict[str, float]``. Where it wants them it has, too,
    ``add_options(parser)``, and ``show(figures)`` that prints them another way.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in BENCHMARKS:
        module = importlib.import_module(f"tests.benchmarks.{name}")
        about = str(module.__doc__)
        options = names.add_parser(name, help=about.partition("\n")[0], description=about)
        options.add_argument("--json", type=Path, metavar="FILE", help="write one flat object: figure name to number")
        options.set_defaults(measure=module.measure, show=getattr(module, "show", _show))
        if hasattr(module, "add_options"):
            module.add_options(options)
    arguments = vars(parser.parse_args())
    del arguments["name"]
    file, show, measure = (arguments.pop(key) for key in ("json", "show", "measure"))
    figures = measure(**arguments)
    show(figures)
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def _show(figures: dict[str, float]) -> None:
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>12,.3f}")


if __name__ == "__main__":
    main()
