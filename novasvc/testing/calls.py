"""The calls and events of a test, and what a fleet's nodes send each other."""

from typing import Any, cast

from twisted.python.failure import Failure

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.listing import list_some
from novasvc.node.manager_resources import make_client
from novasvc.rpc.errors import MethodTimeoutError, RPCTimeoutError
from novasvc.testing.client import FleetClient
from novasvc.testing.hosts import FleetHosts
from novasvc.testing.node import FleetNode
from novasvc.testing.traffic import SentMessage
from novasvc.testing.transport import FleetTransport
from novasvc.testing.waiting import Answer

CALLER = "test"
"""The host of the test's own calls."""

_REQUESTS = "call", "cast", "fanout"
_MOST_LOST = 3
"""Most calls of a method that the note on its timeout names."""


class FleetCalls(FleetHosts):
    """What a test sends to nodes, and sees of their messages; see :class:`novasvc.testing.Fleet`.

    :ivar nodes: the nodes, in the order in which they were made.
    """

    def __init__(self, limit: float, seed: int, settings: dict[str, Any]) -> None:
        super().__init__(limit, seed, settings)
        self.nodes: list[FleetNode[Any]] = []
        self._transports: dict[str, FleetTransport] = {}
        self._clients: dict[str, rpc.Client] = {}

    def call(self, target: str, method: str, /, **args: Any) -> Answer[Any]:
        """Call a method, as another service would; :meth:`client` gives more choice.

        :param target: the topic, or "topic.host".
        :param args: the method's arguments by name.
        :return: fires with the result, JSON values; fails as :meth:`novasvc.rpc.Client.call`. Nothing runs before it is
            awaited, or the time is advanced.
        """
        return cast("Answer[Any]", self._to(target).call(RequestContext(), method, **args))

    def cast(self, target: str, method: str, /, **args: Any) -> Answer[None]:
        """Send a request without a reply; otherwise as :meth:`call`."""
        return cast("Answer[None]", self._to(target).cast(RequestContext(), method, **args))

    def fanout(self, topic: str, method: str, /, **args: Any) -> Answer[None]:
        """Send a request to each host of a topic; otherwise as :meth:`cast`."""
        return cast("Answer[None]", self._to(topic).fanout(RequestContext(), method, **args))

    def client(self, host: str = CALLER, **prepared: Any) -> rpc.Client:
        """Return a client of a host, whose results can be awaited as those of :meth:`call`.

        :param host: the host that calls, for faults and for the list of messages.
        :param prepared: as for :meth:`novasvc.rpc.Client.prepare`: topic, server, timeout, version, ...
        """
        client = self._clients.get(host)
        if client is None:
            client = self._clients[host] = make_client(self.runtime(host), self._transport(host), lambda: self.registry)
        # It has all methods of a client. A subclass would not do: prepare() makes clients of its own class.
        return cast("rpc.Client", FleetClient(client.prepare(**prepared) if prepared else client, self.answer))

    def emit(self, event_type: str, payload: Any, *, priority: str = "info", host: str = CALLER) -> Answer[None]:
        """Publish a notification, as another service would.

        :param event_type: such as "order.placed".
        :param payload: JSON values.
        """
        notifier = rpc.Notifier(self._transport(host), publisher_id=f"{CALLER}.{host}")
        return self.answer(notifier.notify(priority, RequestContext(), event_type, payload))

    def messages(self, topic: str | None = None, method: str | None = None) -> list[SentMessage]:
        """Return the requests that were sent, the oldest first, with who received and answered them.

        :param topic: only those to topics that match this pattern.
        :param method: only those of methods that match this pattern.
        """
        return self._network.traffic.select(topic, method, _REQUESTS)

    def events(self, event_type: str | None = None) -> list[SentMessage]:
        """Return the notifications that were sent, the oldest first.

        :param event_type: only those of types that match this pattern, such as "order.*".
        """
        return self._network.traffic.select(None, event_type, ("event",))

    def _to(self, target: str) -> rpc.Client:
        # A topic may have dots, if a node serves it.
        topics = [node.topic for node in self.nodes if f"{target}.".startswith(f"{node.topic}.")]
        topic = max(topics, key=len, default=target.partition(".")[0])
        return self.client(topic=topic, server=target[len(topic) + 1 :] or None)

    def _transport(self, host: str) -> FleetTransport:
        transport = self._transports.get(host)
        if transport is None:
            exchange = self.runtime(host).settings.control_exchange
            transport = self._transports[host] = FleetTransport(self._network, host, exchange)
            self._network.transports.append(transport)
        return transport

    def _explain(self, failure: Failure) -> Failure:
        """Add to the error of a call that timed out what became of its message, and what its method waited for."""
        error = failure.value
        if isinstance(error, RPCTimeoutError | MethodTimeoutError):
            topic = error.target.partition(".")[0] if isinstance(error, RPCTimeoutError) else ""
            sent = [message for message in self.messages(None, error.method) if message.topic.startswith(topic)]
            if sent:
                error.add_note(f"In the fleet: {sent[-1]!r}. {self._what_it_waited_for(sent[-1])}".rstrip())
        return failure

    def _what_it_waited_for(self, call: SentMessage) -> str:
        """Return a sentence: which calls of a method got no answer, or on which clock it must wait; "" if neither."""
        calls = [message for message in self.messages() if message.kind == "call" and message.sent_at >= call.sent_at]
        lost = [
            repr(message)
            for message in calls
            if message is not call
            and message.context.request_id == call.context.request_id
            and (message.answered_by is None or message.faults)
        ]
        if lost:
            return f"It waited for {list_some(lost, _MOST_LOST)}."
        # If its own message or reply was lost, the method did not take too long.
        return "" if call.faults or not call.received_by else "A manager must wait on self.attachments.reactor."
