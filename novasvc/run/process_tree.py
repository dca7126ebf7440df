"""The service tree of a whole process: its signals, its log, its greeting and its exit status."""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from novasvc.config import Configuration, Settings
from novasvc.errors import NovasvcError
from novasvc.interfaces import IWebPage
from novasvc.node.runtime import Runtime
from novasvc.node.tree import ServiceTree
from novasvc.run.forced_exit import cancel_forced_exit
from novasvc.run.greeting import greeting
from novasvc.run.process import Process
from novasvc.run.process_end import end_process, is_only_service
from novasvc.run.process_launcher import ProcessLauncher
from novasvc.run.services import make_applications, make_front, make_own, make_parts
from novasvc.telemetry.configuration import log_changes, log_settings
from novasvc.workers.errors import ReloadError
from novasvc.workers.exit_status import problem_of
from novasvc.workers.servers import Reread, ServerWrapper

_log = Logger()


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
        self._make_remaining: Callable[[], None] = do_nothing
        self._helpers = MultiService()
        self._process: Process | None = None
        self._global_observer: ILogObserver | None = None
        self._api: IWebPage | None = None
        self._failed = False

    def supervise(self, wrappers: Sequence[ServerWrapper], read: Reread, log_file: str) -> None:
        """Run the servers in workers; see :class:`novasvc.service.ProcessLauncher`."""
        settings = self._configuration.settings
        if settings.services and not settings.uses_broker:
            _log.warn(
                "transport_url memory: keeps messages in the memory of each worker: those of a worker that dies are "
                "lost; set transport_url to a broker to keep them"
            )
        launcher = ProcessLauncher(self._configuration, self._reactor, reread=read, log_file=log_file)
        for wrapper in wrappers:
            launcher.launch_server(wrapper.server, wrapper.workers)
            self._remember_api(wrapper.server)
        launcher.setServiceParent(self)
        # A running launcher ends by itself only if no worker can run any more.
        launcher.when_ended().addErrback(lambda _: self._exit_with_failure())

    def run_here(self, read: Callable[[], Configuration], *, later: bool) -> None:
        """Run the services in this process.

        :param read: reads the configuration again, for SIGHUP.
        :param later: twistd will drop privileges before the tree starts. Parts that bind ports are made now; users'
            code is made only when the tree starts, so that it never runs with those privileges.
        :raises NovasvcError: a manager cannot be made.
        """
        runtime = Runtime.from_settings(self._configuration.settings, self._reactor)
        applications = make_applications(runtime)

        def make_remaining() -> None:
            self._make_remaining = do_nothing
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
        self._make_remaining = make_remaining
        if not later:
            make_remaining()
        self._process = Process(self._reactor, self, lambda: self._restart_here(read), grace)
        self._process.setServiceParent(self._helpers)

    async def _restart_here(self, read: Callable[[], Configuration]) -> None:
        try:
            after, parts = self._prepare(read)
        except ReloadError:
            raise
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(problem_of(error)) from error
        log_changes(self._configuration, after)
        self._configuration = after
        self._api = None
        for part in parts:
            self._remember_api(part)
        await self.restart(parts).addErrback(self._restart_failed)

    def _prepare(self, read: Callable[[], Configuration]) -> tuple[Configuration, list[IService]]:
        """Make the new parts, and hand the listening sockets over to them; nothing is stopped yet."""
        after = read()
        if after.settings.supervised:
            raise ReloadError("the configuration asks for workers; restart to run them")
        parts = make_parts(after.settings, self._reactor, self)
        self.hand_over_sockets(parts)
        return after, parts

    def _remember_api(self, part: Any) -> None:
        if IWebPage.providedBy(part):
            self._api = IWebPage(part)

    def setServiceParent(self, parent: Any) -> None:
        """Join an application, and give it our log observer, for which twistd asks when it begins to log."""
        # From a plain collection, even IServiceCollection(application), the application cannot be reached.
        if not isinstance(parent, Componentized):
            self._global_observer = self._observer
        elif self._observer is not None and parent.getComponent(ILogObserver, None) is None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)

    def startService(self) -> None:
        """Start the parts; then print the greeting, or exit with status 1."""
        if self._global_observer is not None:
            globalLogPublisher.addObserver(self._global_observer)
        warn_of_unreadable(self._configuration.settings)
        try:
            self._make_remaining()
        except NovasvcError as error:
            _log.critical("{error}", error=error)
            self._exit_with_failure()
            return
        self._helpers.startService()
        super().startService()
        self.when_started().addCallbacks(self._greet, self._exit_unless_stopped)

    def stopService(self) -> Deferred[None]:
        """Stop the parts; signals are handled until they have stopped."""
        return super().stopService().addCallback(lambda _: self._helpers.stopService()).addCallback(self._stopped)

    def _stopped(self, _: object) -> None:
        if self._process is not None and not self._process.stopping_now and not is_only_service(self):
            cancel_forced_exit()  # other services of this process may take longer
        if self._global_observer is not None:
            globalLogPublisher.removeObserver(self._global_observer)

    def _greet(self, _: None) -> None:
        tune_garbage_collector()
        # Not sys.stdout: twistd has redirected that to the log.
        if not self._configuration.settings.log_json and sys.__stdout__ is not None:
            sys.__stdout__.write(greeting(self._configuration, "" if self._api is None else self._api.login_url))
            sys.__stdout__.flush()

    def _exit_unless_stopped(self, failure: Failure) -> None:
        # The failed part has logged the reason. A start that was stopped is not a failure.
        if self.state in {"failed", "running"}:
            self._exit_with_failure()

    def _restart_failed(self, failure: Failure) -> Failure:
        self._exit_unless_stopped(failure)
        return failure

    def _exit_with_failure(self) -> None:
        if not self._failed:
            self._failed = True
            end_process(self._reactor, 1)


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


def do_nothing() -> None:
    """Do nothing: no part is left to make."""


def tune_garbage_collector() -> None:
    """Exempt the objects of the start from garbage collection, and collect less often."""
    # Note [Garbage collection]
    #
    # Modules, classes and the tree live as long as the process. Traversing them in each full collection blocks the
    # reactor for tens of milliseconds, and a node makes few reference cycles. So gc.freeze() exempts them, and the
    # thresholds are raised: docs/decisions.md has the measurements.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
