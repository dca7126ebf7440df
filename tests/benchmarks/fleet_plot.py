"""Draw figures of the benchmark ``fleet``: `python -m tests.benchmarks.fleet_plot --output FILE LABEL=JSON ...`.

Each JSON file is one that ``python -m tests.benchmarks fleet --json`` wrote; those with the same label make one line.
The plot has the time of a heartbeat above and the use of processors below, over the number of nodes.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, StrMethodFormatter

CORES = {"conductor": "-", "database": "--", "broker": ":"}
"""What uses processors, and the style of its line."""


def main() -> None:
    """Read the files and write the plot; its format is that of its name."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fleet_plot", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("runs", nargs="+", metavar="LABEL=JSON")
    arguments = parser.parse_args()
    runs: dict[str, dict[str, float]] = {}
    for run in arguments.runs:
        label, name = run.split("=", 1)
        runs.setdefault(label, {}).update(json.loads(Path(name).read_text()))
    draw(runs, arguments.output)


def draw(runs: Mapping[str, Mapping[str, float]], output: Path) -> None:
    """Draw runs.

    :param runs: the figures of each, by its label.
    """
    plt.rcParams["svg.hashsalt"] = "novasvc"  # the same figures make the same file
    figure, (times, cores) = plt.subplots(2, 1, sharex=True, figsize=(10, 7), layout="constrained")
    for number, (label, figures) in enumerate(runs.items()):
        color = f"C{number}"
        _line(times, figures, "p50_ms", color, ":", f"{label}, p50")
        _line(times, figures, "p99_ms", color, "-", f"{label}, p99")
        for name, style in CORES.items():
            _line(cores, figures, f"{name}_core", color, style, f"{label}: {name}")
    times.set_ylabel("from due to durable, ms")
    cores.set_ylabel("processor cores")
    cores.set_xlabel("nodes")
    for axes in (times, cores):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def _line(axes: Axes, figures: Mapping[str, float], name: str, color: str, style: str, label: str) -> None:
    found = [re.fullmatch(rf"fleet\.(\d+)\.{name}", key) for key in figures]
    points = sorted((int(match[1]), figures[match[0]]) for match in found if match is not None)
    if points:
        axes.plot(*zip(*points, strict=True), color=color, linestyle=style, marker=".", label=label)


if __name__ == "__main__":
    main()
