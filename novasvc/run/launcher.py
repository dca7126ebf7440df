"""Launchers for one process: run services, wait for them, exit with a meaningful status."""

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.config import Configuration, Settings
from novasvc.config.errors import ConfigurationError
from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IRebuildable, IStartable, IWaitable
from novasvc.node.tree import ServiceTree
from novasvc.run.environment import default_settings, load_from_environment
from novasvc.run.forced_exit import cancel_forced_exit, schedule_forced_exit
from novasvc.run.process import Process
from novasvc.run.process_end import end_process, is_only_service
from novasvc.run.waiting import SIGNALLED, SignalExit, exit_status, ignore_signals_at_exit, run_until_ended
from novasvc.telemetry.configuration import log_changes, log_settings
from novasvc.workers.errors import ReloadError
from novasvc.workers.exit_status import end_of, problem_of

_log = Logger()


@implementer(IWaitable)
class Launcher(ServiceTree):
    """Run services in this process, and wait until they end.

    A launcher is itself a service: stop it as part of an application, or by :meth:`stop`. If one server
    fails to start, all are stopped.

    :param reactor: None is the global reactor.
    Source: nova.service.Launcher.
    """

    def __init__(self, reactor: Any = None) -> None:
        super().__init__("launcher")
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor
        self._reactor = reactor
        self._problem: BaseException | None = None

    def launch_server(self, server: Any) -> None:
        """Start a server in the background; the log and :meth:`wait` report a failure.

        :param server: provides IService. If it also has a method ``wait``, as Nova's servers do, it counts as
            ended when the Deferred of ``wait()`` fires.
        :raises TypeError: it does not provide IService.
        """
        if not IService.providedBy(server):
            raise TypeError(
                f"{server!r} does not provide IService: give a twisted.application.service.Service or a novasvc Service"
            )
        try:
            server.setServiceParent(self)
        except Exception as error:  # noqa: BLE001 - the running launcher has called the server's startService
            _log.critical("{server} did not start: {why}", server=server, why=describe(error))
            _log.failure("traceback of the failed start", level=LogLevel.debug)
            self._start_failed(server, Failure(error))
            return
        if self.state == "running":
            self._watch(server)
        self.startService()

    def stop(self) -> Deferred[None]:
        """Stop all servers.

        :return: Deferred[None], fired when all have stopped.
        """
        return self.stopService()

    def wait(self) -> Deferred[None] | None:
        """Wait until all servers have stopped.

        :return: if the reactor is not running, this runs it and returns None at the end. Otherwise a Deferred that
            fires at the end. It fails with the error of a server that did not start or that failed while running.
        :raises SystemExit: a server did not start, or failed while running: with status 1, or with the status of its
            own SystemExit.
        :raises RuntimeError: the reactor has run before, and cannot be restarted.
        """
        if self.state == "initial" and not list(self):
            return succeed(None) if self._reactor.running else None
        return run_until_ended(self, self._reactor, self._settings)

    def _settings(self) -> Settings:
        """Read the log settings. An error is only logged: the servers run by now, and may need no settings."""
        try:
            return load_from_environment().settings
        except ConfigurationError as error:
            _log.error("invalid configuration; using default log settings: {error}", error=error)
            return Settings()

    @staticmethod
    def run_server(server: Any) -> Deferred[None] | None:
        """Start a server, and wait until it has stopped; see :meth:`wait`.

        :param server: provides IService.
        """
        launcher = Launcher()
        launcher.launch_server(server)
        return launcher.wait()

    def when_ended(self) -> Deferred[None]:
        """Wait until all servers have stopped.

        :return: Deferred[None]; fails with the error of a server that did not start or that failed while running.
        """
        return self._lifecycle.when_ended().addCallback(self._raise_failure)

    def _raise_failure(self, _: None) -> None:
        problem = self._problem or (self._lifecycle.reason if self.state == "failed" else None)
        if problem is not None:
            raise problem

    def _entered(self, state: str) -> None:
        super()._entered(state)
        if state == "running":
            for server in list(self):
                self._watch(server)

    def _watch(self, server: Any) -> None:
        """Watch for a server that ends by itself, or fails to start after the launcher has started."""
        if IStartable.providedBy(server):
            started: Deferred[None] = server.when_started()
            started.addErrback(partial(self._start_failed, server))
        ended = end_of(server)
        if ended is not None:
            ended.addErrback(self._server_failed, server).addCallback(lambda _: self._ended(server))

    def _server_failed(self, failure: Failure, server: Any) -> None:
        """Handle a server that failed while running: stop all, and fail the waiters."""
        if self.state == "running":
            self._problem = failure.value
            if not isinstance(failure.value, SystemExit):
                _log.failure("{server} failed; stopping all servers", failure, level=LogLevel.critical, server=server)
            self.stopService()

    def _start_failed(self, server: Any, failure: Failure) -> None:
        if self.state == "running" and server in list(self):
            self._problem = failure.value
            self.stopService()

    def _ended(self, server: IService) -> None:
        if self.state == "running" and server in list(self):
            self.removeService(server).addErrback(
                lambda failure: _log.failure("{server} did not stop", failure, server=server)
            )
            if not list(self):
                self.stopService()


