"""Which worker this process is, if a supervisor started it.

The one value of the package that belongs to the process: a process is one worker for its whole life, and what is
made in it (runtimes, servers of streams) has to know that without being handed it, as users make these parts.
"""

import attrs

from novasvc.rpc.admission import Siblings
from novasvc.rpc.backlog import Backlog


@attrs.frozen
class CurrentWorker:
    """A worker process, as its supervisor sees it.

    :param number: from 0; None in a process without a supervisor.
    :param grace: seconds that it has to drain, 0 for no limit; None in a process without a supervisor.
    :param backlog: this process's record of requests that it has received and not begun; None without siblings.
    :param siblings: asks the other workers of this node; None if there are none.
    """

    number: int | None = None
    grace: float | None = None
    backlog: Backlog | None = None
    siblings: Siblings | None = None


_current = CurrentWorker()


def current_worker() -> CurrentWorker:
    """Return which worker this process is."""
    return _current


def set_current_worker(worker: CurrentWorker) -> None:
    """Have this process be a worker, before anything is made in it."""
    global _current  # noqa: PLW0603 - see the module's docstring
    _current = worker
