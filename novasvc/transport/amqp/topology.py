"""What has to exist on the broker, declared as OpenStack's services declare it.

The values have to be those of every other program that declares the same name, or the broker
refuses (406). Replies' and fanouts' queues are private names. See ``docs/protocol.md``.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.errors import (
    BrokerError,
    BrokerFailedError,
    BrokerLimitError,
    BrokerRefusedError,
    BrokerUnavailableError,
    DeclarationDeniedError,
    DeclarationMismatchError,
)
from novasvc.rpc.target import Target
from novasvc.transport.amqp.channel import Channel, ClosedError
from novasvc.transport.amqp.content import RUNNING, UNCLAIMED
from novasvc.transport.amqp.options import BrokerOptions

_PRECONDITION_FAILED, _NOT_ALLOWED, _INTERNAL_ERROR = 406, 530, 541

_NODE_DOWN = "down or inaccessible"
"""What the broker says of a queue whose node is not there; it comes again with it."""

_LIMIT = re.compile(r"limit .*is reached|reached (the )?maximum|has reached the")
"""What it says of a limit that an operator, or AMQP's handshake, has set, with 406 or 530."""

_TOO_LARGE = "message size"
"""What it says of one message that is over its own limit, with 406."""

_TRANSIENT = "transient_nonexcl_queues"
_DENIED = re.compile(r"Feature `(\w+)` is deprecated")
"""What it says of a deprecated feature that it does not permit."""

_DELETE_PATIENCE = 3.0
"""Seconds."""

QUARANTINE_BOUND = 1000
"""Messages that a queue of quarantined ones keeps; the oldest go first."""

CLAIM_PATIENCE = 5.0
"""Seconds that a process has, when its channel or its connection was lost, to claim the requests that it runs."""
_RUNNING_TTL = 1.0
"""Seconds that a request waits in a process's queue for that process, which consumes it."""
_RUNNING_EXPIRY = 1800.0
"""Seconds after which the queue of running requests of a process that is gone goes, too; it is empty long before."""
# Note [Reply codes]
#
# What a code means for us, and so whether and how soon it is tried again. The broker closes a channel with 311, 403,
# 404, 405 and 406, and the connection with all others, as it does with 403 in the handshake.
#
# 320       somebody closed the connection, or the broker stops: an outage
# 402, 530  a virtual host that is not there or not for us, or a limit: an operator has to act
# 403       a user or a permission: an operator has to act
# 404       a queue that is gone, or whose node is down, which comes back with it
# 405       a queue that is another connection's own
# 406       declared with other values, or a limit
# 501-505   the broker takes what we sent for no AMQP: a defect here or there, so that trying at once is of no use
# 506, 541  an error of the broker's own (a virtual host that is down, metadata that time out), which may pass;
#           but 541 is also how it denies a deprecated feature, and then other settings are needed
# 540       what we ask for is not implemented
#
# Source: AMQP 0-9-1 1.2; rabbit_framing, rabbit_channel, rabbit_reader and rabbit_amqqueue of RabbitMQ 3.10 to 4.3.

_KINDS: Mapping[int, type[BrokerError]] = {
    **dict.fromkeys((402, 403, 530), BrokerRefusedError),
    **dict.fromkeys((311, 404, 405), BrokerError),
    _PRECONDITION_FAILED: DeclarationMismatchError,
    **dict.fromkeys((501, 502, 503, 504, 505, 506, 540, _INTERNAL_ERROR), BrokerFailedError),
}


