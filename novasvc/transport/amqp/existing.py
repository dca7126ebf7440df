"""Use queues and exchanges that were replaced by ones of another type, in spite of the settings."""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from twisted.logger import Logger

from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.reply_codes import NOT_FOUND, PRECONDITION_FAILED

if TYPE_CHECKING:
    from novasvc.transport.amqp.protocol import AMQPProtocol

_log = Logger()

_MISMATCH = re.compile(r"inequivalent arg '([^']*)' for (queue|exchange) '([^']*)'")
"""RabbitMQ's reply text for a name that exists with other properties or arguments."""
_MISSING = re.compile(r"no (?:queue|exchange) '([^']*)'")
"""RabbitMQ's reply text for a name that does not exist."""
KINDS = ("quorum", "classic")

# Note [Accepted names]
#
# A name that exists with other arguments than the settings say is an error: somebody's settings are
# wrong. While the queues of a control exchange are replaced, and until all settings say the new type,
# it is no error. The command that replaces them marks that time with a durable exchange, which routes
# nothing: a node that is refused looks whether the marker exists, and then uses what is there. So
# settings may be changed, and nodes restarted, before, while and after the queues are replaced. It
# costs a question to the broker after a refusal, and nothing otherwise.


def marker_exchange(exchange: str, kind: str) -> str:
    """Return the name of the exchange that marks a control exchange's queues as replaced, or being replaced.

    :param kind: the type that they get.
    """
    return f"novasvc.queues.{kind}.{exchange}"


def mismatch(reason: AMQPClosedError) -> tuple[str, str, str] | None:
    """Return what a declaration was refused for: argument, "queue" or "exchange", name. None for another reason."""
    found = _MISMATCH.search(reason.problem) if reason.code == PRECONDITION_FAILED else None
    return None if found is None else (found[1], found[2], found[3])


async def declare_or_accept(
    protocol: "AMQPProtocol", exchange: str, options: BrokerOptions, declare: Callable[[], Awaitable[None]]
) -> None:
    """Make declarations; if one is refused, accept what exists and make them again. See Note [Accepted names].

    :param exchange: the control exchange.
    :param declare: opens a channel and declares; called again after each name that is accepted.
    :raises AMQPClosedError: the broker refused, or was lost.
    """
    while True:
        try:
            return await declare()
        except AMQPClosedError as reason:
            if _forget_missing(options, reason) and not protocol.closed:
                continue
            refused = mismatch(reason)
            if refused is None or protocol.closed:
                raise
            _, what, name = refused
            kind = None if name in options.accepted else await _replaced_by(protocol, exchange)
            if kind is None:
                raise
            options.accepted[name] = kind
            _log.warn(
                "the {what} {name} is not what the settings say, and is used as it is, because the queues of "
                "{exchange} are replaced by {kind} queues; set rabbit_quorum_queue = {value}",
                what=what,
                name=name,
                exchange=exchange,
                kind=kind,
                value="true" if kind == "quorum" else "false",
            )


def _forget_missing(options: BrokerOptions, reason: AMQPClosedError) -> bool:
    """Forget an accepted name that does not exist any more; return whether it was one. It is declared as usual then."""
    found = _MISSING.search(reason.problem) if reason.code == NOT_FOUND else None
    return found is not None and options.accepted.pop(found[1], None) is not None


async def _replaced_by(protocol: "AMQPProtocol", exchange: str) -> str | None:
    """Return the type by which the queues of an exchange are replaced; None if they are not."""
    for kind in KINDS:
        marker = marker_exchange(exchange, kind)
        try:
            await protocol.on_new_channel(partial(Channel.exchange_declare, exchange=marker, passive=True))
        except AMQPClosedError:
            if protocol.closed:
                raise
        else:
            return kind
    return None
