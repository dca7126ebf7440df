"""The worker that this process is, if a supervisor forked it.

Process-wide state on purpose: a process is one worker for its whole life, and parts that users construct themselves
(runtimes, stream servers) need this without being passed it.
"""

import attrs

from novasvc.rpc.admission import Siblings
from novasvc.rpc.backlog import Backlog


@attrs.frozen
class CurrentWorker:
    """A worker process; all fields are None in a process without a supervisor.

    :param number: the worker number, from 1.
    :param grace: seconds to drain; 0 is no limit.
    :param backlog: shared record of requests that this process has received but not begun.
    :param siblings: queries the other workers of this node.
    """

    number: int | None = None
    grace: float | None = None
    backlog: Backlog | None = None
    siblings: Siblings | None = None


_current = CurrentWorker()


def current_worker() -> CurrentWorker:
    """Return the worker that this process is."""
    return _current


def set_current_worker(worker: CurrentWorker) -> None:
    """Declare which worker this process is, before any part is constructed in it."""
    global _current  # noqa: PLW0603 - see the module's docstring
    _current = worker
