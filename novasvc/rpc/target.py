"""Where a message goes: topic, server, fanout, and which interface is meant there."""

import attrs

from novasvc.errors import InvalidTargetError

_LONGEST = 255
"""Octets of a name in AMQP, such as that of the queue of a topic and a server."""

_LONGEST_TOPIC = _LONGEST - len("_fanout_") - 32
"""Octets of a topic: the queue that a server has for what goes to all, has a longer name."""


@attrs.frozen
class Target:
    """An address of the RPC.

    :param topic: what is served; names the queue that all its servers share.
    :param server: one host of the topic; None is "any of them".
    :param fanout: to every server of the topic; wins over ``server``.
    :param namespace: which of an endpoint's interfaces; None is the one without a name.
    :param version: "major.minor" that the receiver must serve; None leaves it to the receiver ("1.0").
    :param exchange: the control exchange; None is the transport's own.
    :raises InvalidTargetError: no topic, one with a wildcard or a blank, or one that is too long; or such a server.
    Source: oslo_messaging.Target.
    """

    topic: str
    server: str | None = None
    fanout: bool = attrs.field(default=False, kw_only=True)
    namespace: str | None = attrs.field(default=None, kw_only=True)
    version: str | None = attrs.field(default=None, kw_only=True)
    exchange: str | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for what, name in (("topic", self.topic), ("server", self.server)):
            if name is None:
                continue
            # "*" and "#" would act as wildcards in a topic exchange's bindings.
            if not name or any(c in "*#" or c.isspace() for c in name):
                problem = f"the {what} {name!r} is empty, or has a wildcard or a blank"
                raise InvalidTargetError(str(self), problem)
        for name, most in ((self.topic, _LONGEST_TOPIC), (f"{self.topic}.{self.server}", _LONGEST)):
            try:
                size = len(name.encode())
            except UnicodeEncodeError:
                raise InvalidTargetError(repr(name), "it has a character that UTF-8 cannot have") from None
            if size > most:
                raise InvalidTargetError(f"{name[:40]}...", f"it has {size} octets, and {most} are the most")

    def __str__(self) -> str:
        name = self.topic if self.server is None else f"{self.topic}.{self.server}"
        return f"all of {self.topic}" if self.fanout else name
