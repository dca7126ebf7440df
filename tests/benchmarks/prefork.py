"""Worker processes: how soon one is there again, what they cost, and whether a reload loses anything.

Beside novasvc's, with an idle service and with whole nodes, those of oslo.service on eventlet and
of cotyledon with an idle service. All run side by side and take turns in being killed, since a
machine's speed varies. The peers say nothing of when a worker is ready: theirs is the time until
its service is started ("up"), and ours has both.
"""

import os
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from random import Random
from types import MappingProxyType

import attrs

from tests.benchmarks import rolling
from tests.benchmarks.peers.launched import Launched, cpu_seconds, launched, see_installed
from tests.benchmarks.peers.process import LeftOutError

WORKERS = 4
MANY = 64
SPACING = 1.25
"""Seconds between two kills of workers of one program: then nobody's limit of forks per second is met."""

SETTLE = 5.0
"""Seconds in which those that have just started come to rest."""

MIB = 2**20


@attrs.frozen
class Program:
    """Something that runs workers.

    :param module: of the peers.
    :param role: its first argument.
    :param needs: modules that have to be installed.
    :param packages: what ``pip install`` calls them.
    """

    module: str
    role: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    packages: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is novasvc."""
        return not self.needs

    def running(self, workers: int, python: str) -> AbstractContextManager[Launched]:
        """Have it run."""
        return launched(self.module, *self.role, workers, python=sys.executable if self.ours else python)


PROGRAMS: Mapping[str, Program] = MappingProxyType(
    {
        "novasvc": Program("novasvc_workers", ("idle",)),
        "novasvc_node": Program("novasvc_workers", ("node",)),
        "oslo_service": Program("oslo_service", needs=("oslo_service", "eventlet"), packages="oslo.service eventlet"),
        "cotyledon": Program("cotyledon", needs=("cotyledon",), packages="cotyledon"),
    }
)
PARTS = ("idle", "memory", "restart", "many", "http", "rpc")

Standing = Mapping[str, Launched]
"""Programs that run, by name."""


def add_options(parser: ArgumentParser) -> None:
    """Add what the command line can say of this benchmark."""
    parser.add_argument("--parts", type=_some(PARTS), default=PARTS, help=f"only these of {','.join(PARTS)}")
    parser.add_argument("--peers", type=_some(tuple(PROGRAMS)), default=tuple(PROGRAMS), help="only these")
    parser.add_argument("--python", default=sys.executable, help="interpreter that oslo.service and cotyledon are in")
    parser.add_argument("--kills", type=int, default=30, help="of each program's workers")
    parser.add_argument("--idle-seconds", type=float, default=30.0, help="to watch idle supervisors")
    parser.add_argument("--rounds", type=int, default=3, help="of starting many workers")
    parser.add_argument("--reloads", type=int, default=2, help="under each load")


def _some(names: Sequence[str]) -> Callable[[str], Sequence[str]]:
    def parse(text: str) -> Sequence[str]:
        given = text.split(",")
        if not set(given) <= set(names):
            raise ValueError
        return given

    return parse


def measure(
    parts: Sequence[str], peers: Sequence[str], python: str, kills: int, idle_seconds: float, rounds: int, reloads: int
) -> dict[str, float]:
    """Measure the programs that are installed; say on stderr which are not.

    :param parts: of :data:`PARTS`.
    :param peers: of :data:`PROGRAMS`.
    :param python: path of the interpreter for those that are not ours.
    :param kills: > 0, of workers of each program.
    :param idle_seconds: > 0.
    :param rounds: > 0, of starting many workers.
    :param reloads: > 0.
    :return: "prefork.PROGRAM.COLUMN": see :func:`_idle`, :func:`_memory`, :func:`_restart` and :func:`_many`.
        "prefork.ratio.PEER.COLUMN": ours, with the idle service, over the peer's; less is better.
        "prefork.reload.http.NAME" and "prefork.reload.rpc.NAME": see :mod:`tests.benchmarks.rolling`.
    """
    figures = {"prefork.load_average_before": os.getloadavg()[0]}
    names = list(_find(peers, python))
    points: dict[str, dict[str, float]] = {name: {} for name in names}
    if {"idle", "memory", "restart"} & set(parts):
        with ExitStack() as stack:
            programs = {name: stack.enter_context(PROGRAMS[name].running(WORKERS, python)) for name in names}
            for name, program in programs.items():
                _wait(name, program, WORKERS)
            _say(f"they settle for {SETTLE:g} s")
            time.sleep(SETTLE)
            if "idle" in parts:
                _add(points, _idle(programs, idle_seconds))
            if "memory" in parts:
                _add(points, _memory(programs))
            if "restart" in parts:
                _add(points, _restart(programs, kills))
    if "many" in parts:
        _add(points, _many(names, python, rounds))
    for name, columns in points.items():
        figures |= {f"prefork.{name}.{column}": value for column, value in columns.items()}
    figures |= _ratios(points)
    for part, reload in (("http", rolling.http), ("rpc", rolling.rpc)):
        if part in parts:
            _say(f"{reloads} reloads under load: {part}")
            figures |= {f"prefork.reload.{part}.{name}": value for name, value in reload(reloads).items()}
    return figures


def _find(names: Sequence[str], python: str) -> Iterator[str]:
    for name in names:
        program = PROGRAMS[name]
        try:
            if not program.ours:
                see_installed(python, program.needs, program.packages)
        except LeftOutError as error:
            _say(str(error))
        else:
            yield name


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _add(points: dict[str, dict[str, float]], more: Mapping[str, Mapping[str, float]]) -> None:
    for name, columns in more.items():
        points[name].update(columns)


def _wait(name: str, program: Launched, workers: int) -> dict[int, float]:
    """Wait until all are up, and, where somebody knows that, ready; return since when they are."""
    program.wait_up(workers)
    return program.wait_ready(workers) if PROGRAMS[name].ours else program.up


# -- four workers each, side by side ---------------------------------------------------------------


def _idle(programs: Standing, seconds: float) -> dict[str, dict[str, float]]:
    """Measure processor time: of the supervisor, and of all processes together with the idle workers.

    :return: "supervisor_percent", "all_percent" of one processor.
    """
    _say(f"all are idle for {seconds:g} s")
    families = {name: [process.pid for process in program.family()] for name, program in programs.items()}
    before = {pid: cpu_seconds(pid) for family in families.values() for pid in family}
    time.sleep(seconds)
    after = {pid: cpu_seconds(pid) for pid in before}
    share = {pid: (after[pid] - before[pid]) / seconds * 100 for pid in before}
    return {
        name: {"supervisor_percent": share[family[0]], "all_percent": sum(share[pid] for pid in family)}
        for name, family in families.items()
    }


def _memory(programs: Standing) -> dict[str, dict[str, float]]:
    """Measure memory.

    :return: private MiB: "worker_mib", the median; "supervisor_mib"; "forkserver_mib", 0 where there is none.
        "all_mib": of all processes together, what they share counted once.
    """
    _say("memory")
    figures = {}
    for name, program in programs.items():
        family = program.family()
        infos = {process.pid: process.memory_full_info() for process in family}
        others = set(infos) - set(program.up) - {program.pid}
        figures[name] = {
            "worker_mib": statistics.median(infos[pid].uss for pid in program.up) / MIB,
            "supervisor_mib": infos[program.pid].uss / MIB,
            "forkserver_mib": sum(infos[pid].uss for pid in others) / MIB,
            "all_mib": sum(info.pss for info in infos.values()) / MIB,
        }
    return figures


def _restart(programs: Standing, kills: int) -> dict[str, dict[str, float]]:
    """Kill one worker of each program in turn, and again.

    :return: milliseconds from kill -9 until the service of the new worker is started, "up_ms", and until
        the supervisor says that it is ready, "ready_ms" (to the millisecond): medians; with "_max", the longest.
    """
    _say(f"{kills} workers of each are killed")
    source = Random(0)
    up: dict[str, list[float]] = {name: [] for name in programs}
    ready: dict[str, list[float]] = {name: [] for name in programs if PROGRAMS[name].ours}
    for _ in range(kills):
        turn = time.monotonic()
        for name, program in programs.items():
            pid, when = program.kill_one(source)
            program.wait_up(WORKERS)
            (new,) = list(program.up)[-1:]
            up[name].append(program.up[new] - when)
            if name in ready:
                ready[name].append(program.wait_ready(WORKERS, other_than=frozenset({pid}))[new] - when)
            turn += SPACING / len(programs)
            time.sleep(max(0.0, turn - time.monotonic()))
    figures = {name: _spread("up", seconds) for name, seconds in up.items()}
    for name, seconds in ready.items():
        figures[name] |= _spread("ready", seconds)
    return figures


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    return {f"{name}_ms": statistics.median(seconds) * 1000, f"{name}_max_ms": max(seconds) * 1000}


# -- many workers ----------------------------------------------------------------------------------


def _many(names: Sequence[str], python: str, rounds: int) -> dict[str, dict[str, float]]:
    """Start many workers, from nothing.

    :return: seconds from the start of the supervisor's process until all are up, "many_up_s", and until all
        are ready, "many_ready_s"; medians.
    """
    up: dict[str, list[float]] = {name: [] for name in names}
    ready: dict[str, list[float]] = {name: [] for name in names if PROGRAMS[name].ours}
    for number in range(rounds):
        for name in names:
            _say(f"{MANY} workers of {name}, round {number + 1} of {rounds}")
            with PROGRAMS[name].running(MANY, python) as program:
                since = _wait(name, program, MANY)
                up[name].append(max(program.up.values()) - program.began)
                if name in ready:
                    ready[name].append(max(since.values()) - program.began)
    figures = {name: {"many_up_s": statistics.median(seconds)} for name, seconds in up.items()}
    for name, seconds in ready.items():
        figures[name]["many_ready_s"] = statistics.median(seconds)
    return figures


# -- what is shown ---------------------------------------------------------------------------------


def _ratios(points: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    if "novasvc" not in points:
        return {}
    ratios = {}
    for name, columns in points.items():
        if not PROGRAMS[name].ours:
            for column, theirs in columns.items():
                ours = points["novasvc"][column]
                if theirs:
                    ratios[f"prefork.ratio.{name}.{column}"] = ours / theirs
    return ratios


def show(figures: dict[str, float]) -> None:
    """Print a table of the programs, and what has no place in it below."""
    shown = [name for name in PROGRAMS if any(figure.startswith(f"prefork.{name}.") for figure in figures)]
    columns = list(dict.fromkeys(figure.rpartition(".")[2] for figure in figures if figure.split(".")[1] in PROGRAMS))
    if shown:
        print(f"{'':22}" + "".join(f"{name:>14}" for name in shown))
        for column in columns:
            cells = (figures.get(f"prefork.{name}.{column}") for name in shown)
            print(f"{column:22}" + "".join(f"{'':>14}" if cell is None else f"{cell:14,.2f}" for cell in cells))
        print()
    for name, value in figures.items():
        if name.split(".")[1] not in PROGRAMS:
            print(f"{name:44}{value:12,.2f}")
