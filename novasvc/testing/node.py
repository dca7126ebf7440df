"""One running manager of a fleet."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import attrs

from novasvc.node.service import Service
from novasvc.periodic import TaskStats
from novasvc.periodic.errors import UnknownTaskError
from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceRecord
from novasvc.testing.waiting import Answer

if TYPE_CHECKING:
    from novasvc.testing.fleet import Fleet

M = TypeVar("M")


@attrs.frozen(eq=False)
class FleetNode(Generic[M]):
    """A node of a fleet: its manager, its row, its tasks.

    :param service: the node, as it would run in a process; start and stop it here.
    """

    _fleet: "Fleet"
    service: Service

    def __repr__(self) -> str:
        return f"<FleetNode {self.topic} at {self.host}, {self.service.state}>"

    @property
    def manager(self) -> M:
        """The manager."""
        return cast("M", self.service.manager)

    @property
    def host(self) -> str:
        """The host's name."""
        return self.service.host

    @property
    def topic(self) -> str:
        """The topic that it serves."""
        return self.service.topic

    def start(self) -> None:
        """Start the node, and advance the time until it runs.

        :raises StartError: it does not start; the error says which step failed, and why.
        :raises NotSettledError: it still waits when the limit of the fleet is reached.
        """
        self._fleet.run(self.service.start())

    def stop(self) -> None:
        """Stop the node, and advance the time until its work is done, or cancelled at graceful_shutdown_timeout."""
        self._fleet.run(self.service.stop())

    def call(self, method: str, /, **args: Any) -> Answer[Any]:
        """Call a method of this node, and no other of its topic; see :meth:`Fleet.call`."""
        return self._fleet.call(f"{self.topic}.{self.host}", method, **args)

    # -- heartbeats ------------------------------------------------------------------------------

    @property
    def row(self) -> ServiceRecord:
        """The node's row in the ``services`` table, as it is now: report_count, last_seen_up, age, disabled.

        :raises ServiceNotFoundError: it is not registered, or was deleted.
        """
        return self._fleet.row(self.service.binary, self.host)

    @property
    def is_up(self) -> bool:
        """Whether others see it as up: its last heartbeat is at most service_down_time ago."""
        return is_up(self.row, self.service.runtime.settings.service_down_time)

    # -- tasks -----------------------------------------------------------------------------------

    @property
    def tasks(self) -> dict[str, TaskStats]:
        """The statistics of its periodic tasks, by name: runs, failures, missed, next_due."""
        return {stats.name: stats for stats in self.service.tasks.stats()}

    def run_task(self, name: str) -> Answer[Any]:
        """Run a periodic task now; its next run is due one spacing later.

        :return: fires with the task's result. Fails with the task's exception, or with UnknownTaskError.
        """
        return self._fleet.answer(self.service.tasks.run_now(name))

    def due_in(self, name: str) -> float:
        """Return the seconds until a periodic task is due; below 0 if it is overdue.

        :raises UnknownTaskError: there is no such task.
        """
        tasks = self.tasks
        if name not in tasks:
            raise UnknownTaskError(name, sorted(tasks))
        return tasks[name].next_due - self._fleet.seconds()
