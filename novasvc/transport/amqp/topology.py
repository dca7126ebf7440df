"""What has to exist on the broker, declared as OpenStack's services declare it.

The values have to be those of every other program that declares the same name, or the broker
refuses (406). Replies' and fanouts' queues are private names. See ``docs/protocol.md``.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.errors import BrokerError, BrokerRefusedError, BrokerUnavailableError, DeclarationMismatchError
from novasvc.target import Target
from novasvc.transport.amqp.channel import Channel, ClosedError
from novasvc.transport.amqp.options import BrokerOptions

_ACCESS_REFUSED, _NOT_FOUND, _RESOURCE_LOCKED, _PRECONDITION_FAILED = 403, 404, 405, 406

_NODE_DOWN = "down or inaccessible"
"""What the broker says of a queue whose node is not there; it comes again with it."""

_DELETE_PATIENCE = 3.0
"""Seconds."""

QUARANTINE_BOUND = 1000
"""Messages that a queue of quarantined ones keeps; the oldest go first."""


def refusal(broker: str, reason: ClosedError) -> BrokerError:
    """Say why the broker closed a channel.

    :param broker: its URL, the password masked.
    """
    if reason.code == _PRECONDITION_FAILED:
        return DeclarationMismatchError(broker, reason.problem)
    if reason.code == _ACCESS_REFUSED:
        return BrokerRefusedError(broker, reason.problem)
    if reason.code == _NOT_FOUND and _NODE_DOWN in reason.problem:
        return BrokerUnavailableError(broker, reason.problem)
    if reason.code in {_NOT_FOUND, _RESOURCE_LOCKED}:
        return BrokerError(broker, reason.problem)
    return BrokerUnavailableError(broker, str(reason))


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


async def delete_queue(channel: Channel, name: str, clock: IReactorTime) -> None:
    """Delete a private queue; a broker that does not answer is not waited for long: the queue goes by itself.

    :raises ClosedError: the channel is lost.
    """
    deleting: Deferred[Any] = channel.queue_delete(queue=name)
    await deleting.addTimeout(_DELETE_PATIENCE, clock, onTimeoutCancel=lambda *_: None)


def declare_quarantine(channel: Channel, topic: str) -> Deferred[Any]:
    """Declare the queue that keeps a topic's messages that are not to be run again."""
    arguments = {"x-max-length": QUARANTINE_BOUND}
    return channel.queue_declare(queue=quarantine_queue(topic), durable=True, arguments=arguments)  # type: ignore[no-any-return]


def _declare_transient(channel: Channel, name: str, options: BrokerOptions) -> Deferred[Any]:
    quorum = options.transient_quorum_queue
    arguments = _quorum(options) if quorum else {}
    if options.transient_queues_ttl:
        arguments["x-expires"] = round(options.transient_queues_ttl * 1000)
    return channel.queue_declare(queue=name, durable=quorum, arguments=arguments)  # type: ignore[no-any-return]


def _quorum(options: BrokerOptions) -> dict[str, Any]:
    bounds: Mapping[str, int] = {
        "x-delivery-limit": options.quorum_delivery_limit,
        "x-max-in-memory-length": options.quorum_max_memory_length,
        "x-max-in-memory-bytes": options.quorum_max_memory_bytes,
    }
    return {"x-queue-type": "quorum", **{name: bound for name, bound in bounds.items() if bound}}
