"""One process: launchers that run services, wait for them, and end with a status that says why."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRestartable
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from novasvc.config import Configuration, Settings, load
from novasvc.config.show import changes, rows
from novasvc.config.spec import text_of
from novasvc.errors import NovasvcError, SettingsError, describe
from novasvc.interfaces import IStartable
from novasvc.node.runtime import Runtime, process_runtime, set_process_runtime
from novasvc.node.tree import ServiceTree
from novasvc.run.process import Process, end_process, is_alone, lift_limit, limit_end, stop_reactor
from novasvc.run.script_log import begin_log, is_log_begun
from novasvc.workers.errors import ReloadError
from novasvc.workers.exit_status import end_of, status_of

_log = Logger()


_SIGNALLED = 1
"""The exit status of a process that a signal has ended, as in Nova."""


class SignalExit(SystemExit):
    """The end of a process by a signal.

    :param signo: the signal's number.
    :param exccode: the exit status.
    Source: nova.service.SignalExit.
    """

    def __init__(self, signo: int, exccode: int = _SIGNALLED) -> None:
        super().__init__(exccode)
        self.signo = signo


class Launcher(ServiceTree):
    """Run services in this process, and wait for their end.

    A service like others, too: stop it as a part of an application, or by :meth:`stop`. If one of
    its servers does not start, all are stopped.

    :param reactor: None is the global one.
    Source: nova.service.Launcher.
    """

    def __init__(self, reactor: Any = None) -> None:
        super().__init__("launcher")
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor
        self._reactor = reactor
        self._problem: BaseException | None = None

    def launch_server(self, server: Any) -> None:
        """Begin to start a server; the log tells if that fails, and so does :meth:`wait`.

        :param server: provides IService. It is waited for as long as it runs: if it has a method
            ``wait``, as Nova's servers do, until the Deferred is fired that this returns.
        :raises TypeError: it does not.
        """
        if not IService.providedBy(server):
            raise TypeError(
                f"{server!r} provides no IService: give a twisted.application.service.Service, or a Service"
            )
        try:
            server.setServiceParent(self)
        except Exception as error:  # noqa: BLE001 - the launcher runs, and so did the server's startService
            _log.critical("{server} did not start: {why}", server=server, why=describe(error))
            _log.failure("where it was raised", level=LogLevel.debug)
            self._not_started(server, Failure(error))
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

        :return: None, if nobody runs the reactor: then this does, and returns at the end. Else a
            Deferred that fires at the end, and fails if a server did not start.
        :raises SystemExit: with status 1, if a server did not start.
        :raises RuntimeError: the reactor was run before, and stopped.
        """
        if self.state == "initial" and not list(self):
            return succeed(None) if self._reactor.running else None
        return run_until_ended(self, self._reactor, self._settings)

    def _settings(self) -> Settings:
        """Read how to log; an error is logged, but ends nothing: the servers may need no settings, and run by now."""
        try:
            return _from_environment().settings
        except SettingsError as error:
            _log.error("the log has its defaults: {error}", error=error)
            return Settings()

    @staticmethod
    def run_server(server: Any) -> Deferred[None] | None:
        """Start a server, and wait until it has stopped, as :meth:`wait` does.

        :param server: provides IService.
        """
        launcher = Launcher()
        launcher.launch_server(server)
        return launcher.wait()

    def when_ended(self) -> Deferred[None]:
        """Wait until all servers have stopped.

        :return: Deferred[None]; fails if a server did not start.
        """
        return self._lifecycle.when_ended().addCallback(self._see_failed)

    def _see_failed(self, _: None) -> None:
        problem = self._problem or (self._lifecycle.reason if self.state == "failed" else None)
        if problem is not None:
            raise problem

    def _entered(self, state: str) -> None:
        super()._entered(state)
        if state == "running":
            for server in list(self):
                self._watch(server)

    def _watch(self, server: Any) -> None:
        """See a server end by itself, or not start, which those do late that were launched late."""
        if IStartable.providedBy(server):
            started: Deferred[None] = server.when_started()
            started.addErrback(partial(self._not_started, server))
        ended = end_of(server)
        if ended is not None:
            ended.addErrback(self._ended_badly).addCallback(lambda _: self._ended(server))

    def _ended_badly(self, failure: Failure) -> None:
        """See a server end by itself, and not well: all are stopped, and whoever waits is told."""
        if self.state == "running":
            self._problem = failure.value
            if not isinstance(failure.value, SystemExit):
                _log.failure("a server has ended by an error; all are stopped", failure, level=LogLevel.critical)
            self.stopService()

    def _not_started(self, server: Any, failure: Failure) -> None:
        if self.state == "running" and server in list(self):
            self._problem = failure.value
            self.stopService()

    def _ended(self, server: IService) -> None:
        if self.state == "running" and server in list(self):
            self.removeService(server).addErrback(lambda failure: _log.failure("a server did not stop", failure))
            if not list(self):
                self.stopService()


def _status_of(problem: BaseException | None) -> int:
    return status_of(problem) if isinstance(problem, SystemExit) else 1


