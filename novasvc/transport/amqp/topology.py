"""Declarations of exchanges, queues and bindings, as OpenStack's services make them.

Arguments have to equal those of every other program that declares the same name, or the broker
refuses with 406 (AMQP 0-9-1 1.7.2.1). Reply and fanout queues have private names. See
``docs/protocol.md``.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.rpc.target import Target
from novasvc.transport.amqp.channel import Channel
from novasvc.transport.amqp.content import HOLDING, UNCLAIMED
from novasvc.transport.amqp.options import BrokerOptions

_DELETE_TIMEOUT = 3.0
"""Seconds to wait for queue.delete-ok."""

QUARANTINE_BOUND = 1000
"""Messages that a quarantine queue keeps; the oldest are dropped first."""

CLAIM_TIMEOUT = 5.0
"""Seconds in which a process has to consume its held requests again after it lost its channel or connection."""
_HOLDING_TTL = 1.0
"""Seconds that a request may wait in a holding queue for its process, which consumes it."""
_HOLDING_EXPIRY = 120.0
"""Seconds after which the unused queues of a dead process are deleted; they are empty long before."""
_LONGEST_KEY = 255
"""Octets of a routing key (AMQP 0-9-1, shortstr)."""


def request_address(target: Target) -> str:
    """Return a target's routing key, which is also the name of its queue."""
    return target.topic if target.server is None else f"{target.topic}.{target.server}"


def fanout_exchange(topic: str) -> str:
    """Return the name of a topic's fanout exchange, which is the same for all control exchanges."""
    return f"{topic}_fanout"


def new_fanout_queue(topic: str, options: BrokerOptions) -> str:
    """Return a private name for one server's fanout queue."""
    return options.private_names.take(f"{topic}_fanout_", _transient_arguments(options))


def new_reply_queue(options: BrokerOptions) -> str:
    """Return a private name for a reply queue."""
    return options.private_names.take("reply_", _transient_arguments(options))


def _transient_arguments(options: BrokerOptions) -> list[Any]:
    return [options.transient_quorum_queue, options.transient_queues_ttl, _quorum(options)]


async def claim(channel: Channel, name: str, consumers: int, messages: int, options: BrokerOptions) -> bool:
    """Claim a private queue for this process when it declares it for the first time.

    :param name: its name, which a predecessor may have had.
    :param consumers: its consumers, and
    :param messages: its messages, according to the broker.
    :return: whether nobody else uses it; what was left for a predecessor is purged then.
    """
    if not options.private_names.is_stable(name):
        return True
    if not consumers and messages:
        await channel.queue_purge(queue=name)
    return not consumers


async def is_shared(channel: Channel, name: str, options: BrokerOptions) -> bool:
    """Return whether another process consumes from a private queue, too, that this one has begun to consume from.

    Two that start at the same time both find the queue without a consumer; see :func:`claim`.
    """
    if not options.private_names.is_stable(name):
        return False
    _, consumers = await count(channel, name)
    return consumers > 1


def new_holding_queue(queue: str) -> str:
    """Return a new, unique name for a holding queue.

    :param queue: the queue that the requests came from.
    """
    return f"{queue}{HOLDING}{os.urandom(16).hex()}"


def unclaimed_queue(holding: str) -> str:
    """Return the name of the queue for requests that the process of a holding queue has not claimed."""
    return f"{holding}{UNCLAIMED}"


def quarantine_queue(topic: str) -> str:
    """Return the name of a topic's quarantine queue (dead letters that are not run again)."""
    return f"{topic}_quarantine"


class Binding(NamedTuple):
    """A route from an exchange to a queue by a routing key."""

    queue: str
    exchange: str
    routing_key: str

    def __str__(self) -> str:
        return f"the binding of the queue {self.queue} to the exchange {self.exchange}"


def bind(channel: Channel, binding: Binding) -> Deferred[Any]:
    """Make a binding; an existing one stays (AMQP 0-9-1 1.7.2.3).

    :return: Deferred, fired at queue.bind-ok; fails with AMQPClosedError.
    """
    return channel.queue_bind(**binding._asdict())  # type: ignore[no-any-return]


def unbind(channel: Channel, binding: Binding) -> Deferred[Any]:
    """Remove a binding; a missing one is no error in RabbitMQ.

    :return: Deferred, fired at queue.unbind-ok; fails with AMQPClosedError.
    """
    return channel.queue_unbind(**binding._asdict())  # type: ignore[no-any-return]


async def count(channel: Channel, queue: str) -> tuple[int, int]:
    """Return a queue's number of ready messages and of consumers. A quorum queue may report 0 for both.

    :raises AMQPClosedError: the queue does not exist.
    """
    _, messages, consumers = await channel.queue_declare(queue=queue, passive=True)
    return messages, consumers