class ServiceLauncher(Launcher):
    """A launcher that owns its process: it handles signals, and sets the exit status.

    For scripts; under twistd see :class:`~novasvc.run.process_tree.ProcessTree`.

    SIGTERM drains the servers for at most graceful_shutdown_timeout. A second SIGTERM, or SIGINT, stops immediately.
    SIGHUP reads the configuration again, and restarts the servers if it is valid: servers that took their settings
    from the environment (see :class:`~novasvc.interfaces.IRebuildable`) are rebuilt, others keep their settings.
    SIGUSR2 logs the stacks of all threads and the last events.

    :param configuration: the settings; None reads the environment.
    :param reread: reads the settings on SIGHUP; None reads the environment.
    Source: nova.service.ServiceLauncher.
    """

    def __init__(
        self,
        reactor: Any = None,
        configuration: Configuration | None = None,
        reread: Callable[[], Configuration] | None = None,
    ) -> None:
        super().__init__(reactor)
        self.configuration = configuration or load_from_environment()
        self._reread = reread or load_from_environment
        self._process = Process(
            self._reactor,
            self,
            self._reload,
            lambda: self.configuration.settings.graceful_shutdown_timeout,
            schedule_exit=self._schedule_exit,
        )
        self._ran_reactor = False

    def _settings(self) -> Settings:
        return self.configuration.settings

    def startService(self) -> None:
        """Start the servers, and log the settings at debug level."""
        if not self._process.running:
            log_settings(self.configuration)
            self._process.startService()
        super().startService()

    def wait(self) -> Deferred[None] | None:
        """Wait until all servers have stopped; see :meth:`Launcher.wait`.

        :raises SignalExit: a signal ended them.
        """
        self._ran_reactor = not self._reactor.running
        try:
            return super().wait()
        finally:
            if self._ran_reactor:
                cancel_forced_exit()
                if self._process.signo is not None:
                    ignore_signals_at_exit()
                    raise SignalExit(self._process.signo)

    def _schedule_exit(self, number: int, seconds: float) -> None:
        schedule_forced_exit(number, seconds, SIGNALLED if self._ran_reactor else None)

    def _entered(self, state: str) -> None:
        super()._entered(state)
        if state in {"stopped", "failed"} and self._process.running:
            self._process.stopService()
            if not (self._ran_reactor or self._process.stopping_now or is_only_service(self)):
                cancel_forced_exit()  # other services of this process may take longer
            if (state == "failed" or self._problem is not None) and is_only_service(self):
                end_process(self._reactor, exit_status(self._problem))

    async def _reload(self) -> None:
        try:
            after = self._reread()
            servers = self._rebuild(after)
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(problem_of(error)) from error
        log_changes(self.configuration, after)
        self.configuration = after
        await self.restart(servers)

    def _rebuild(self, configuration: Configuration) -> list[IService]:
        """Rebuild the servers that follow the environment; keep the others."""
        servers = list(self)
        if not any(_follows_environment(server) for server in servers):
            return servers
        with default_settings(configuration, self._reactor):
            rebuilt = [IRebuildable(server).rebuild() if _follows_environment(server) else server for server in servers]
            self.hand_over_sockets(rebuilt)
        return rebuilt


def _follows_environment(server: Any) -> bool:
    return IRebuildable.providedBy(server) and IRebuildable(server).by_environment
