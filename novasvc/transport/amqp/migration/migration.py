"""Replace the queues of a control exchange by queues of another type, while calls go on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp.channel import Channel
from novasvc.transport.amqp.existing import KINDS, marker_exchange
from novasvc.transport.amqp.migration.request import Request, Step
from novasvc.transport.amqp.migration.session import Session
from novasvc.transport.amqp.migration.topic import TopicMigration
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.errors import NothingToMigrateError


@attrs.define(eq=False)
class Migration:
    """Replaces queues; see Note [Replacing a queue] in :mod:`novasvc.transport.amqp.migration.route`.

    It can be ended at any time, also by SIGKILL, and run again: what exists on the broker says where to go on.

    :param options: how queues are declared in the end.
    :param report: called with each step when it begins.
    :ivar replaced: the queues that were replaced.
    :ivar in_progress: whether some are being replaced: a node that starts now has its messages delivered twice.
    """

    _address: BrokerAddress
    _options: BrokerOptions
    _request: Request
    _reactor: Any
    _report: Callable[[Step], None]
    replaced: list[str] = attrs.field(factory=list, init=False)
    in_progress: bool = attrs.field(default=False, init=False)
    _session: Session = attrs.field(init=False)

    async def run(self) -> None:
        """Replace the queues of all topics.

        :raises BrokerError: the broker refuses something, or was lost.
        :raises MigrationLockedError: another command is at it.
        :raises UnknownConsumersError: programs consume that do not take part; nothing was changed for their topic.
        :raises MigrationStalledError: a step did not end in time.
        :raises OtherArgumentsError: a queue differs in more than its type.
        :raises NothingToMigrateError: the control exchange does not exist, no topic is known, or a queue cannot be
            replaced now.
        """
        request = self._request
        if not request.hosts:
            remedy = "name the topics: --topic"
            raise NothingToMigrateError("topics", "the registry has no service with a topic", remedy)
        async with Session(self._address, self._options, self._reactor) as session:
            self._session = session
            if not await session.exchange_exists(request.exchange):
                remedy = "start a service first, or set control_exchange and the virtual host of transport_url"
                raise NothingToMigrateError(f"exchange {request.exchange}", "it does not exist", remedy)
            await session.lock(request.exchange)
            topics = [
                TopicMigration(session, request, topic, self._report, self._mark, self.replaced)
                for topic in request.hosts
            ]
            # All before the first change: what was begun in one direction must not be refused in the other half-way.
            for topic in topics:
                await topic.check()
            for topic in topics:
                await topic.replace()
                self.in_progress = False

    async def _mark(self) -> None:
        """Allow nodes to use queues that their settings do not say; see Note [Accepted names] in existing."""
        self.in_progress = True
        marker = marker_exchange(self._request.exchange, self._request.kind)
        await self._session.run(lambda channel: channel.exchange_declare(exchange=marker, type="fanout", durable=True))
        for kind in KINDS:
            if kind != self._request.kind:
                other = marker_exchange(self._request.exchange, kind)
                await self._session.run(partial(_delete_exchange, exchange=other))


def _delete_exchange(channel: Channel, exchange: str) -> Any:
    return channel.exchange_delete(exchange=exchange)
