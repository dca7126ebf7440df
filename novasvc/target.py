"""Where a message goes: topic, server, fanout, and which interface is meant there."""

import attrs

from novasvc.errors import InvalidTargetError


@attrs.frozen
class Target:
    """An address of the RPC.

    :param topic: what is served; names the queue that all its servers share.
    :param server: one host of the topic; None is "any of them".
    :param fanout: to every server of the topic; wins over ``server``.
    :param namespace: which of an endpoint's interfaces; None is the one without a name.
    :param version: "major.minor" that the receiver must serve; None leaves it to the receiver ("1.0").
    :param exchange: the control exchange; None is the transport's own.
    :raises InvalidTargetError: no topic, or a topic or server with a wildcard or a blank.
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

    def __str__(self) -> str:
        name = self.topic if self.server is None else f"{self.topic}.{self.server}"
        return f"all of {self.topic}" if self.fanout else name
