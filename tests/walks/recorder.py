"""Count the calls of our functions while a unit of work is done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

import novasvc

_PACKAGE = str(Path(novasvc.__file__).parent) + "/"
_STAND_INS = (_PACKAGE + "testing/", _PACKAGE + "registry/memory.py")
"""For tests of users' managers; the registry in memory is one of them."""
_INLINED = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>"})
"""Not calls from Python 3.12 on (PEP 709), so they are not counted in 3.11 either."""


@attrs.frozen
class Step:
    """One call of one of our functions.

    :param file: below the package, as "rpc/server.py".
    :param function: its qualified name.
    """

    file: str
    function: str


Walk = tuple[Step, ...]
"""The calls of one unit of work, in order. A coroutine or generator that is resumed is called again."""


class Recorder:
    """Records the calls of the package's functions in the thread that it is used in."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is called in this thread until the block ends, whoever calls it."""
        before = sys.getprofile()
        sys.setprofile(self._called)
        try:
            yield
        finally:
            sys.setprofile(before)

    def take(self) -> Walk:
        """Return what was recorded since the last time."""
        steps, self._steps = self._steps, []
        return tuple(steps)

    def _called(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        file = code.co_filename
        if event != "call" or code.co_name in _INLINED:
            return
        if file.startswith(_PACKAGE) and not file.startswith(_STAND_INS):
            self._steps.append(Step(file.removeprefix(_PACKAGE), code.co_qualname))


def record(work: Callable[[], Any]) -> Walk:
    """Do a unit of work that ends before it returns, and return its calls."""
    recorder = Recorder()
    with recorder.recording():
        work()
    return recorder.take()


def figures(walk: Walk) -> dict[str, int]:
    """Count a walk: "calls", "files", and "changes" of file between a call and the next one."""
    return {
        "calls": len(walk),
        "files": len({step.file for step in walk}),
        "changes": sum(step.file != following.file for step, following in pairwise(walk)),
    }
