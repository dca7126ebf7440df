"""The worker that a process is, if a supervisor forked it.

Parts that users construct themselves (runtimes, stream servers) need this without being passed it: see
Note [What belongs to the process] in :mod:`novasvc.reactor.local`.
"""

from collections.abc import Callable
from typing import Any, Literal

import attrs
from twisted.internet.defer import Deferred

from novasvc.reactor.local import ReactorLocal
from novasvc.rpc.server.admission import Siblings
from novasvc.rpc.server.unstarted_record import UnstartedRecord

ALONE, TOGETHER = "alone", "together"
"""The supervisor's answers to a worker that asks whether it ends alone."""

EndKind = Literal["drain", "end", "failure"]
"""What a worker asks about: that it begins to drain, that a service of it has ended, or that its start has failed."""

EndsAlone = Callable[[EndKind, str], Deferred[bool]]
"""Take a kind and the name of a service; return whether other workers go on with the service."""


@attrs.frozen
class SharedStart:
    """What the workers of one supervisor have in common: together they are one start of each of their services.

    :param owner: random id of the start; see :class:`novasvc.registry.incarnation.ServiceStart`.
    :param pid: of the supervisor.
    :param lock: what the supervisor and its workers hold; see :func:`~novasvc.workers.file_lock.lock_identity`.
    """

    owner: str
    pid: int
    lock: str | None = None


@attrs.frozen
class CurrentWorker:
    """A worker process; all fields are None in a process without a supervisor.

    :param number: the worker number, from 1.
    :param grace: seconds to drain; 0 is no limit.
    :param unstarted_record: shared record of requests that this process has received but not begun.
    :param siblings: queries the other workers of this node.
    :param start: what this process shares with them.
    :param ends_alone: asks whether an end concerns only this worker; see :data:`EndsAlone`.
    """

    number: int | None = None
    grace: float | None = None
    unstarted_record: UnstartedRecord | None = None
    siblings: Siblings | None = None
    start: SharedStart | None = None
    ends_alone: EndsAlone | None = None


_workers = ReactorLocal(lambda _: CurrentWorker())


def current_worker(reactor: Any) -> CurrentWorker:
    """Return the worker that runs on a reactor."""
    return _workers.get(reactor)


def set_current_worker(reactor: Any, worker: CurrentWorker) -> None:
    """Declare which worker runs on a reactor, before any part of it is constructed."""
    _workers.set(reactor, worker)
