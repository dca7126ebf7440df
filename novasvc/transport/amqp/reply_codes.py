"""What the broker's reply codes mean, as errors whose type says whether and when to retry."""

import re
from collections.abc import Mapping

from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.errors import (
    BrokerError,
    BrokerFailedError,
    BrokerLimitError,
    BrokerRefusedError,
    BrokerUnavailableError,
    DeclarationDeniedError,
    DeclarationMismatchError,
)

NOT_FOUND = 404
"""Reply code not-found: the queue or exchange does not exist."""
PRECONDITION_FAILED = 406
"""Reply code precondition-failed: declared with other arguments, or not empty, or in use."""
_NOT_ALLOWED, _INTERNAL_ERROR = 530, 541

_NODE_DOWN = "down or inaccessible"
"""Part of RabbitMQ's reply text for a queue whose node is down; the queue returns with the node."""

_LIMIT = re.compile(r"limit .*is reached|reached (the )?maximum|has reached the")
"""RabbitMQ's reply text for a limit set by an operator or the handshake, with code 406 or 530."""

_TOO_LARGE = "message size"
"""Part of RabbitMQ's reply text for one message over its size limit, with code 406."""

_TRANSIENT = "transient_nonexcl_queues"
_DENIED = re.compile(r"Feature `(\w+)` is deprecated")
"""RabbitMQ's reply text for a deprecated feature that it denies, with code 541."""

# Note [Reply codes]
#
# What each code means for us, and so whether and when to retry. The broker closes the channel with
# 311, 403, 404, 405 and 406 (403 during the handshake closes the connection), and the connection
# with all others.
#
# 320       an operator closed the connection, or the broker stops: an outage
# 402, 530  a missing or forbidden virtual host, or a limit: an operator has to act
# 403       a user or a permission: an operator has to act
# 404       a queue that does not exist, or whose node is down and brings it back
# 405       a queue that is exclusive to another connection
# 406       declared with other arguments, or a limit
# 501-505   the broker rejects our frames or methods: a defect on either side, so an immediate retry is of no use
# 506, 541  an internal error of the broker (a virtual host that is down, metadata that time out), which may pass;
#           541 also denies a deprecated feature, and then other settings are needed
# 540       the broker does not implement the method
#
# Source: AMQP 0-9-1 1.2; rabbit_framing, rabbit_channel, rabbit_reader and rabbit_amqqueue of RabbitMQ 3.10 to 4.3.

_ERRORS: Mapping[int, type[BrokerError]] = {
    **dict.fromkeys((402, 403, 530), BrokerRefusedError),
    **dict.fromkeys((311, 404, 405), BrokerError),
    PRECONDITION_FAILED: DeclarationMismatchError,
    **dict.fromkeys((501, 502, 503, 504, 505, 506, 540, _INTERNAL_ERROR), BrokerFailedError),
}


def broker_error(broker: str, reason: AMQPClosedError) -> BrokerError:
    """Turn the reason for which a channel or a connection closed into an error; see Note [Reply codes].

    :param broker: its URL, with the password masked.
    :return: the error; its type says whether a retry may help.
    """
    code, problem = reason.code, reason.problem
    kind = _ERRORS.get(code, BrokerUnavailableError)
    if denies_feature(reason):
        kind, problem = DeclarationDeniedError, _denial_text(reason)
    elif code in {PRECONDITION_FAILED, _NOT_ALLOWED} and _LIMIT.search(problem):
        kind = BrokerLimitError
    elif code == PRECONDITION_FAILED and _TOO_LARGE in problem:
        kind = BrokerError
    elif _NODE_DOWN in problem:
        kind = BrokerUnavailableError
    elif kind is BrokerFailedError:
        problem = f"it reported an error: {reason}"
    elif kind is BrokerUnavailableError:
        problem = str(reason)
    return kind(broker, problem)


def denies_feature(reason: AMQPClosedError) -> bool:
    """Return whether the broker denied a deprecated feature: for us, transient queues that are not exclusive."""
    return reason.code == _INTERNAL_ERROR and _DENIED.search(reason.problem) is not None


def _denial_text(reason: AMQPClosedError) -> str:
    found = _DENIED.search(reason.problem)
    feature = found[1] if found is not None else ""
    what = "queues that are neither durable nor exclusive" if feature == _TRANSIENT else "what we declare"
    return f"it does not permit {what} ({reason.code}, deprecated feature {feature})"
