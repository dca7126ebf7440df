"""Imported by a forkserver, this lets the system fork no process for it, as long as a certain file is there.

Root may have any number of processes, so it is root's no more.
"""

import os
import resource

_, _MOST = resource.getrlimit(resource.RLIMIT_NPROC)

if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def _limit() -> None:
    most = 0 if os.path.exists(os.environ["NOVASVC_TEST_FULL"]) else _MOST  # noqa: PTH110 - in the midst of a fork
    resource.setrlimit(resource.RLIMIT_NPROC, (most, _MOST))


os.register_at_fork(before=_limit)
