"""The methods that the broker sends unasked: the handshake, closing, blocking and cancelled consumers."""

from typing import TYPE_CHECKING

import attrs
from txamqp.client import TwistedDelegate
from txamqp.spec import pythonize

from novasvc._version import __version__
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, Invocation
from novasvc.transport.amqp.frames import FrameError

if TYPE_CHECKING:
    from novasvc.transport.amqp.protocol import AMQPProtocol

_CAPABILITIES = (
    "authentication_failure_close",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "publisher_confirms",
)
"""Client capabilities that RabbitMQ asks for, in connection.start-ok."""


@attrs.frozen(kw_only=True)
class Login:
    """Credentials, virtual host and name of a connection.

    :param vhost: the virtual host.
    :param name: the connection's name in the broker's list.
    """

    username: str
    password: str = attrs.field(repr=False)
    vhost: str
    name: str

    def answer(self, mechanisms: str) -> tuple[str, str | dict[str, str]]:
        """Choose a SASL mechanism: PLAIN if it is offered, else AMQPLAIN.

        :param mechanisms: names, separated by spaces.
        :return: mechanism and response.
        """
        if "PLAIN" in mechanisms.split():
            return "PLAIN", f"\0{self.username}\0{self.password}"
        return "AMQPLAIN", {"LOGIN": self.username, "PASSWORD": self.password}


class Delegate(TwistedDelegate):  # type: ignore[misc]
    """Handles the methods that the broker sends unasked."""

    client: "AMQPProtocol"

    def dispatch(self, channel: Channel, message: Invocation) -> None:
        """Call the handler that is named after the method.

        :raises FrameError: there is none: a client must not receive the method.
        """
        method = message.method
        handler = getattr(self, f"{pythonize(method.klass.name)}_{pythonize(method.name)}", None)
        if handler is None:
            raise FrameError(f"a client must not receive {method.klass.name}.{method.name}")
        handler(channel, message)

    def connection_start(self, channel: Channel, message: Invocation) -> None:
        """Handle connection.start: send credentials and client capabilities (AMQP 0-9-1 1.4.2.1)."""
        self._check_order("connection.start")
        login = self.client.login
        mechanism, response = login.answer(_one_line(message.mechanisms))
        properties = {
            "product": "novasvc",
            "version": __version__,
            "platform": "Twisted",
            "connection_name": login.name,
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
        }
        channel.connection_start_ok(properties, mechanism, response, "en_US")

    def connection_tune(self, channel: Channel, message: Invocation) -> None:
        """Handle connection.tune: negotiate the limits (AMQP 0-9-1 1.4.2.5)."""
        self._check_order("connection.tune")
        self.client.tune(message.channel_max, message.frame_max, message.heartbeat)
        self.client.started.fire()

    def _check_order(self, name: str) -> None:
        if self.client.tuned:
            raise FrameError(f"unexpected {name} after the handshake")

    def connection_blocked(self, channel: Channel, message: Invocation) -> None:
        """Handle connection.blocked: tell the owner."""
        # RabbitMQ, "Blocked Connections": sent when a memory or disk alarm is on and this connection has published.
        self.client.observer.blocked(_one_line(message.reason))

    def connection_unblocked(self, channel: Channel, message: Invocation) -> None:
        """Handle connection.unblocked: tell the owner."""
        self.client.observer.unblocked()

    def connection_close(self, channel: Channel, message: Invocation) -> None:
        """Handle connection.close: confirm it and end the connection."""
        channel.connection_close_ok()
        self.client.end(AMQPClosedError(_one_line(message.reply_text), message.reply_code))

    def channel_close(self, channel: Channel, message: Invocation) -> None:
        """Handle channel.close: confirm it, free the number and end the channel."""
        # The number may be used again as soon as close-ok is on its way (AMQP 0-9-1 1.5.2.6).
        channel.channel_close_ok()
        self.client.release_channel(channel)
        channel.do_close(AMQPClosedError(_one_line(message.reply_text), message.reply_code))

    def basic_cancel(self, channel: Channel, message: Invocation) -> None:
        """Handle basic.cancel: tell the channel's receiver."""
        if channel.receiver is not None:
            channel.receiver.consumer_cancelled(_one_line(message.consumer_tag))

    def close(self, reason: object) -> None:
        """Do nothing: the protocol ends itself."""


def _one_line(value: object) -> str:
    """Return text from the broker, str or bytes, as one line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())