def refusal(broker: str, reason: ClosedError) -> BrokerError:
    """Say why the broker closed a channel or a connection; see Note [Reply codes].

    :param broker: its URL, the password masked.
    """
    code, problem = reason.code, reason.problem
    kind = _KINDS.get(code, BrokerUnavailableError)
    if is_denial(reason):
        kind, problem = DeclarationDeniedError, _denied(reason)
    elif code in {_PRECONDITION_FAILED, _NOT_ALLOWED} and _LIMIT.search(problem):
        kind = BrokerLimitError
    elif code == _PRECONDITION_FAILED and _TOO_LARGE in problem:
        kind = BrokerError
    elif _NODE_DOWN in problem:
        kind = BrokerUnavailableError
    elif kind is BrokerFailedError:
        problem = f"it answered with an error: {reason}"
    elif kind is BrokerUnavailableError:
        problem = str(reason)
    return kind(broker, problem)


def is_denial(reason: ClosedError) -> bool:
    """Tell whether the broker does not permit a deprecated feature: for us, transient queues that are not exclusive."""
    return reason.code == _INTERNAL_ERROR and _DENIED.search(reason.problem) is not None


def _denied(reason: ClosedError) -> str:
    found = _DENIED.search(reason.problem)
    feature = found[1] if found is not None else ""
    what = "queues that are neither durable nor exclusive" if feature == _TRANSIENT else "what we declare"
    return f"it does not permit {what} ({reason.code}, deprecated feature {feature})"


def request_address(target: Target) -> str:
    """Return the routing key of a target, which is its queue's name as well."""
    return target.topic if target.server is None else f"{target.topic}.{target.server}"


def fanout_exchange(topic: str) -> str:
    """Return the exchange that copies to all servers of a topic; control exchanges share it."""
    return f"{topic}_fanout"


def new_fanout_queue(topic: str) -> str:
    """Make the name of one server's queue for fanouts."""
    return f"{topic}_fanout_{os.urandom(16).hex()}"


def new_reply_queue() -> str:
    """Make the name of a queue for replies."""
    return f"reply_{os.urandom(16).hex()}"


def new_running_queue(queue: str) -> str:
    """Make the name of one process's queue for the requests that it runs.

    :param queue: where the requests came from.
    """
    return f"{queue}{RUNNING}{os.urandom(16).hex()}"


def unclaimed_queue(running: str) -> str:
    """Return the queue for requests that their process does not claim."""
    return f"{running}{UNCLAIMED}"


def quarantine_queue(topic: str) -> str:
    """Return the queue that keeps a topic's messages that are not to be run again."""
    return f"{topic}_quarantine"


class Binding(NamedTuple):
    """What makes an exchange put messages into a queue."""

    queue: str
    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"the binding of the queue {self.queue} to the exchange {self.exchange}"


def bind(channel: Channel, binding: Binding) -> Deferred[Any]:
    """Make a binding; one that is there stays."""
    return channel.queue_bind(**binding._asdict())  # type: ignore[no-any-return]


def unbind(channel: Channel, binding: Binding) -> Deferred[Any]:
    """Remove a binding; one that is not there is no error."""
    return channel.queue_unbind(**binding._asdict())  # type: ignore[no-any-return]


async def count(channel: Channel, queue: str) -> tuple[int, int]:
    """Return how many messages wait in a queue, and how many consumers it has. Quorum queues may say 0 of both.

    :raises ClosedError: it is not there.
    """
    _, messages, consumers = await channel.queue_declare(queue=queue, passive=True)
    return messages, consumers


