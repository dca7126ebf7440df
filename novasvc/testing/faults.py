"""Faults that a test injects into the messages of a fleet."""

from typing import Self, TypedDict, Unpack

import attrs

from novasvc.rpc.errors import RPCError
from novasvc.telemetry.logs import pluralize
from novasvc.testing.errors import UnusedFaultError
from novasvc.testing.traffic import SentMessage, matches
from novasvc.transport.errors import BrokerUnavailableError

BROKER = "memory:"
"""The broker's URL in errors."""


class Selection(TypedDict, total=False):
    """Which messages a fault is applied to, beside their topic and method; see :class:`Faults`."""

    sender: str
    host: str
    replies: bool
    times: int
    after: int
    optional: bool


@attrs.define(eq=False, kw_only=True)
class Fault:
    """One fault, until it is removed; also a context manager that removes it.

    :param kind: "drop", "delay", "duplicate" or "refuse".
    :param seconds: of a delay.
    :param error: of a refusal.
    :ivar hits: the number of messages that it was applied to.

    The other parameters are those of :class:`Faults`.
    """

    kind: str
    topic: str | None = None
    method: str | None = None
    sender: str | None = None
    host: str | None = None
    replies: bool = False
    times: int | None = None
    after: int = 0
    optional: bool = False
    seconds: float = 0.0
    error: Exception | None = None
    hits: int = attrs.field(default=0, init=False)
    _met: int = attrs.field(default=0, init=False)
    _removed: bool = attrs.field(default=False, init=False)

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in ("topic", "method", *Selection.__annotations__)}
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in given.items() if value)})"

    def remove(self) -> None:
        """Let the messages pass from now on."""
        self._removed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def hit(self, message: SentMessage, host: str | None, *, reply: bool) -> bool:
        """Return whether the fault is to be applied to a message, and count it.

        :param host: the host that a request is delivered to, or that sent a reply; None for a request at its sender.
        :param reply: the message is the reply to this one.
        """
        spent = self._removed or (self.times is not None and self.hits >= self.times)
        # Without a host a request is met where it is sent; with one, where it is delivered.
        here = self.replies == reply and (reply or (self.host is None) == (host is None))
        if spent or not here or not self._selects(message, host):
            return False
        self._met += 1
        if self._met <= self.after:
            return False
        self.hits += 1
        return True

    def check_used(self) -> None:
        """Check that it was applied, unless it is optional.

        :raises UnusedFaultError: it was not.
        """
        if not (self.hits or self.optional):
            problem = f"it was applied to no message; {pluralize(self._met, 'message')} matched it"
            remedy = "see fleet.messages() for what was sent, or give optional=True"
            raise UnusedFaultError(str(self), problem, remedy)

    def _selects(self, message: SentMessage, host: str | None) -> bool:
        return (
            matches(self.topic, message.topic)
            and matches(self.method, message.method)
            and matches(self.sender, message.sender)
            and (self.host is None or (host is not None and matches(self.host, host)))
        )


class Faults:
    """The faults of a fleet, each applied to the messages that it selects.

    All methods select messages by the same parameters, and a message must match all that are given. Names may be
    patterns of :mod:`fnmatch`, such as "order.*". One fault is applied to a message: the first that was injected.
    Nothing is left to chance, so a test meets the same faults in each run.

    - ``topic`` is that of the request, or "notifications" for an event.
    - ``method`` is the method's name, or the type of an event.
    - ``sender`` is the host that sends it.
    - ``host`` is the host that it is delivered to. For a request to any host of a topic it is known on delivery.
    - ``replies=True`` selects the replies to these requests instead; ``host`` is then the host that answers.
    - ``times`` is the most messages that the fault is applied to.
    - ``after`` is the number of messages that pass before.
    - ``optional=True`` permits a fault to select no message. Any other one fails the test when its fleet stops,
      because a misspelt name would otherwise go unnoticed.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def drop(self, topic: str | None = None, method: str | None = None, **selection: Unpack[Selection]) -> Fault:
        """Lose messages. Their sender is told that the broker has them."""
        return self._add(Fault(kind="drop", topic=topic, method=method, **selection))

    def delay(
        self, seconds: float, topic: str | None = None, method: str | None = None, **selection: Unpack[Selection]
    ) -> Fault:
        """Deliver messages later. A request whose caller has given up by then is not delivered.

        :param seconds: > 0.
        :raises ValueError: the seconds are not above 0.
        """
        if not seconds > 0:
            raise ValueError(f"cannot delay a message by {seconds!r} seconds; give a number above 0")
        return self._add(Fault(kind="delay", topic=topic, method=method, seconds=seconds, **selection))

    def duplicate(self, topic: str | None = None, method: str | None = None, **selection: Unpack[Selection]) -> Fault:
        """Deliver messages twice, as brokers may. Without a ``host`` another host of the topic may get the copy."""
        return self._add(Fault(kind="duplicate", topic=topic, method=method, **selection))

    def refuse(
        self,
        topic: str | None = None,
        method: str | None = None,
        *,
        error: Exception | None = None,
        **selection: Unpack[Selection],
    ) -> Fault:
        """Have the broker refuse messages, so that sending them fails.

        :param error: what sending fails with, an RPCError; a BrokerUnavailableError by default.
        :raises TypeError: the error is not an RPCError.
        :raises ValueError: a host is given. The broker refuses what a sender sends, whoever would receive it.
        """
        error = error or BrokerUnavailableError(BROKER, "the test refuses the message")
        if not isinstance(error, RPCError):
            raise TypeError(f"error is {error!r}; give an RPCError, such as BrokerBlockedError")
        if "host" in selection and not selection.get("replies"):
            raise ValueError("refuse() takes no host: the broker refuses what is sent; give a sender")
        return self._add(Fault(kind="refuse", topic=topic, method=method, error=error, **selection))

    def clear(self) -> None:
        """Remove all faults."""
        for fault in self._faults:
            fault.remove()

    def find(self, message: SentMessage, host: str | None = None, *, reply: bool = False) -> Fault | None:
        """Return the fault to apply to a message, and note it there; None if there is none. See :meth:`Fault.hit`."""
        found = next((fault for fault in self._faults if fault.hit(message, host, reply=reply)), None)
        if found is not None:
            message.faults.append(str(found))
        return found

    def check_used(self) -> None:
        """Check that each fault was applied; see :meth:`Fault.check_used`."""
        for fault in self._faults:
            fault.check_used()

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault
