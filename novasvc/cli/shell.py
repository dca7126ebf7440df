"""``novasvc shell``: a Python prompt with an RPC client, the registry and await."""

import os
import re
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import attrs
import click

from novasvc._version import __version__
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.config import Settings, masked_url
from novasvc.context import RequestContext
from novasvc.errors import NovasvcError

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from novasvc.cli.reactor_thread import ReactorThread

_HISTORY = "shell_history"
_HISTORY_LENGTH = 1000

_CLOSE_TIMEOUT = 2.0
"""Seconds to disconnect; the process ends then, and its connections with it."""
_COMPLETE_TIMEOUT = 3.0
"""Seconds for suggestions, while somebody types."""

_TOPIC = re.compile(r"""\b(?:call|cast)\(\s*["']([^"']*)$""")
_METHOD = re.compile(r"""\b(?:call|cast)\(\s*["']([^"']+)["']\s*,\s*["'](\w*)$""")


@click.command(epilog="Example: echo \"await call('agent', 'get_host_facts')\" | novasvc shell")
@pass_command_context
def shell(context: CommandContext) -> int:
    """Start a Python prompt with a client of the services, the registry and top-level await.

    await call("TOPIC[.HOST]", "METHOD", name=value) calls a method, and cast(...) sends a request without waiting. rpc
    is the client, registry the services table, context the request context of an administrator. Everything runs on
    Twisted's reactor. Ctrl-C cancels what is awaited; Ctrl-D leaves.

    Statements from a pipe are run one after the other. The first that raises an exception ends the shell with status 1.
    """
    # Imported here, because `--help` needs none of it.
    from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    from novasvc.cli.console import Console  # noqa: PLC0415
    from novasvc.cli.reactor_thread import ReactorThread  # noqa: PLC0415

    here = os.getcwd()  # noqa: PTH109 - for sys.path
    if here not in sys.path:
        sys.path.insert(0, here)  # as for `novasvc run`: one's own modules, and the errors that they register
    settings = context.configuration.settings
    thread = ReactorThread(reactor)
    session = Session(settings, reactor)
    thread.start()
    try:
        thread.run(session.open)
        console = Console(thread, session.namespace)
        if not sys.stdin.isatty():
            return console.run_all(sys.stdin.read())
        with suppress(ImportError):  # a Python without readline
            _use_readline(settings, session, thread)
        console.interact(session.banner, exitmsg="")
        return 0
    finally:
        with suppress(Exception):  # the process ends, and its connections with it
            thread.run(session.close, _CLOSE_TIMEOUT)
        thread.stop()


