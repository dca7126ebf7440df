"""Check twistd's pid file before twistd does, and say what to do about it."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from novasvc.errors import ProblemError


def check_pid_file(twistd: Mapping[str, Any] | None) -> None:
    """Check that no running process is named in the pid file that twistd is going to write.

    :param twistd: twistd's own options; None if another program runs the plugin.
    :raises ProblemError: a process runs. twistd itself removes the file of a process that has ended.
    """
    name = None if twistd is None or "pidfile" not in twistd else twistd["pidfile"]
    if not name:
        return
    path = Path(name).absolute()
    with suppress(OSError, ValueError, OverflowError):
        pid = int(path.read_text(encoding="ascii"))
        if pid != os.getpid() and _runs(pid):
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
