"""How messages reach a queue while it is replaced: the bindings and exchanges, and the order of their changes."""

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.replacement import interim_queue
from novasvc.transport.amqp.topology import Binding

# Note [Replacing a queue]
#
# A queue's type cannot be changed, and its name has to stay: it is the topic. So the queue is emptied,
# deleted, and declared anew, while its messages go to an interim queue. Moving a binding from one queue
# to another would lose messages (none is bound for a moment) or double them (both are). Two exchanges
# avoid that:
#
#     control exchange --key--> novasvc.route.Q --> Q
#                                    | if nothing is bound to it (alternate exchange)
#                                    v
#                               novasvc.interim.Q --> Q_interim
#
# An exchange sends a message to its alternate exchange exactly if it has no queue for it, and a message
# that reaches a queue by several routes is put into it once (RabbitMQ, "Alternate Exchanges",
# "Exchange to Exchange Bindings"). So each of these steps, in this order, changes nothing or moves all
# messages at once:
#
#  1. The two exchanges, with Q bound, are bound beside Q itself: the same queue by two routes.
#  2. Q's own binding is removed: the same queue by one route.
#  3. Q is unbound from novasvc.route.Q: now all messages go to the interim queue.
#  4. Q is emptied by its consumers, deleted, declared anew, and bound to novasvc.route.Q: now all
#     messages go to the new queue.
#  5. The new Q is bound to the control exchange, and the route is removed.
#
# The broker reads the bindings of one exchange after the other. A message that it was routing since
# before step 2 may be put into Q by Q's own binding, and into the interim queue after step 3. Therefore
# there is a pause between the steps, by orders of magnitude longer than the routing of a message.
#
# Whoever binds Q to the control exchange between the steps 3 and 5 doubles messages. Nodes that take
# part leave the binding alone. A node, or a server of oslo.messaging, that connects at that time does
# bind it; so the binding is removed again at each look, four times a second.

PAUSE = 0.5
"""Seconds between two steps; see Note [Replacing a queue]."""


@attrs.frozen
class Route:
    """The route to one queue that is replaced. All methods can be repeated.

    :param queue: its name.
    :param exchange: the control exchange.
    :param keys: by which it is bound.
    :param options: how queues are declared in the end.
    """

    queue: str
    exchange: str
    keys: Sequence[str]
    options: BrokerOptions

    @property
    def interim(self) -> str:
        """The queue that takes the messages meanwhile."""
        return interim_queue(self.queue)

    @property
    def route_exchange(self) -> str:
        """The exchange between the control exchange and the queue."""
        return f"novasvc.route.{self.queue}"

    @property
    def interim_exchange(self) -> str:
        """The exchange that takes what has no queue."""
        return f"novasvc.interim.{self.queue}"

    async def prepare(self, channel: Channel) -> None:
        """Make the interim queue and both exchanges, and bind them beside the queue itself."""
        arguments = {"alternate-exchange": self.interim_exchange}
        await channel.queue_declare(queue=self.interim, **topology.request_queue_arguments(self.options))
        await channel.exchange_declare(exchange=self.interim_exchange, type="fanout", durable=True)
        await channel.queue_bind(queue=self.interim, exchange=self.interim_exchange, routing_key="")
        await channel.exchange_declare(
            exchange=self.route_exchange, type="fanout", durable=True, internal=True, arguments=arguments
        )
        await self.direct(channel)
        for key in self.keys:
            await channel.exchange_bind(destination=self.route_exchange, source=self.exchange, routing_key=key)

    def direct(self, channel: Channel) -> Deferred[Any]:
        """Have the route lead to the queue."""
        return topology.bind(channel, Binding(self.queue, self.route_exchange, ""))

    def divert(self, channel: Channel) -> Deferred[Any]:
        """Have the route lead to the interim queue."""
        return topology.unbind(channel, Binding(self.queue, self.route_exchange, ""))

    async def detach(self, channel: Channel) -> None:
        """Remove the queue's own bindings, so that the route is the only way."""
        for key in self.keys:
            await topology.unbind(channel, Binding(self.queue, self.exchange, key))

    async def attach(self, channel: Channel) -> None:
        """Make the queue's own bindings."""
        for key in self.keys:
            await topology.bind(channel, Binding(self.queue, self.exchange, key))

    async def close(self, channel: Channel) -> None:
        """Remove the route, which still leads to the queue."""
        for key in self.keys:
            await channel.exchange_unbind(destination=self.route_exchange, source=self.exchange, routing_key=key)

    async def delete_route(self, channel: Channel) -> None:
        """Delete the exchange of the route, which nothing leads to."""
        await channel.exchange_delete(exchange=self.route_exchange)

    async def renew(self, channel: Channel, *, old_is_quorum: bool, in_use: bool) -> None:
        """Delete the emptied queue, declare it anew, and have the route lead to it, without a pause between them.

        :param old_is_quorum: a quorum queue cannot be deleted under the condition that it is empty and unused.
        :param in_use: delete it although it has consumers.
        :raises AMQPClosedError: 406: it is in use, or not empty; nothing was changed.
        """
        # The first two are written at once; were each answer awaited, a node could declare the name between them.
        guarded = not old_is_quorum
        channel.queue_delete(queue=self.queue, if_unused=guarded and not in_use, if_empty=guarded, no_wait=True)
        channel.queue_declare(queue=self.queue, no_wait=True, **topology.request_queue_arguments(self.options))
        await self.direct(channel)

    async def declare_missing(self, channel: Channel, *, routed: bool) -> None:
        """Declare the queue after a command that was ended before it did.

        :param routed: the route exists, and has to lead to the queue.
        """
        declared = channel.queue_declare(
            queue=self.queue, no_wait=routed, **topology.request_queue_arguments(self.options)
        )
        await (self.direct(channel) if routed else declared)

    async def delete_interim(self, channel: Channel) -> None:
        """Delete the exchange that leads to the emptied interim queue, and the queue.

        :raises AMQPClosedError: 406: it is in use, or not empty.
        """
        # The queue last: a command that goes on looks for it.
        await channel.exchange_delete(exchange=self.interim_exchange)
        guarded = not self.options.quorum_queue
        await channel.queue_delete(queue=self.interim, if_unused=guarded, if_empty=guarded)
