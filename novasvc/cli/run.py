"""``novasvc run``: run a manager without a settings file, as `twistd -n novasvc` would with one."""

import os
import re
import sys
from collections.abc import Sequence
from getopt import GetoptError, getopt
from pathlib import Path

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable
from novasvc.config import Settings, option_table
from novasvc.config.load import load_leniently
from novasvc.errors import NovasvcError

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")

_OURS = ("state-dir", "database-url", "transport-url", "control-socket")
"""Options in front of the command's name that the node takes, too."""


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: novasvc run shop.stock:Stock --reload",
)
@click.argument("target", metavar="PACKAGE.MODULE:CLASS")
@click.option("--reload", "watch", is_flag=True, help="Restart when a Python file below this directory changes.")
@click.argument("options", metavar="[OPTIONS OF TWISTD NOVASVC]...", nargs=-1, type=click.UNPROCESSED)
@pass_command_context
def run(context: CommandContext, target: str, watch: bool, options: tuple[str, ...]) -> int:  # noqa: FBT001 - click's
    """Run the manager CLASS in the foreground, and print what it serves.

    It needs no settings file and no broker: `novasvc call` in another terminal reaches it. The topic is the class's
    name in lower case, unless --topic gives another; `twistd novasvc --help` lists all options. The directory in which
    the command runs is searched for modules first.
    """
    here = os.getcwd()  # noqa: PTH109 - for sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    _check_target(target)
    arguments = _arguments(context, target, options)
    if watch:
        return _run_and_watch(arguments, _settings(context, target, options), Path(here))
    if here not in sys.path:
        sys.path.insert(0, here)
    run_twistd(arguments)
    return 0


def _check_target(target: str) -> None:
    """Check that a manager is named by module and class.

    :raises UsageError: it is not; with the name that was probably meant.
    """
    if _TARGET.fullmatch(target):
        return
    # As a shell completes it: shop/stock.py, shop/stock.py:Stock
    module, _, name = target.partition(":")
    module = module.removesuffix(".py").strip("./").replace("/", ".")
    meant = f"{module}:{name or module.rpartition('.')[2].title()}"
    example = f"did you mean {meant}?" if _TARGET.fullmatch(meant) else "such as shop.stock:Stock."
    raise click.UsageError(f"{target!r} is not PACKAGE.MODULE:CLASS; {example}", click.get_current_context(silent=True))


def _run_and_watch(arguments: Sequence[str], settings: Settings, directory: Path) -> int:
    # Imported here, because only this option needs them.
    from novasvc.run.watch import run_again_when_changed  # noqa: PLC0415
    from novasvc.transport.local.restarts import RestartFile  # noqa: PLC0415

    command = [sys.executable, "-c", _AGAIN, str(os.getpid()), *arguments]
    nodes = [(service.topic, service.host) for service in settings.services]
    try:
        # Callers on this host wait while the node restarts.
        file = None if settings.uses_broker else RestartFile(settings.socket_dir, nodes)
    except OSError:
        file = None  # The node says what is wrong with the directory.
    if file is None:
        return run_again_when_changed(command, directory, lambda _: None)
    try:
        return run_again_when_changed(command, directory, file.write)
    finally:
        file.close()


_AGAIN = "import sys; from novasvc.cli.run import run_watched; sys.path.insert(0, ''); run_watched(*sys.argv[1:])"


def run_watched(parent: str, *arguments: str) -> None:
    """Run twistd in this process, and end when the process that watches the files ends.

    :param parent: process id of that process.
    :param arguments: of twistd.
    """
    from novasvc.run.watch import end_with_parent  # noqa: PLC0415 - see _run_and_watch

    end_with_parent(int(parent))
    run_twistd(arguments)


def run_twistd(arguments: Sequence[str]) -> None:
    """Run twistd in this process, with these arguments. After a start that failed, the last line is the reason."""
    from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher  # noqa: PLC0415 - as twistd
    from twisted.scripts.twistd import run as twistd  # noqa: PLC0415 - installs a reactor
    from zope.interface import provider  # noqa: PLC0415 - as twistd

    reasons: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical and isinstance(event.get("error"), NovasvcError):
            reasons[:] = [formatEvent(event)]

    globalLogPublisher.addObserver(observe)
    # The greeting names the command beside twistd.
    sys.argv = [str(Path(sys.executable).with_name("twistd")), *arguments]
    twistd()
    # A signal has ended the process there; a failure has stopped the reactor only.
    if reasons:
        # twistd has redirected sys.stderr to the log. The text may come from a peer: escape control characters.
        click.echo(f"novasvc: {printable(reasons[0])}", sys.__stderr__)


def _arguments(context: CommandContext, target: str, options: Sequence[str]) -> list[str]:
    """Return twistd's arguments. Without a pid file, so that two nodes in one directory do not meet."""
    given = [part for file in context.files for part in ("--config", str(file.absolute()))]
    for name in _OURS:
        value = context.options.get(name)
        if value is not None:
            given += [f"--{name}", str(value)]
    topic, named = topic_of(target), dict(_parsed(options))
    # Two topics of one class are two services, so the binary follows the topic.
    served = named.get("--topic", topic)
    # Who runs a manager by hand wants to see its tasks, and not to spread the load of a fleet that starts.
    defaults = [("--topic", topic), ("--binary", f"novasvc-{served}"), ("--periodic-fuzzy-delay", "0")]
    given += [part for name, value in defaults if name not in named for part in (name, value)]
    return ["--nodaemon", "--pidfile=", "novasvc", "--manager", target, *given, *options]


def _parsed(options: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of twistd novasvc with their values; [] if one is invalid, which the node itself reports."""
    names = [option.name if option.flag else f"{option.name}=" for option in option_table()]
    try:
        return getopt(list(options), "", [*names, "config="])[0]
    except GetoptError:
        return []


def _settings(context: CommandContext, target: str, options: Sequence[str]) -> Settings:
    """Return the settings of the node, as far as they are valid: the node itself reports the errors."""
    given = {"manager": target, "topic": topic_of(target), **context.options}
    files = list(context.files)
    for name, value in _parsed(options):
        if name == "--config":
            files.append(Path(value))
        else:
            given[name.removeprefix("--")] = value or True
    return load_leniently(files, context.environ, given).configuration.settings


def topic_of(target: str) -> str:
    """Return the topic that a manager serves by default: the name of its class, as shop.stock:TeaShopManager: tea_shop.

    :param target: "package.module:Class" or "package.module.Class".
    """
    name = target.replace(":", ".").rpartition(".")[2]
    name = name.removesuffix("Manager") or name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