def declare_exchange(channel: Channel, exchange: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a control exchange."""
    return channel.exchange_declare(  # type: ignore[no-any-return]
        exchange=exchange,
        type="topic",
        durable=options.durable_queues or options.quorum_queue,
        auto_delete=options.auto_delete,
    )


def declare_fanout_exchange(channel: Channel, topic: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare the exchange of a topic's fanouts; it goes with the last queue that is bound to it."""
    return channel.exchange_declare(  # type: ignore[no-any-return]
        exchange=fanout_exchange(topic),
        type="fanout",
        durable=options.transient_quorum_queue,
        auto_delete=True,
    )


async def declare_request_queue(channel: Channel, exchange: str, name: str, options: BrokerOptions) -> None:
    """Declare a queue of requests and bind it to its exchange."""
    await channel.queue_declare(
        queue=name,
        durable=options.durable_queues or options.quorum_queue,
        auto_delete=options.auto_delete,
        arguments=_quorum(options) if options.quorum_queue else {},
    )
    await bind(channel, Binding(name, exchange, name))


async def declare_fanout_queue(channel: Channel, topic: str, name: str, options: BrokerOptions) -> None:
    """Declare one server's queue for fanouts, and bind it."""
    await declare_fanout_exchange(channel, topic, options)
    await _declare_transient(channel, name, options)
    await bind(channel, Binding(name, fanout_exchange(topic), topic))


def declare_reply_queue(channel: Channel, name: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a queue for replies; they are sent to it by its name."""
    return _declare_transient(channel, name, options)


async def delete_queue(channel: Channel, name: str, clock: IReactorTime, *, if_empty: bool = False) -> None:
    """Delete a private queue; a broker that does not answer is not waited for long: the queue goes by itself.

    :param if_empty: the broker closes the channel instead, if there is a message in it.
    :raises ClosedError: the channel is lost.
    """
    deleting: Deferred[Any] = channel.queue_delete(queue=name, if_empty=if_empty)
    await deleting.addTimeout(_DELETE_PATIENCE, clock, onTimeoutCancel=lambda *_: None)


async def declare_running_queues(channel: Channel, running: str, queue: str, options: BrokerOptions) -> None:
    """Declare one process's queue for the requests that it runs, and the one for those that it does not claim.

    :param running: its name.
    :param queue: where the requests came from, and go back to in the end.
    """
    # Note [Running requests]
    #
    # The process consumes both queues, so what is in them is in its hands, unacknowledged. If its
    # channel ends, the broker puts that back. In the first queue a message has expired then, or does
    # soon: its time counts from when it was sent, and a requeue does not begin it anew (RabbitMQ,
    # "TTL"). It moves to the second queue, where its time begins again. A process that lives is back
    # within that time, and gets it from there. What it does not claim returns to where it came
    # from, and bears an x-death header that names the second queue: somebody else runs it then,
    # and knows that a process died.
    #
    # The queues are durable, as brokers may refuse transient ones that are not exclusive, and
    # replicated if those of the requests are.
    unclaimed = unclaimed_queue(running)
    for name, seconds, then in ((running, _RUNNING_TTL, unclaimed), (unclaimed, CLAIM_PATIENCE, queue)):
        arguments = {
            **(_quorum(options) if options.quorum_queue else {}),
            "x-message-ttl": round(seconds * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": then,
            "x-expires": round(_RUNNING_EXPIRY * 1000),
        }
        await channel.queue_declare(queue=name, durable=True, arguments=arguments)


def declare_quarantine(channel: Channel, topic: str) -> Deferred[Any]:
    """Declare the queue that keeps a topic's messages that are not to be run again."""
    arguments = {"x-max-length": QUARANTINE_BOUND}
    return channel.queue_declare(queue=quarantine_queue(topic), durable=True, arguments=arguments)  # type: ignore[no-any-return]


def _declare_transient(channel: Channel, name: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a queue that nobody else declares, and that goes some time after its last use."""
    quorum = options.transient_quorum_queue
    arguments = _quorum(options) if quorum else {}
    if options.transient_queues_ttl:
        arguments["x-expires"] = round(options.transient_queues_ttl * 1000)
    durable = quorum or options.durable_private_queues
    return channel.queue_declare(queue=name, durable=durable, arguments=arguments)  # type: ignore[no-any-return]


def _quorum(options: BrokerOptions) -> dict[str, Any]:
    bounds: Mapping[str, int] = {
        "x-delivery-limit": options.quorum_delivery_limit,
        "x-max-in-memory-length": options.quorum_max_memory_length,
        "x-max-in-memory-bytes": options.quorum_max_memory_bytes,
    }
    return {"x-queue-type": "quorum", **{name: bound for name, bound in bounds.items() if bound}}
