"""The target of a message: topic, server, fanout, and the interface to call."""

import attrs

from novasvc.rpc.errors import InvalidTargetError

_LONGEST = 255
"""The most octets of a queue's name (AMQP 0-9-1 shortstr), such as that of a topic and a server."""

_LONGEST_TOPIC = _LONGEST - len("_fanout_") - 32
"""The most octets of a topic: the name of a server's fanout queue appends "_fanout_" and an id of 32 octets."""


@attrs.frozen
class Target:
    """The address of an RPC message.

    :param topic: the service; all servers of a topic share the queue of this name.
    :param server: one host of the topic; None for any of them.
    :param fanout: send to every server of the topic; overrides ``server``.
    :param namespace: the interface's name; None is the interface without a name.
    :param version: "major.minor" that the receiver must serve; None leaves it to the receiver ("1.0").
    :param exchange: the control exchange; None uses the transport's default.
    :param internal: of a fanout: only servers of novasvc receive it, and if a server is given, only the processes of
        that one. It does not wait for the prefetch of requests; see :mod:`novasvc.rpc.cancellation`.
    :raises InvalidTargetError: the topic or the server is empty, has a wildcard or white space, or is too long.
    Source: oslo_messaging.Target.
    """

    topic: str
    server: str | None = None
    fanout: bool = attrs.field(default=False, kw_only=True)
    namespace: str | None = attrs.field(default=None, kw_only=True)
    version: str | None = attrs.field(default=None, kw_only=True)
    exchange: str | None = attrs.field(default=None, kw_only=True)
    internal: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for what, name in (("topic", self.topic), ("server", self.server)):
            if name is None:
                continue
            # "*" and "#" would act as wildcards in a topic exchange's bindings.
            if not name or any(c in "*#" or c.isspace() for c in name):
                problem = f"the {what} {name!r} is empty, or contains a wildcard or white space"
                raise InvalidTargetError(str(self), problem)
        for name, most in ((self.topic, _LONGEST_TOPIC), (f"{self.topic}.{self.server}", _LONGEST)):
            try:
                size = len(name.encode())
            except UnicodeEncodeError:
                raise InvalidTargetError(repr(name), "it contains a character that UTF-8 cannot encode") from None
            if size > most:
                raise InvalidTargetError(f"{name[:40]}...", f"it is {size} octets long; the maximum is {most}")

    def __str__(self) -> str:
        name = self.topic if self.server is None else f"{self.topic}.{self.server}"
        return f"all of {self.topic}" if self.fanout else name
