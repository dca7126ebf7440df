"""The wiring of `twistd novasvc` and .tac files: from options to a service tree."""

import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc._version import __version__
from novasvc.config import Configuration, ServiceSettings, Settings, load, masked_url, option_table
from novasvc.errors import NovasvcError
from novasvc.interfaces import IPreloading, ISpecification, IWebPage
from novasvc.node.runtime import Runtime
from novasvc.node.service import Service
from novasvc.node.tree import ServiceTree
from novasvc.node.wsgi import WSGIService
from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.run.launcher import log_changes, log_settings
from novasvc.run.process import Process, end_process, is_alone, lift_limit
from novasvc.run.process_launcher import ProcessLauncher
from novasvc.telemetry.logfiles import open_log
from novasvc.telemetry.logs import NO_NODE, make_observer
from novasvc.workers.errors import ReloadError
from novasvc.workers.supervisor import Reread, ServerWrapper

if TYPE_CHECKING:
    from novasvc.api.service import APIService

_log = Logger()


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
            sys.exit(f"novasvc: {str(error).rstrip('.')}; `twistd novasvc --help` lists the options")

    def postOptions(self) -> None:
        """Load the settings; exit if they are invalid."""
        try:
            self.configuration = read(self)
        except NovasvcError as error:
            sys.exit(f"novasvc: {error}")


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

    :param options: see :func:`read`.
    :param reactor: None is the global reactor.
    :return: a tree that starts its parts in order; see :class:`novasvc.ServiceTree`.
    :raises NovasvcError: the settings are invalid, or a manager cannot be made.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor
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


def make_parts(settings: Settings, reactor: Any, beside: Iterable[IService]) -> list[IService]:
    """Make all services of the settings, to run in this process.

    :param beside: the services of this process, for the API's health and metrics.
    :raises NovasvcError: a manager cannot be made, or the API's tokens cannot be read.
    """
    runtime = Runtime.from_settings(settings, reactor)
    # First in the tree: the API can report what the others wait for.
    front = make_front(runtime, beside)
    return [*front, *make_own(runtime, make_applications(runtime))]


def make_front(runtime: Runtime, beside: Iterable[IService]) -> list[IService]:
    """Make the API, if it is enabled.

    :raises SettingError: its tokens or TLS files cannot be read.
    """
    return [make_api(runtime, lambda: beside)] if runtime.settings.api else []


def make_own(runtime: Runtime, applications: Sequence[WSGIService]) -> list[IService]:
    """Make what users wrote: the services, and the managers of WSGI applications.

    :param applications: WSGI services whose managers are not made yet.
    :return: the services, followed by the applications.
    :raises NovasvcError: a manager cannot be made.
    """
    for application in applications:
        application.manager  # noqa: B018 - make it now: an error must fail the start
    return [*make_services(runtime.settings.services, runtime), *applications]


def make_applications(runtime: Runtime) -> list[WSGIService]:
    """Make the WSGI services of enabled_apis.

    :raises NovasvcError: an application or its TLS files cannot be loaded.
    """
    settings = runtime.settings
    secure = settings.enabled_ssl_apis
    names = dict.fromkeys([*settings.enabled_apis, *secure])
    return [WSGIService(name, use_ssl=name in secure, runtime=runtime) for name in names]


def make_api(runtime: Runtime, beside: Callable[[], Iterable[IService]] = tuple) -> "APIService":
    """Make the API.

    :raises SettingError: its tokens cannot be read.
    """
    from novasvc.api.service import APIService  # noqa: PLC0415 - a process without the API pays nothing for it

    return APIService(runtime, beside)


def make_services(services: Iterable[ServiceSettings], runtime: Runtime) -> list[IService]:
    """Make nodes from their settings.

    :raises NovasvcError: a manager cannot be made.
    """
    return [
        Service(
            part.host,
            part.binary,
            part.topic,
            part.manager,
            part.report_interval,
            part.periodic_enable,
            part.periodic_fuzzy_delay,
            part.periodic_interval_max,
            part.db_allowed,
            runtime=runtime,
            **part.options,
        )
        for part in services
    ]


@implementer(IPreloading, ISpecification)
@attrs.frozen
class Deployment:
    """The nodes that run together in one worker.

    :param settings: all settings.
    :param services: settings of the nodes in this worker.
    """

    settings: Settings
    services: tuple[ServiceSettings, ...]

    @property
    def name(self) -> str:
        """The server name: binaries joined by "+", with "@host" where several nodes have the same binary."""
        binaries = [part.binary for part in self.settings.services]
        return "+".join(
            part.binary if binaries.count(part.binary) == 1 else f"{part.binary}@{part.host}" for part in self.services
        )

    @property
    def preload(self) -> list[str]:
        """The modules of its managers, imported before the fork."""
        return [part.manager.rpartition(".")[0] for part in self.services]

    def build(self, reactor: Any) -> ServiceTree:
        """Make the nodes; see :class:`~novasvc.interfaces.ISpecification`."""
        tree = ServiceTree(self.name)
        for service in make_services(self.services, Runtime.from_settings(self.settings, reactor)):
            service.setServiceParent(tree)
        return tree