def declare_exchange(channel: Channel, exchange: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a control exchange, of type topic."""
    return channel.exchange_declare(  # type: ignore[no-any-return]
        exchange=exchange,
        passive=exchange in options.accepted,
        type="topic",
        durable=options.durable_queues or options.quorum_queue,
        auto_delete=options.auto_delete,
    )


def declare_fanout_exchange(channel: Channel, topic: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a topic's fanout exchange; auto-delete: it goes with its last binding."""
    return channel.exchange_declare(  # type: ignore[no-any-return]
        exchange=fanout_exchange(topic),
        type="fanout",
        durable=options.transient_quorum_queue,
        auto_delete=True,
    )


async def declare_request_queue(channel: Channel, exchange: str, name: str, options: BrokerOptions) -> None:
    """Declare a queue of requests and bind it to its exchange.

    :raises AMQPClosedError: the broker refused, or was lost.
    """
    await channel.queue_declare(queue=name, passive=name in options.accepted, **request_queue_arguments(options))
    await bind(channel, Binding(name, exchange, name))


def request_queue_arguments(options: BrokerOptions) -> dict[str, Any]:
    """Return the properties and arguments with which queues of requests are declared."""
    return {
        "durable": options.durable_queues or options.quorum_queue,
        "auto_delete": options.auto_delete,
        "arguments": _quorum(options) if options.quorum_queue else {},
    }


async def declare_fanout_queue(channel: Channel, topic: str, name: str, options: BrokerOptions) -> tuple[int, int]:
    """Declare a server's fanout queue, and bind it to the topic's fanout exchange.

    :return: its number of messages, and of consumers.
    :raises AMQPClosedError: the broker refused, or was lost.
    """
    await declare_fanout_exchange(channel, topic, options)
    _, messages, consumers = await _declare_transient(channel, name, options)
    await bind(channel, Binding(name, fanout_exchange(topic), topic))
    return messages, consumers


def cancellation_key(target: Target) -> str:
    """Return the routing key of internal messages to a topic, or to one server of it; see Target."""
    key = f"novasvc.cancel.{request_address(target)}"
    # A key has 255 octets at most, as many as the name of a server's queue may have; the topic's key always fits.
    return key if len(key.encode()) <= _LONGEST_KEY else f"novasvc.cancel.{target.topic}"


def cancellation_bindings(exchange: str, target: Target, queue: str) -> list[Binding]:
    """Return the bindings of a server's fanout queue for internal messages, which other libraries' servers do not get.

    :param target: of the server.
    """
    # Messages to one server have a key of their own, so that they do not reach all the others of a large topic.
    keys = dict.fromkeys(cancellation_key(each) for each in (Target(target.topic), target))
    return [Binding(queue, exchange, key) for key in keys]


def declare_reply_queue(channel: Channel, name: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a reply queue; replies reach it by the default exchange."""
    return _declare_transient(channel, name, options)


async def delete_queue(channel: Channel, name: str, clock: IReactorTime, *, if_empty: bool = False) -> None:
    """Delete a private queue; wait 3 s at most, as the queue expires by itself.

    :param if_empty: if the queue has messages, the broker closes the channel with 406 instead.
    :raises AMQPClosedError: the channel was closed.
    """
    deleting: Deferred[Any] = channel.queue_delete(queue=name, if_empty=if_empty)
    await deleting.addTimeout(_DELETE_TIMEOUT, clock, onTimeoutCancel=lambda *_: None)


async def declare_holding_queues(channel: Channel, holding: str, queue: str, options: BrokerOptions) -> None:
    """Declare a holding queue, and the one for the requests in it that its process does not claim.

    :param holding: the name of the holding queue.
    :param queue: where the requests came from, and return to if their process is dead.
    :raises AMQPClosedError: the broker refused, or was lost.
    """
    # Note [Holding queues]
    #
    # The process consumes both queues, so every message in them is an unacknowledged delivery of this
    # process. If its channel ends, the broker requeues them. In the holding queue a message has expired
    # by then, or does so soon: its TTL counts from when it was published, and a requeue does not reset
    # it (RabbitMQ, "TTL"). The message is dead-lettered to the unclaimed queue, where its TTL starts
    # again. A living process reconnects within that time, and gets the message from there. A message
    # that is not claimed is dead-lettered to the queue that it came from, with an x-death header that
    # names the unclaimed queue. Another process runs it then, and knows that a process died.
    #
    # The queues are durable, because brokers may deny transient ones that are not exclusive. They are
    # replicated if the request queues are.
    unclaimed = unclaimed_queue(holding)
    for name, seconds, then in ((holding, _HOLDING_TTL, unclaimed), (unclaimed, CLAIM_TIMEOUT, queue)):
        arguments = {
            **(_quorum(options) if options.quorum_queue else {}),
            "x-message-ttl": round(seconds * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": then,
            "x-expires": round(_HOLDING_EXPIRY * 1000),
        }
        await channel.queue_declare(queue=name, durable=True, arguments=arguments)


def declare_quarantine(channel: Channel, topic: str) -> Deferred[Any]:
    """Declare a topic's quarantine queue."""
    arguments = {"x-max-length": QUARANTINE_BOUND}
    return channel.queue_declare(queue=quarantine_queue(topic), durable=True, arguments=arguments)  # type: ignore[no-any-return]


def _declare_transient(channel: Channel, name: str, options: BrokerOptions) -> Deferred[Any]:
    """Declare a private queue that expires some time after its last use."""
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
