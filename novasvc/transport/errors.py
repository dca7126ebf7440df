"""Errors of the message broker."""

import attrs

from novasvc.errors import ProblemError
from novasvc.rpc.errors import RPCError


@attrs.define
class BrokerError(RPCError):
    """A broker operation failed; base class of the specific reasons.

    :param broker: URL of the broker, password masked.
    :param problem: the broker's message or what was observed, in one line.
    """

    broker: str
    problem: str

    remedy = "see the broker's log"

    def __str__(self) -> str:
        return f"broker {self.broker}: {self.problem}; {self.remedy}"


class BrokerUnavailableError(BrokerError):
    """The broker does not answer, or the connection failed or was lost; retryable."""

    remedy = "check that the broker is running and reachable from this host"


class BrokerRefusedError(BrokerUnavailableError):
    """Access denied: credentials, virtual host, permissions or TLS; retryable at a slow pace."""

    remedy = "correct transport_url, the TLS settings, or the user's permissions on the broker"


class BrokerLimitError(BrokerRefusedError):
    """The broker's limit of connections, channels or queues is reached; retryable at a slow pace."""

    remedy = "raise the limit on the broker, or close unused connections and delete unused queues"


class BrokerFailedError(BrokerUnavailableError):
    """The broker closed the connection or channel with an error, such as an internal or a protocol error; retryable."""

    remedy = "see the broker's log"


class BrokerBlockedError(BrokerError):
    """The broker blocks publishers because of a memory or disk alarm; the message was not sent."""

    remedy = "free memory or disk space on the broker; consumers continue meanwhile"


class DeclarationMismatchError(BrokerError):
    """A queue or exchange already exists with different properties or arguments."""

    remedy = "give all services the same queue settings, or delete it on the broker while it is unused"


class DeclarationDeniedError(BrokerError):
    """The broker denies a queue feature that our settings require."""

    remedy = (
        "set amqp_durable_queues or rabbit_quorum_queue for all services and clients of this control exchange, "
        "or permit the feature on the broker"
    )


@attrs.define
class ServiceRestartingError(RPCError):
    """The service restarts because its code changed, or ended with an error in its code; it was not called.

    :param target: target as text.
    :param pid: the process that restarts the service: `novasvc run --reload`.
    :param waited: seconds that the caller waited for it.
    :param ended: how the service ended, if it starts only when a file changes; else "".
    """

    target: str
    pid: int
    waited: float
    ended: str = ""

    def __str__(self) -> str:
        restarts = f"`novasvc run --reload` (pid {self.pid})"
        if self.ended:
            return (
                f"{self.target} does not run: it ended {self.ended}, and {restarts} starts it when a file changes; "
                "the reason is in the output of that command"
            )
        return (
            f"{self.target} is restarting, and did not serve within {self.waited:g} s; "
            f"see the output of {restarts}, or try again"
        )


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
            f"{self.step}, still after {self.seconds:g} s; calls go on, and nothing is lost: run the command again to "
            "go on, and restart no node before"
        )


class NothingToMigrateError(ProblemError):
    """There are no queues to replace, or none that can be."""