def deployments(settings: Settings, reactor: Any) -> list[ServerWrapper]:
    """Return the servers to run in workers; empty if everything runs in one process.

    A service with its own ``workers`` setting has processes of its own; the others share theirs.
    """
    if not settings.supervised:
        return []
    together = tuple(part for part in settings.services if not part.workers)
    wrappers = [
        ServerWrapper(Deployment(settings, (part,)), part.workers) for part in settings.services if part.workers
    ]
    if together:
        wrappers.insert(0, ServerWrapper(Deployment(settings, together), max(1, settings.workers)))
    if settings.api:
        wrappers.append(ServerWrapper(make_api(Runtime.from_settings(settings, reactor)), settings.api_workers or 1))
    applications = make_applications(Runtime.from_settings(settings, reactor))
    return [*wrappers, *(ServerWrapper(application, application.workers) for application in applications)]


def makeService(options: Mapping[str, Any]) -> ServiceTree:
    """Make the service tree of a whole process, for twistd.

    :param options: as :func:`read` takes them; :class:`Options` when twistd calls.
    :return: a tree whose failed start stops the reactor, and exits with status 1.
    :raises SystemExit: the settings are invalid or a manager cannot be made; the message has the reason.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor

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


class ProcessTree(ServiceTree):
    """The service tree of a whole process: handles signals, and sets the exit status.

    :param observer: log observer to install in the application that becomes its parent; None installs none. If the
        parent is not an application, the observer is added to the global publisher while the tree runs.
    """

    def __init__(self, configuration: Configuration, reactor: Any, observer: ILogObserver | None = None) -> None:
        super().__init__("novasvc")
        self._configuration = configuration
        self._reactor = reactor
        self._observer = observer
        self._plant: Callable[[], None] = nothing
        self._helpers = MultiService()
        self._process: Process | None = None
        self._observer_beside: ILogObserver | None = None
        self._api: IWebPage | None = None
        self._failed = False

    def supervise(self, wrappers: Sequence[ServerWrapper], read: Reread, log_file: str) -> None:
        """Run the servers in workers; see :class:`novasvc.service.ProcessLauncher`."""
        settings = self._configuration.settings
        if settings.services and settings.transport_url.startswith("memory:"):
            _log.warn(
                "transport_url memory: reaches no other process: workers cannot exchange messages; set up a broker"
            )
        launcher = ProcessLauncher(self._configuration, self._reactor, reread=read, log_file=log_file)
        for wrapper in wrappers:
            launcher.launch_server(wrapper.server, wrapper.workers)
            self._remember_api(wrapper.server)
        launcher.setServiceParent(self)
        # A running launcher ends by itself only if no worker can run any more.
        launcher.when_ended().addErrback(lambda _: self._end_failed())

    def run_here(self, read: Callable[[], Configuration], *, later: bool) -> None:
        """Run the services in this process.

        :param read: reads the configuration again, for SIGHUP.
        :param later: twistd will drop privileges before the tree starts. Parts that bind ports are made now; users'
            code is made only when the tree starts, so that it never runs with those privileges.
        :raises NovasvcError: a manager cannot be made.
        """
        runtime = Runtime.from_settings(self._configuration.settings, self._reactor)
        applications = make_applications(runtime)

        def plant() -> None:
            self._plant = nothing
            for application in applications:
                application.disownServiceParent()  # to add them again behind the services
            for part in make_own(runtime, applications):
                part.setServiceParent(self)

        def grace() -> float:
            return self._configuration.settings.graceful_shutdown_timeout

        log_settings(self._configuration)
        for part in [*make_front(runtime, self), *applications]:
            self._remember_api(part)
            part.setServiceParent(self)
        self._plant = plant
        if not later:
            plant()
        self._process = Process(self._reactor, self, lambda: self._restart_here(read), grace)
        self._process.setServiceParent(self._helpers)

    async def _restart_here(self, read: Callable[[], Configuration]) -> None:
        try:
            after, parts = self._prepare(read)
        except ReloadError:
            raise
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(str(error)) from error
        log_changes(self._configuration, after)
        self._configuration = after
        self._api = None
        for part in parts:
            self._remember_api(part)
        await self.restart(parts).addErrback(self._not_restarted)

    def _prepare(self, read: Callable[[], Configuration]) -> tuple[Configuration, list[IService]]:
        """Make the new parts, and hand the listening sockets over to them; nothing is stopped yet."""
        after = read()
        if after.settings.supervised:
            raise ReloadError("the configuration asks for workers; restart to run them")
        parts = make_parts(after.settings, self._reactor, self)
        self.hand_over(parts)
        return after, parts

    def _remember_api(self, part: Any) -> None:
        if IWebPage.providedBy(part):
            self._api = IWebPage(part)

    def setServiceParent(self, parent: Any) -> None:
        """Join an application, and give it our log observer, for which twistd asks when it begins to log."""
        # From a plain collection, even IServiceCollection(application), the application cannot be reached.
        if not isinstance(parent, Componentized):
            self._observer_beside = self._observer
        elif self._observer is not None and parent.getComponent(ILogObserver, None) is None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)

    def startService(self) -> None:
        """Start the parts; then print the greeting, or exit with status 1."""
        if self._observer_beside is not None:
            globalLogPublisher.addObserver(self._observer_beside)
        warn_of_unreadable(self._configuration.settings)
        try:
            self._plant()
        except NovasvcError as error:
            _log.critical("{error}", error=error)
            self._end_failed()
            return
        self._helpers.startService()
        super().startService()
        self.when_started().addCallbacks(self._greet, self._give_up)

    def stopService(self) -> Deferred[None]:
        """Stop the parts; signals are handled until they have stopped."""
        return super().stopService().addCallback(lambda _: self._helpers.stopService()).addCallback(self._stopped)

    def _stopped(self, _: object) -> None:
        if self._process is not None and not self._process.hurried and not is_alone(self):
            lift_limit()  # other services of this process may take longer
        if self._observer_beside is not None:
            globalLogPublisher.removeObserver(self._observer_beside)

    def _greet(self, _: None) -> None:
        settle_collector()
        # Not sys.stdout: twistd has redirected that to the log.
        if not self._configuration.settings.log_json and sys.__stdout__ is not None:
            sys.__stdout__.write(greeting(self._configuration, "" if self._api is None else self._api.login_url))
            sys.__stdout__.flush()

    def _give_up(self, failure: Failure) -> None:
        # The failed part has logged the reason. A start that was stopped is not a failure.
        if self.state in {"failed", "running"}:
            self._end_failed()

    def _not_restarted(self, failure: Failure) -> Failure:
        self._give_up(failure)
        return failure

    def _end_failed(self) -> None:
        if not self._failed:
            self._failed = True
            end_process(self._reactor, 1)


def greeting(configuration: Configuration, page: str = "") -> str:
    """Return the greeting for a terminal: what runs, where its state is, which commands to try.

    :param page: URL of the API's page, perhaps with a one-time login code.
    """
    settings, origins = configuration.settings, configuration.origins
    command = Path(sys.argv[0]).with_name("novasvc")
    novasvc = str(command) if command.exists() else "novasvc"
    # The command reads the same environment, but not this process's options and files: repeat those.
    for name, value in (("state_dir", str(settings.state_dir)), ("database_url", masked_url(settings.database_url))):
        if origins[name].startswith(("option", "file")):
            novasvc += f" --{name.replace('_', '-')} {shlex.quote(value)}"
    runs = ", ".join(f"{part.binary}@{part.host} (topic {part.topic})" for part in settings.services)
    tries = ["config show"]
    if settings.db_allowed:
        disable = "service disable --reason 'new disk'"
        some = [f"{disable} --host {part.host} --binary {part.binary}" for part in settings.services[:1]]
        tries = ["service list", *some, *tries]
    return (
        f"\nnovasvc {__version__} runs {runs or 'no node'}\n"
        f"  state      {masked_url(settings.database_url) if settings.db_allowed else 'through the conductor'}\n"
        f"  messages   {masked_url(settings.transport_url)}\n"
        + (f"  page       {page}\n" if page else "")
        + f"  try        {f'{chr(10)}             '.join(f'{novasvc} {words}' for words in tries)}\n\n"
    )


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


def warn_of_unreadable(settings: Settings) -> None:
    """Warn about files that were readable only with dropped privileges: a reload reads them again."""
    secure = settings.enabled_ssl_apis or (settings.api and settings.api_use_ssl)
    names = ["api_token_file"] if settings.api else []
    for name in [*names, *(["ssl_cert_file", "ssl_key_file", "ssl_ca_file"] if secure else [])]:
        path: Path | None = getattr(settings, name)
        if path is not None and not os.access(path, os.R_OK, effective_ids=True):
            _log.warn(
                "{name} {path} is not readable by uid {uid}: reloads will fail until it is",
                name=name,
                path=str(path),
                uid=os.geteuid(),
            )


def nothing() -> None:
    """Do nothing: no part is left to make."""


def settle_collector() -> None:
    """Exempt the objects of the start from garbage collection, and collect less often."""
    # Note [Garbage collection]
    #
    # Modules, classes and the tree live as long as the process. Traversing them in each full collection blocks the
    # reactor for tens of milliseconds, and a node makes few reference cycles. So gc.freeze() exempts them, and the
    # thresholds are raised: docs/decisions.md has the measurements.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
