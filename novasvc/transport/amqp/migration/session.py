"""The connection of an operator's command: questions and declarations that the broker may refuse."""

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.connection import Connection
from novasvc.transport.amqp.existing import mismatch
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.reply_codes import NOT_FOUND, PRECONDITION_FAILED, broker_error
from novasvc.transport.errors import MigrationLockedError, OtherArgumentsError

_T = TypeVar("_T")

_RESOURCE_LOCKED = 405
"""Reply code resource-locked: a queue that is exclusive to another connection."""
_DONE = AMQPClosedError("done", clean=True)
_TYPE_ARGUMENTS = frozenset({"durable", "x-queue-type"})
"""What a replacement changes."""


@attrs.define(eq=False)
class _Handler:
    """Needs nothing of the connection, but that it is not lost; see ConnectionHandler."""

    lost_for: AMQPClosedError | None = attrs.field(default=None, init=False)

    async def prepare(self, protocol: AMQPProtocol) -> None:
        """Prepare nothing."""

    def ready(self) -> None:
        """Do nothing."""

    def lost(self, reason: AMQPClosedError) -> None:
        """Keep the reason; what is under way fails with its channel."""
        self.lost_for = reason


@attrs.define(eq=False)
class Session:
    """A connection, with a channel for what is not refused and further ones for what may be.

    :param address: the broker.
    :param options: how queues are declared in the end.
    :param reactor: connects, and measures time.
    """

    address: BrokerAddress
    options: BrokerOptions
    reactor: Any
    _connection: Connection = attrs.field(init=False)
    _handler: _Handler = attrs.field(factory=_Handler, init=False)
    _channel: Channel | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._connection = Connection(
            "publishing", self.address, self.options, self.reactor, self._handler, client_name="novasvc broker migrate"
        )

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._connection.close()

    def wait(self, seconds: float) -> Deferred[None]:
        """Wait."""
        return deferLater(self.reactor, seconds, lambda: None)

    async def open_channel(self) -> Channel:
        """Open a channel.

        :raises AMQPClosedError: the connection is lost.
        """
        protocol, lost_for = self._connection.protocol, self._handler.lost_for
        if lost_for is not None or protocol is None:
            # Not on the next connection: the lock was lost with this one, and the queue for the answers.
            raise lost_for or AMQPClosedError("the connection was lost")
        return await protocol.open_channel()

    async def channel(self) -> Channel:
        """Return the channel for methods that are not refused, as a rule."""
        if self._channel is None or self._channel.closed:
            self._channel = await self.open_channel()
        return self._channel

    async def run(self, step: Callable[[Channel], Awaitable[_T]]) -> _T:
        """Run a step on the common channel.

        :raises BrokerError: the broker refused it, or was lost.
        """
        try:
            return await step(await self.channel())
        except AMQPClosedError as reason:
            raise self.error(reason) from reason

    async def attempt(self, step: Callable[[Channel], Awaitable[Any]], *expected: int) -> AMQPClosedError | None:
        """Run a step that may be refused, on a channel of its own.

        :param expected: reply codes of a refusal that is an answer.
        :return: the refusal, or None.
        :raises BrokerError: the broker refused for another reason, or was lost.
        """
        try:
            channel = await self.open_channel()
            await step(channel)
        except AMQPClosedError as reason:
            if reason.code in expected:
                return reason
            raise self.error(reason) from reason
        channel.close(_DONE)
        return None

    def error(self, reason: AMQPClosedError) -> Exception:
        """Return the error for the end of a channel or of the connection."""
        return broker_error(self.address.shown(), reason)

    # -- questions -----------------------------------------------------------------------------

    async def lock(self, exchange: str) -> None:
        """Take the lock of a control exchange, which ends with the connection.

        :raises MigrationLockedError: another command has it.
        """
        name = f"novasvc.migration.{exchange}"
        refusal = await self.attempt(
            lambda channel: channel.queue_declare(queue=name, exclusive=True), _RESOURCE_LOCKED
        )
        if refusal is not None:
            raise MigrationLockedError(self.address.shown(), exchange)

    async def exists(self, queue: str) -> bool:
        """Return whether a queue exists."""
        return await self.attempt(lambda channel: topology.count(channel, queue), NOT_FOUND) is None

    async def exchange_exists(self, exchange: str) -> bool:
        """Return whether an exchange exists."""

        def declare(channel: Channel) -> Deferred[Any]:
            return channel.exchange_declare(exchange=exchange, passive=True)  # type: ignore[no-any-return]

        return await self.attempt(declare, NOT_FOUND) is None

    async def is_replaced(self, queue: str) -> bool:
        """Return whether an existing queue has the wanted type already.

        :raises OtherArgumentsError: it differs in an argument that a replacement does not change.
        """
        wanted = topology.request_queue_arguments(self.options)

        def declare(channel: Channel) -> Deferred[Any]:
            return channel.queue_declare(queue=queue, **wanted)  # type: ignore[no-any-return]

        refusal = await self.attempt(declare, PRECONDITION_FAILED)
        if refusal is None:
            return True
        differs = mismatch(refusal)
        if differs is None:
            raise self.error(refusal)
        if differs[0] not in _TYPE_ARGUMENTS:
            raise OtherArgumentsError(queue, differs[0])
        return False

    async def count(self, queue: str) -> tuple[int, int]:
        """Return a queue's number of ready messages and of consumers; zeros for one that does not exist."""
        found = (0, 0)

        async def ask(channel: Channel) -> None:
            nonlocal found
            found = await topology.count(channel, queue)

        await self.attempt(ask, NOT_FOUND)
        return found
