"""What the commands that send messages have in common: whom, what, and by which broker."""

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import attrs
import click

from novasvc.errors import InvalidTargetError, NovasvcError
from novasvc.settings import Settings
from novasvc.target import Target

_T = TypeVar("_T")


@attrs.define
class NoBrokerError(NovasvcError):
    """A command that has to reach other processes, and settings that say that there are none.

    :param transport_url: the setting.
    """

    transport_url: str

    def __str__(self) -> str:
        return (
            f"transport_url is {self.transport_url!r}, which reaches nobody outside of a process; give the URL of the "
            "broker that the services use: --transport-url amqp://user:password@host/vhost before the command's name, "
            "NOVASVC_TRANSPORT_URL, or transport_url in a configuration file"
        )


def read_target(text: str, server: str | None = None) -> Target:
    """Read TOPIC or TOPIC.HOST; all after the first dot is the host.

    :param server: the host, if the topic itself has dots.
    """
    topic, host = text, server
    if server is None:
        topic, dot, rest = text.partition(".")
        host = rest if dot else None
    try:
        return Target(topic, host)
    except InvalidTargetError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None


def read_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read key=value; a value that is JSON is taken as JSON, any other as a text."""
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        problem = ""
        if not equals or not name.isidentifier():
            problem = f"{text!r} is not NAME=VALUE."
        elif name in arguments:
            problem = f"The argument {name!r} is given twice."
        if problem:
            raise click.UsageError(problem, click.get_current_context(silent=True))
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command whom and what to call; it gets them as ``target`` and ``arguments``."""

    @click.argument("target", metavar="TOPIC[.HOST]")
    @click.argument("method")
    @click.argument("arguments", metavar="[NAME=VALUE]...", nargs=-1)
    @click.option("--server", metavar="HOST", help="The host, where the topic itself has a dot.")
    @click.option("--version", metavar="X.Y", help="Version of the interface that is wanted.  [default: 1.0]")
    @click.option("--namespace", help="The interface, if it is not the one without a name.")
    @click.option("--fanout", is_flag=True, help="To every service of the topic; no result comes back.")
    @wraps(function)
    def with_request(
        *args: Any,
        target: str,
        arguments: tuple[str, ...],
        server: str | None,
        version: str | None,
        namespace: str | None,
        fanout: bool,
        **kwargs: Any,
    ) -> Any:
        whom = attrs.evolve(read_target(target, server), version=version, namespace=namespace, fanout=fanout)
        return function(*args, target=whom, arguments=read_arguments(arguments), **kwargs)

    return with_request


def with_client(settings: Settings, target: Target, function: Callable[[Any, Any], Awaitable[_T]]) -> _T:
    """Open the way to the broker, call the function, close it.

    :param function: takes a :class:`novasvc.rpc.Client` of the target, and the reactor.
    :raises NoBrokerError: the settings name no broker.
    :raises BrokerError: it cannot be used.
    """
    if settings.transport_url.startswith("memory:"):
        raise NoBrokerError(settings.transport_url)
    # Here, because `--help` needs neither Twisted nor AMQP.
    from novasvc.cli.reactor import on_reactor  # noqa: PLC0415
    from novasvc.rpc import Client  # noqa: PLC0415
    from novasvc.transport.amqp.configured import configured_transport  # noqa: PLC0415

    async def work(reactor: Any) -> _T:
        transport = configured_transport(settings, reactor, name="novasvc command")
        client = Client(transport, clock=reactor, timeout=settings.rpc_response_timeout, target=target)
        try:
            await transport.open()
            return await function(client, reactor)
        finally:
            await client.close()
            await transport.close()

    return on_reactor(work)


async def answer_of(calling: Awaitable[_T]) -> _T:
    """Wait for a call; what the method raised over there becomes one error of ours.

    :raises RemoteError: with the class and the text of what was raised.
    """
    from novasvc.errors import RemoteError  # noqa: PLC0415

    try:
        return await calling
    except NovasvcError:
        raise
    except Exception as error:
        raise RemoteError(type(error).__name__, str(error)) from error
