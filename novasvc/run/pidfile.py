"""Check twistd's pid file before twistd does, and say what to do about it."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from inspect import currentframe
from pathlib import Path
from traceback import walk_stack
from typing import Any

from novasvc.errors import ProblemError


def check_pid_file(twistd: Mapping[str, Any] | None) -> None:
    """Check that no running process is named in the pid file that twistd is going to write.

    A file with the pid of this very process is removed: a former process had the same pid, as in a container that is
    started again after a kill. twistd would take it for a server that runs.

    :param twistd: twistd's own options; None if another program runs the plugin.
    :raises ProblemError: a process runs. twistd itself removes the file of a process that has ended.
    """
    name = None if twistd is None or "pidfile" not in twistd else twistd["pidfile"]
    if not name:
        return
    path = Path(name).absolute()
    with suppress(OSError, ValueError, OverflowError):
        pid = int(path.read_text(encoding="ascii"))
        if pid == os.getpid():
            path.unlink()
        elif _runs(pid):
            problem = f"process {pid} is running with this pid file"
            remedy = (
                "to run another one beside it, give it no pid file: `twistd -n --pidfile= novasvc`; "
                "`novasvc run PACKAGE.MODULE:CLASS` never has one"
            )
            raise ProblemError(f"pid file {str(path)!r}", problem, remedy)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def remove_pid_file() -> None:
    """Remove the pid file of the twistd that has called this function, as twistd does when its reactor has stopped.

    For a process that is about to run its program again without a return to twistd: it keeps its pid, so twistd would
    take the file for that of another server. Does nothing if twistd is not on the stack.
    """
    app = sys.modules.get("twisted.application.app")
    for frame, _ in walk_stack(currentframe()):
        runner = frame.f_locals.get("self")
        if app is not None and isinstance(runner, app.ApplicationRunner) and (name := runner.config.get("pidfile")):
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108 - also called in the handler of a signal
            return
