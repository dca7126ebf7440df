"""What `call`, `cast` and `ping` share: target, arguments, RPC client."""

import math
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import attrs
import click

from novasvc.cli import candidates
from novasvc.cli.arguments import read_arguments
from novasvc.config import Settings
from novasvc.errors import ProblemError
from novasvc.rpc.errors import InvalidTargetError, RPCError, UndeliverableError
from novasvc.rpc.target import Target

_T = TypeVar("_T")

_EXPLAIN_TIMEOUT = 2.0
"""Seconds that an undeliverable message may wait for the registry, which explains it."""
_CLOSE_TIMEOUT = 2.0
"""Seconds for the AMQP close handshake; the result has been printed by then."""


class Seconds(click.FloatRange):
    """A finite number of seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a finite number; reject infinity and NaN."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


TIMEOUT = Seconds(min=0.001)


def read_version(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Validate an interface version; a click callback."""
    from novasvc.rpc.version import parse_version  # noqa: PLC0415 - see run_with_client

    try:
        if text is not None:
            parse_version(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def parse_target(text: str, server: str | None = None) -> Target:
    """Parse TOPIC or TOPIC.HOST, as :func:`read_target`.

    :raises InvalidTargetError: the topic or the host is not valid.
    """
    topic, host = text, server
    if server is None:
        topic, dot, rest = text.partition(".")
        host = rest if dot else None
    return Target(topic, host)


def read_target(text: str, server: str | None = None) -> Target:
    """Parse TOPIC or TOPIC.HOST; the host starts after the first dot.

    :param server: the host, if the topic itself contains dots.
    """
    try:
        return parse_target(text, server)
    except InvalidTargetError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None


_server_option = click.option(
    "--server",
    metavar="HOST",
    help="The host, if the topic itself contains a dot.",
    shell_complete=candidates.hosts,
)


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add TOPIC[.HOST] and --server; the command gets both in one, as ``target``."""

    @click.argument("target", metavar="TOPIC[.HOST]", shell_complete=candidates.targets)
    @_server_option
    @wraps(function)
    def with_target(*args: Any, target: str, server: str | None, **kwargs: Any) -> Any:
        return function(*args, target=read_target(target, server), **kwargs)

    return with_target


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add TOPIC[.HOST], METHOD, NAME=VALUE and their options; the command gets ``target`` and ``arguments``."""

    @click.argument("target", metavar="TOPIC[.HOST]", shell_complete=candidates.targets)
    @click.argument("method", required=False, metavar="METHOD", shell_complete=candidates.methods)
    @click.argument("arguments", metavar="[NAME=VALUE]...", nargs=-1, shell_complete=candidates.arguments)
    @_server_option
    @click.option(
        "--version",
        metavar="X.Y",
        callback=read_version,
        help="Required version of the interface.  [default: 1.0]",
    )
    @click.option("--namespace", help="Namespace of the interface.  [default: none]")
    @click.option("--fanout", is_flag=True, help="Send to every service of the topic; no result is returned.")
    @wraps(function)
    def with_request(
        *args: Any,
        target: str,
        method: str | None,
        arguments: tuple[str, ...],
        server: str | None,
        version: str | None,
        namespace: str | None,
        fanout: bool,
        **kwargs: Any,
    ) -> Any:
        parsed = read_target(target, server)
        _check_method(target, method, arguments)
        if fanout and parsed.server is not None:
            raise click.UsageError(
                f"--fanout sends to every service of a topic, but {parsed} names one.",
                click.get_current_context(silent=True),
            )
        parsed = attrs.evolve(parsed, version=version, namespace=namespace, fanout=fanout)
        return function(*args, target=parsed, method=method, arguments=read_arguments(arguments), **kwargs)

    return with_request


def _check_method(target: str, method: str | None, arguments: tuple[str, ...]) -> None:
    """Check that there is a method, and that it is none of the arguments.

    :raises UsageError: with the command that was probably meant.
    """
    if method and "=" not in method:
        return
    context = click.get_current_context(silent=True)
    command = "novasvc call" if context is None else context.command_path
    problem = f"{method!r} is an argument, and METHOD is missing." if method else "METHOD is missing."
    topic, dot, name = target.partition(".")
    if dot and name.isidentifier():
        given = " ".join(map(shlex.quote, [method, *arguments] if method else []))
        remedy = (
            f"In TOPIC.HOST, a host follows the dot. Did you mean `{command} {topic} {name} {given}".rstrip() + "`?"
        )
    else:
        remedy = f"`novasvc describe {target}` lists the methods."
    raise click.UsageError(f"{problem} {remedy}", context)


def run_with_client(
    settings: Settings,
    target: Target,
    function: Callable[[Any, Any], Awaitable[_T]],
    request: tuple[str, Mapping[str, Any]] = ("", {}),
) -> _T:
    """Connect to the broker, call the function on the reactor, and disconnect.

    :param function: takes a :class:`novasvc.rpc.Client` for the target, and the reactor.
    :param request: the method that the function calls, and its arguments, for the error if the call fails.
    :raises ProblemError: there is no broker, and no service of this user runs on this host.
    :raises BrokerError: the broker cannot be used.
    """
    if not settings.uses_broker:
        require_process(settings)
    # Imported here, because `--help` needs neither Twisted nor AMQP.
    from twisted.internet.defer import Deferred  # noqa: PLC0415

    from novasvc.cli.hints import explained  # noqa: PLC0415
    from novasvc.cli.reactor import run_on_reactor  # noqa: PLC0415
    from novasvc.interfaces import ITransport  # noqa: PLC0415

    async def work(reactor: Any) -> _T:
        transport = make_transport(settings, reactor)
        client = make_client(settings, transport, reactor, target)
        try:
            await transport.open()
            return await function(client, reactor)
        except RPCError as error:
            # From None: the explained error has the text of its cause.
            raise await explained(error, settings, client, reactor, target, request) from None
        finally:
            closing = Deferred.fromCoroutine(close(client, transport)).addTimeout(_CLOSE_TIMEOUT, reactor)
            # Errors of the close are ignored: the process exits, and its connections with it.
            await closing.addErrback(lambda _: None)

    async def close(client: Any, transport: ITransport) -> None:
        await client.close()
        await transport.close()

    return run_on_reactor(work)


def signer_of(settings: Settings) -> Any:
    """Return what signs the calls with the operator's key; None if no key is configured.

    :raises SettingError: the file of the key cannot be used.
    """
    path = settings.rpc_signing_key_file
    if path is None:
        return None
    from novasvc.rpc.identity.keys import read_signing_key  # noqa: PLC0415 - see run_with_client
    from novasvc.rpc.identity.signature import Signer  # noqa: PLC0415

    return Signer(read_signing_key(path), time.time)


def make_client(settings: Settings, transport: Any, reactor: Any, target: Target | None) -> Any:
    """Make a :class:`novasvc.rpc.Client` whose errors say what the registry knows of a target."""
    from twisted.internet.defer import Deferred  # noqa: PLC0415 - see run_with_client

    from novasvc.rpc import Client  # noqa: PLC0415

    def explain(target: Target) -> Any:
        return Deferred.fromCoroutine(count_services(settings, reactor, target)).addTimeout(_EXPLAIN_TIMEOUT, reactor)

    def hosts(topic: str) -> Any:
        return Deferred.fromCoroutine(_up_hosts(settings, reactor, topic)).addTimeout(_EXPLAIN_TIMEOUT, reactor)

    return Client(
        transport,
        clock=reactor,
        timeout=settings.rpc_response_timeout,
        target=target,
        mandatory=True,
        signer=signer_of(settings),
        explain=explain,
        hosts=hosts,
    )


def require_process(settings: Settings) -> None:
    """Check that a process of this user on this host serves something, or is about to.

    :raises ProblemError: none does.
    """
    from novasvc.transport.local.outgoing import any_process  # noqa: PLC0415 - see run_with_client
    from novasvc.transport.local.restarts import restarting  # noqa: PLC0415

    if not any_process(settings.socket_dir) and restarting(settings.socket_dir) is None:
        problem = f"no service of this user runs on this host with state_dir = {str(settings.state_dir)!r}"
        remedy = (
            "start one, give its --state-dir, or give the URL of the services' broker: --transport-url "
            "amqp://user:password@host/vhost in front of the command's name, NOVASVC_TRANSPORT_URL, or transport_url "
            "in a configuration file"
        )
        raise ProblemError(f"transport_url = {settings.transport_url!r}", problem, remedy)


def prepare_imports(settings: Settings) -> None:
    """Import what :func:`run_with_client` needs, for a caller that measures the time."""
    from twisted.internet import reactor  # noqa: F401, PLC0415

    import novasvc.cli.reactor  # noqa: PLC0415 - see run_with_client
    import novasvc.rpc  # noqa: PLC0415
    import novasvc.transport.local  # noqa: PLC0415

    if settings.uses_broker:
        import novasvc.transport.amqp.configured  # noqa: F401, PLC0415


def make_transport(settings: Settings, reactor: Any) -> Any:
    """Make the transport of a command, unopened."""
    if settings.uses_broker:
        from novasvc.transport.amqp.configured import configured_transport  # noqa: PLC0415 - see run_with_client

        return configured_transport(settings, reactor, name="novasvc command")
    from novasvc.transport.local import HostSockets, LocalTransport  # noqa: PLC0415
    from novasvc.transport.memory import MemoryBroker  # noqa: PLC0415

    return LocalTransport(HostSockets(MemoryBroker(), reactor, settings.socket_dir), exchange=settings.control_exchange)


async def count_services(settings: Settings, reactor: Any, target: Target) -> UndeliverableError:
    """Look up in the registry how many services there are for a target, and how many of them are up.

    :return: an error that says so.
    :raises NovasvcError: there is no database on this host, or it cannot be used.
    """
    from novasvc.registry.lookup import ServiceLookup  # noqa: PLC0415 - see run_with_client

    return await _ask_registry(
        settings, reactor, lambda registry: ServiceLookup(lambda: registry, reactor, settings.service_down_time)(target)
    )


async def _up_hosts(settings: Settings, reactor: Any, topic: str) -> frozenset[str]:
    """Return the hosts that serve a topic and are up according to the registry.

    :raises NovasvcError: there is no database on this host, or it cannot be used.
    """
    from novasvc.registry.lookup import UpHosts  # noqa: PLC0415 - see run_with_client

    return await _ask_registry(
        settings, reactor, lambda registry: UpHosts(lambda: registry, reactor, settings.service_down_time)(topic)
    )


async def _ask_registry(settings: Settings, reactor: Any, ask: Callable[[Any], Awaitable[_T]]) -> _T:
    from novasvc.cli.database import require_database  # noqa: PLC0415 - see run_with_client
    from novasvc.registry.sql.services import connect_registry  # noqa: PLC0415

    require_database(settings.database_url)
    registry = connect_registry(settings.database_url, reactor=reactor, migrate=False)
    try:
        await registry.open()
        return await ask(registry)
    finally:
        await registry.close()