@attrs.define
class Session:
    """The names of a shell, and what is behind them.

    :param reactor: runs in another thread; the methods are called there.
    :ivar namespace: name -> object.
    :ivar banner: what is printed first.
    """

    settings: Settings
    _reactor: Any
    namespace: dict[str, Any] = attrs.field(factory=dict, init=False)
    banner: str = attrs.field(default="", init=False)
    _transport: Any = attrs.field(default=None, init=False)
    _client: Any = attrs.field(default=None, init=False)
    _calls: "WeakSet[Deferred[Any]]" = attrs.field(factory=WeakSet, init=False)

    async def open(self) -> None:
        """Connect to the services, and to the registry if there is one.

        :raises BrokerError: the broker cannot be used.
        """
        from novasvc.cli.remote import make_client, make_transport  # noqa: PLC0415 - see shell

        settings = self.settings
        self._transport = make_transport(settings, self._reactor)
        self._client = make_client(settings, self._transport, self._reactor, None)
        await self._transport.open()
        registry, about = await self._open_registry()
        self.namespace = {
            "__name__": "__console__",
            "__doc__": None,
            "call": self.call,
            "cast": self.cast,
            "rpc": self._client,
            "registry": registry,
            "context": RequestContext.admin(),
            "settings": settings,
            "reactor": self._reactor,
        }
        self.banner = (
            f"novasvc {__version__} on {masked_url(settings.transport_url)}\n"
            '  await call("TOPIC[.HOST]", "METHOD", name=value), await cast(...)\n'
            f"  rpc, context, settings, reactor, registry{about}\n"
            "  Ctrl-C cancels what is awaited, Ctrl-D leaves"
        )

    async def close(self) -> None:
        """Disconnect."""
        registry = self.namespace.get("registry")
        if registry is not None:
            await registry.close()
        for sending in self._calls:
            # Nobody has awaited it, so nobody is told that it ends.
            sending.addErrback(lambda _: None)
            sending.cancel()
        await self._client.close()
        await self._transport.close()

    def call(self, target: str, method: str, /, **arguments: Any) -> Any:
        """Call a method of a service of TOPIC or TOPIC.HOST; the Deferred fires with its result."""
        return self._request("call", target, method, arguments)

    def cast(self, target: str, method: str, /, **arguments: Any) -> Any:
        """Send a request to a service of TOPIC or TOPIC.HOST; the Deferred fires when it is sent."""
        return self._request("cast", target, method, arguments)

    def _request(self, kind: str, target: str, method: str, arguments: dict[str, Any]) -> Any:
        from twisted.internet.defer import Deferred  # noqa: PLC0415 - see shell

        from novasvc.cli.hints import explained  # noqa: PLC0415
        from novasvc.cli.remote import parse_target  # noqa: PLC0415
        from novasvc.rpc.errors import RPCError  # noqa: PLC0415

        parsed = parse_target(target)
        client = self._client.prepare(topic=parsed.topic, server=parsed.server)

        async def request() -> Any:
            try:
                return await getattr(client, kind)(RequestContext.admin(), method, **arguments)
            except RPCError as error:
                given = (method, arguments)
                raise await explained(error, self.settings, client, self._reactor, parsed, given) from None

        sending = Deferred.fromCoroutine(request())
        if kind == "call":
            self._calls.add(sending)
        return sending

    async def names(self, line: str) -> list[str] | None:
        """Return the topics or methods with which a line may go on; None if it ends elsewhere than in one."""
        from novasvc.cli.hints import described_methods, known_topics  # noqa: PLC0415 - see shell
        from novasvc.cli.remote import parse_target  # noqa: PLC0415

        if found := _METHOD.search(line):
            parsed = parse_target(found[1])
            client = self._client.prepare(topic=parsed.topic, server=parsed.server, timeout=1.0)
            rows = await described_methods(client)
            return sorted(row["method"] for row in rows if row["namespace"] is None)
        if _TOPIC.search(line):
            return sorted(await known_topics(self.settings, self._reactor))
        return None

    async def _open_registry(self) -> tuple[Any, str]:
        """Return the open registry, or None and the reason."""
        from novasvc.cli.database import require_database  # noqa: PLC0415 - see shell
        from novasvc.registry.sql.services import connect_registry  # noqa: PLC0415

        registry = None
        try:
            require_database(self.settings.database_url)
            registry = connect_registry(self.settings.database_url, reactor=self._reactor, migrate=False)
            await registry.open()
        except NovasvcError as error:
            if registry is not None:
                await registry.close()
            return None, f" (None: {error})"
        return registry, ""


def _use_readline(settings: Settings, session: Session, thread: "ReactorThread") -> None:
    import atexit  # noqa: PLC0415 - of a terminal alone
    import readline  # noqa: PLC0415
    from rlcompleter import Completer  # noqa: PLC0415

    if _is_private(settings.state_dir):
        history = settings.state_dir / _HISTORY
        with suppress(OSError):
            readline.read_history_file(history)
        readline.set_history_length(_HISTORY_LENGTH)
        atexit.register(_write_history, history, readline.write_history_file)
    python = Completer(session.namespace)
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        nonlocal found
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            names = None
            with suppress(Exception):  # whatever it is, there are no suggestions
                if _TOPIC.search(line) or _METHOD.search(line):
                    names = thread.run(lambda: session.names(line), _COMPLETE_TIMEOUT)
            found = [] if names is None else [name for name in names if name.startswith(text)]
            if names is None:
                return python.complete(text, 0)
        elif not found:
            return python.complete(text, state)
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def _is_private(directory: Path) -> bool:
    """Return whether only this user can write to a directory.

    In one of another user, such as that of the services when root has a shell, the history may be a link to any file.
    """
    with suppress(OSError):
        found = directory.stat()
        return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return False


def _write_history(path: Path, write: Callable[[Path], object]) -> None:
    """Write the history, readable by its owner only, if there is a state directory."""
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        write(path)
