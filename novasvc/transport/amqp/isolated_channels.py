"""Confirm channels whose loss costs no other sender's message."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, succeed

from novasvc.reactor.coalesce import CoalescedCalls
from novasvc.transport.amqp.channel import AMQPClosedError

if TYPE_CHECKING:
    from novasvc.transport.amqp.publisher import ConfirmChannel

FANOUTS, PROBES = "fanouts", "probes"
"""Purposes with a channel of their own."""


@attrs.define(eq=False)
class IsolatedChannels:
    """One confirm channel for each purpose, opened when it is first used, and again after it was closed.

    The broker closes a channel whose declaration it refuses, or that publishes to an exchange that does not exist
    (AMQP 0-9-1 1.2, channel-level errors), and every unconfirmed message on that channel is lost. So messages that
    need a declaration of their own do not use the main channel.

    :param open_channel: takes what to call when the channel has closed; raises AMQPClosedError or BrokerError.
    """

    _open_channel: Callable[[Callable[[AMQPClosedError], None]], Awaitable["ConfirmChannel"]]
    _channels: dict[str, "ConfirmChannel"] = attrs.field(factory=dict, init=False)
    _opening: CoalescedCalls[str, "ConfirmChannel"] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._opening = CoalescedCalls(lambda purpose: Deferred.fromCoroutine(self._open(purpose)))

    def __iter__(self) -> "Iterator[ConfirmChannel]":
        return iter(self._channels.values())

    def get(self, purpose: str) -> Deferred["ConfirmChannel"]:
        """Return the open channel for a purpose.

        :raises AMQPClosedError: the connection was lost meanwhile.
        :raises BrokerError: it cannot be opened.
        """
        confirming = self._channels.get(purpose)
        return self._opening.get(purpose) if confirming is None or confirming.channel.closed else succeed(confirming)

    async def _open(self, purpose: str) -> "ConfirmChannel":
        confirming = self._channels[purpose] = await self._open_channel(partial(self._closed, purpose))
        return confirming

    def _closed(self, purpose: str, _reason: AMQPClosedError) -> None:
        self._channels.pop(purpose, None)

    def forget(self) -> None:
        """Forget the channels of a lost connection; they have failed their messages already."""
        self._channels.clear()
