"""The wiring of `twistd novasvc` and .tac files: from options to a service tree."""

import os
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from twisted.logger import ILogObserver
from twisted.python import usage

from novasvc._version import __version__
from novasvc.config import Configuration, Settings, load, option_table
from novasvc.errors import NovasvcError
from novasvc.node.tree import ServiceTree
from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.run.pidfile import check_pid_file
from novasvc.run.process_launcher import ProcessLauncher
from novasvc.run.process_tree import ProcessTree
from novasvc.run.services import deployments, make_parts
from novasvc.telemetry.logfiles import open_log
from novasvc.telemetry.logs import NO_NODE, make_observer
from novasvc.workers.servers import ServerWrapper


class Options(usage.Options):
    """The options of `twistd novasvc`, one per setting."""

    synopsis = "[options]"
    longdesc = "Run services on this host. Without options: the bundled host agent, with an SQLite file."
    optParameters: ClassVar = [[option.name, None, None, option.help] for option in option_table() if not option.flag]
    optFlags: ClassVar = [[option.name, None, option.help] for option in option_table() if option.flag]

    def __init__(self) -> None:
        super().__init__()
        self["config"] = []

    def opt_config(self, path: str) -> None:
        """Read settings from a file: .toml, or .ini/.conf with Nova's names. May be repeated."""
        self["config"].append(path)

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"novasvc {__version__}")  # noqa: T201 - asked for
        sys.exit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; exit with status 1 on an unknown option, where twistd exits with 0."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            sys.exit(
                f"novasvc: {str(error).rstrip('.')}; {_meant(str(error))}`twistd novasvc --help` lists the options"
            )

    def postOptions(self) -> None:
        """Load the settings; exit if they are invalid, or if another process has the pid file."""
        try:
            check_pid_file(getattr(self, "parent", None))
            self.configuration = read(self)
        except NovasvcError as error:
            sys.exit(f"novasvc: {error}")


def _meant(problem: str) -> str:
    """Return a suggestion for an unknown option that a usage error names; "" if no option is similar."""
    wrong = re.search(r"option --?(\S+) not recognized", problem)
    names = ["config", "reload", *(option.name for option in option_table())]
    close = get_close_matches(wrong[1], names, n=1) if wrong else []
    return f"did you mean --{close[0]}? " if close else ""


def read(options: Mapping[str, Any]) -> Configuration:
    """Read the settings from options, the environment and files.

    :param options: values by option name, without leading dashes; "config" is a list of paths,
        "logfile" is the workers' log when a .tac file runs as a daemon.
    :raises ConfigurationError: lists all errors of the settings.
    """
    given = {name: value for name, value in options.items() if name not in {"config", "logfile"}}
    return load([Path(path) for path in options.get("config", ())], os.environ, given)


def compose(options: Mapping[str, Any], reactor: Any = None) -> ServiceTree:
    """Make a service tree to embed in your own application.

    With workers it handles the signals of the process while it runs; without, signals belong to the application.

    :param options: see :func:`read`.
    :param reactor: None is the global reactor.
    :return: a tree that starts its parts in order; see :class:`novasvc.ServiceTree`.
    :raises NovasvcError: the settings are invalid, or a manager cannot be made.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor
    configuration = read(options)
    settings = configuration.settings
    tree = ServiceTree("novasvc")
    if wrappers := deployments(settings, reactor):
        launcher = ProcessLauncher(
            configuration, reactor, reread=lambda: _read_again(options, reactor), log_file=options.get("logfile", "")
        )
        for wrapper in wrappers:
            launcher.launch_server(wrapper.server, wrapper.workers)
        launcher.setServiceParent(tree)
        return tree
    for part in make_parts(settings, reactor, tree):
        part.setServiceParent(tree)
    return tree


def makeService(options: Mapping[str, Any]) -> ServiceTree:
    """Make the service tree of a whole process, for twistd.

    :param options: as :func:`read` takes them; :class:`Options` when twistd calls.
    :return: a tree whose failed start stops the reactor, and exits with status 1.
    :raises SystemExit: the settings are invalid or a manager cannot be made; the message has the reason.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    use_monotonic_clock(reactor)
    try:
        configuration = options.configuration if isinstance(options, Options) else read(options)
        settings = configuration.settings
        twistd = getattr(options, "parent", None)
        tree = ProcessTree(configuration, reactor, _observer(settings, reactor, options))
        if wrappers := deployments(settings, reactor):
            tree.supervise(wrappers, lambda: _read_again(options, reactor), options.get("logfile") or _log_file(twistd))
        else:
            loses_rights = twistd is not None and (twistd.get("uid") is not None or twistd.get("gid") is not None)
            tree.run_here(lambda: read(options), later=loses_rights)
    except NovasvcError as error:
        sys.exit(f"novasvc: {error}")
    return tree


def _read_again(options: Mapping[str, Any], reactor: Any) -> tuple[Configuration, list[ServerWrapper]]:
    configuration = read(options)
    return configuration, deployments(configuration.settings, reactor)


def _observer(settings: Settings, reactor: Any, options: Mapping[str, Any]) -> ILogObserver | None:
    """Make the log observer for `twistd novasvc`; None if twistd's options name another log.

    :param options: see :func:`makeService`. A .tac file, which may set its own observer, has no twistd options here;
        its "logfile" says where to log.
    """
    twistd = getattr(options, "parent", None)
    if twistd is None and options.get("logfile"):
        twistd = {"logfile": options["logfile"], "nodaemon": True, "debug": False}
    # twist(1) has its own log options, and none of these.
    if twistd is None or "nodaemon" not in twistd or twistd.get("logger") or twistd.get("syslog"):
        return None
    # A supervisor itself is not a node.
    only = settings.services[0] if len(settings.services) == 1 and not settings.supervised else None
    default = NO_NODE if only is None else {"host": only.host, "binary": only.binary, "topic": only.topic}
    daemon = not (twistd["nodaemon"] or twistd["debug"])
    log_file = open_log(twistd["logfile"] or "", daemon=daemon, reactor=reactor)
    return make_observer(log_file, as_json=settings.log_json, level=settings.log_level, default=default)


def _log_file(twistd: Mapping[str, Any] | None) -> str:
    """Return the absolute path of twistd's --logfile; "" is standard output."""
    if twistd is None or "nodaemon" not in twistd:
        return ""
    name = twistd["logfile"] or ("" if twistd["nodaemon"] or twistd["debug"] else "twistd.log")
    return "" if name in {"", "-"} else os.path.abspath(name)  # noqa: PTH100 - links are kept: the name is reopened