class ServiceLauncher(Launcher):
    """A launcher that is all there is in its process: it answers to signals, and ends with a status.

    SIGTERM drains, up to graceful_shutdown_timeout. A second one, or SIGINT, ends at once. SIGHUP
    reads the configuration again, and restarts the servers if it is good: a Service, or a WSGIService, that took its
    settings from the environment is made again, others go on with what they were given. SIGUSR2
    logs the stacks of all threads and what happened last.

    :param configuration: the settings; None is what the environment says.
    :param reread: reads them again at SIGHUP; None reads the environment.
    Source: nova.service.ServiceLauncher.
    """

    def __init__(
        self,
        reactor: Any = None,
        configuration: Configuration | None = None,
        reread: Callable[[], Configuration] | None = None,
    ) -> None:
        super().__init__(reactor)
        self.configuration = configuration or _from_environment()
        self._reread = reread or _from_environment
        self._process = Process(
            self._reactor,
            self,
            self._reload,
            lambda: self.configuration.settings.graceful_shutdown_timeout,
            limit=self._limit,
        )
        self._ran = False

    def _settings(self) -> Settings:
        return self.configuration.settings

    def startService(self) -> None:
        """Begin to start the servers; the settings are in the log then, at its debug level."""
        if not self._process.running:
            log_settings(self.configuration)
            self._process.startService()
        super().startService()

    def wait(self) -> Deferred[None] | None:
        """Wait until all servers have stopped; see :meth:`Launcher.wait`.

        :raises SignalExit: a signal was what ended them.
        """
        self._ran = not self._reactor.running
        try:
            return super().wait()
        finally:
            if self._ran:
                lift_limit()
                if self._process.signo is not None:
                    keep_status()
                    raise SignalExit(self._process.signo)

    def _limit(self, number: int, seconds: float) -> None:
        limit_end(number, seconds, _SIGNALLED if self._ran else None)

    def _entered(self, state: str) -> None:
        super()._entered(state)
        if state in {"stopped", "failed"} and self._process.running:
            self._process.stopService()
            if not (self._ran or self._process.hurried or is_alone(self)):
                lift_limit()  # what else there is in this process may take longer
            if (state == "failed" or self._problem is not None) and is_alone(self):
                end_process(self._reactor, _status_of(self._problem))

    async def _reload(self) -> None:
        try:
            after = self._reread()
            servers = self._made_again(after)
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(str(error)) from error
        log_changes(self.configuration, after)
        self.configuration = after
        await self.restart(servers)

    def _made_again(self, configuration: Configuration) -> list[IService]:
        """Make those that go by the environment again; without any, what is there stays."""
        servers = list(self)
        if not any(getattr(server, "by_environment", False) for server in servers):
            return servers
        before = process_runtime()
        set_process_runtime(Runtime.from_settings(configuration.settings, self._reactor))
        try:
            again = [server.made_again() if getattr(server, "by_environment", False) else server for server in servers]
            self.hand_over(again)
        except BaseException:
            set_process_runtime(before)
            raise
        return again


def log_changes(before: Configuration, after: Configuration) -> None:
    """Log the settings that differ, secrets masked, and warnings that are new."""
    for row in changes(before, after):
        _log.info("reload: {setting} changes from {before} to {after}", **row)
    _log_warnings(warning for warning in after.warnings if warning not in before.warnings)


def log_settings(configuration: Configuration) -> None:
    """Log all settings, at the debug level, secrets masked; and what was passed over in their files, as a warning."""
    _log_warnings(configuration.warnings)
    _log.debug("the settings:")
    for row in rows(configuration):
        _log.debug(
            "{name} = {value} ({origin})", name=row["Setting"], value=text_of(row["Value"]), origin=row["Origin"]
        )


def _log_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _log.warn("{warning}", warning=warning)


def run_until_ended(launcher: Any, reactor: Any, settings: Callable[[], Settings]) -> Deferred[None] | None:
    """Wait for the end of a launcher; run the reactor for that, unless it runs.

    The log goes to standard output, if nobody has begun to log: see :func:`novasvc.run.script_log.begin_log`.

    :param launcher: has startService, stopService, when_ended and state.
    :param settings: returns those that say how to log; called only for that.
    :return: None if this ran the reactor, else a Deferred of the end.
    :raises SystemExit: with status 1, if the launcher failed; a server's own, if it ended with one.
    :raises RuntimeError: the reactor was run before, and stopped.
    """

    def begin() -> Deferred[None]:
        reactor.addSystemEventTrigger("before", "shutdown", launcher.stopService)
        if launcher.state == "initial":
            launcher.startService()
        ended: Deferred[None] = launcher.when_ended()
        return ended

    # A reactor that is not the process's is one of a test, and so is the log.
    if reactor is sys.modules.get("twisted.internet.reactor") and not is_log_begun():
        begin_log(settings())
    if reactor.running:
        return begin()
    outcome: list[Failure | None] = []

    def end(result: Failure | None) -> None:
        outcome.append(result)
        stop_reactor(reactor)

    reactor.callWhenRunning(lambda: begin().addBoth(end))
    with _handlers_given_back():
        try:
            reactor.run()
        except ReactorNotRestartable:
            raise RuntimeError(
                "the reactor of this process was run before, and cannot be run again: wait once, for all servers"
            ) from None
    if outcome and outcome[0] is not None:
        raise SystemExit(_status_of(outcome[0].value))
    return None


@contextmanager
def _handlers_given_back() -> Iterator[None]:
    """Have the signals be what they were: Twisted's handlers stay behind, and would swallow them from then on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


# Note [Signals after the end]
#
# When wait() is over, the signals are the script's again, and SIGTERM ends it as it ends any program. But a script that
# a signal has ended, and that has nothing more to do, is about to tell its status. Whoever sends SIGTERM twice (a
# process group and its leader, an impatient script of an operator) would see "killed by SIGTERM" in place of a drain
# that went well, if the second one came while the interpreter tidies up. So that ignores both.


def keep_status() -> None:
    """Have the end of the interpreter ignore SIGTERM and SIGINT, unless the script has handlers of its own.

    Called when a signal has ended what a script waited for. See Note [Signals after the end].
    """

    @atexit.register
    def ignore() -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
                    signal.signal(number, signal.SIG_IGN)


def _from_environment() -> Configuration:
    return load((), os.environ, {})
