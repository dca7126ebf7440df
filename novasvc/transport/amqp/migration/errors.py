"""Errors of a change of queue type."""

import attrs

from novasvc.rpc.errors import RPCError


@attrs.define
class MigrationLockedError(RPCError):
    """Another command replaces the queues of this control exchange.

    :param broker: its URL, password masked.
    :param exchange: the control exchange.
    """

    broker: str
    exchange: str

    def __str__(self) -> str:
        return (
            f"broker {self.broker}: another `novasvc broker migrate` replaces the queues of {self.exchange}; "
            "wait until it has ended"
        )


@attrs.define
class OtherArgumentsError(RPCError):
    """A queue differs in an argument that is not its type.

    :param queue: its name.
    :param argument: the property or argument, as the broker calls it.
    """

    queue: str
    argument: str

    def __str__(self) -> str:
        return (
            f"queue {self.queue}: it differs from the settings in {self.argument}, which a change of type does not "
            "change; run the command with the settings of the services (--config)"
        )


@attrs.define
class UnknownConsumersError(RPCError):
    """Programs consume from a queue that do not take part: servers of oslo.messaging, or of a release without this.

    :param queue: its name.
    :param consumers: their number.
    :param durable: whether the control exchange is durable.
    """

    queue: str
    consumers: int
    durable: bool

    def __str__(self) -> str:
        exchange = "" if self.durable else ", for which the control exchange has to be durable"
        return (
            f"queue {self.queue}: {self.consumers} of its consumers did not answer: servers of oslo.messaging, or of a "
            "release of novasvc without this command; stop or upgrade them, leave their topic out (--topic), or cut "
            "them off (--cut-off-others) and then restart servers of oslo.messaging with "
            f"rabbit_quorum_queue = true{exchange}"
        )


@attrs.define
class MigrationStalledError(RPCError):
    """A step did not end in time. Calls go on; the command can be run again.

    :param step: what was waited for.
    :param seconds: how long.
    """

    step: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.step}, still after {self.seconds:g} s; calls go on, and nothing is lost: run the command again to go "
            "on, and restart no node before"
        )


@attrs.define
class NothingToMigrateError(RPCError):
    """The control exchange does not exist, or no topic is known.

    :param subject: what was looked for.
    :param problem: what was found.
    :param remedy: what to do.
    """

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}; {self.remedy}"
