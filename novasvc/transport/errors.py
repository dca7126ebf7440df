"""Errors of the message broker."""

import attrs

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
