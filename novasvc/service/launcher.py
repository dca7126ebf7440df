"""One process: launchers that run services, wait for them, and end with a status that says why."""

import faulthandler
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, IServiceCollection
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc import flight
from novasvc.errors import NovasvcError
from novasvc.service.tree import ServiceTree
from novasvc.settings import Configuration, load
from novasvc.settings.listing import changes, rows
from novasvc.supervision.errors import ReloadError
from novasvc.supervision.signals import Signals

_log = Logger()

AT_ONCE = 2.0
"""Seconds that a process has to end when it is to end at once."""


class SignalExit(SystemExit):
    """The end of a process by a signal.

    :param signo: the signal's number.
    :param exccode: the exit status.
    Source: nova.service.SignalExit.
    """

    def __init__(self, signo: int, exccode: int = 1) -> None:
        super().__init__(exccode)
        self.signo = signo


class Launcher(ServiceTree):
    """Run services in this process, and wait for their end.

    A service like others, too: stop it as a part of an application, or by :meth:`stop`.

    :param reactor: None is the global one.
    Source: nova.service.Launcher.
    """

    def __init__(self, reactor: Any = None) -> None:
        super().__init__("launcher")
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor
        self._reactor = reactor

    def launch_server(self, server: Any) -> None:
        """Begin to start a server; the log tells if that fails, and so does :meth:`wait`.

        :param server: provides IService.
        :raises TypeError: it does not.
        """
        if not IService.providedBy(server):
            raise TypeError(
                f"{server!r} provides no IService: give a twisted.application.service.Service, or a Service"
            )
        server.setServiceParent(self)
        self.startService()
        if callable(wait := getattr(server, "wait", None)):
            # A server that says when it has ended, is not waited for any more.
            maybeDeferred(wait).addBoth(lambda _: self._see_ended(server))

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
        """
        return run_until_ended(self, self._reactor)

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
        return self._course.when_ended().addCallback(self._see_failed)

    def _see_failed(self, _: None) -> None:
        if self.state == "failed" and self._course.reason is not None:
            raise self._course.reason

    def _see_ended(self, server: IService) -> None:
        if self.state == "running" and server in list(self):
            self.removeService(server).addErrback(lambda failure: _log.failure("a server did not stop", failure))
            if not list(self):
                self.stopService()


class ServiceLauncher(Launcher):
    """A launcher that is all there is in its process: it answers to signals, and ends with a status.

    SIGTERM drains, up to graceful_shutdown_timeout. A second one, or SIGINT, ends at once. SIGHUP
    reads the configuration again, and starts the servers anew if it is good. SIGUSR2 logs the
    stacks of all threads and what happened last.

    :param configuration: the settings; None is what the environment says.
    Source: nova.service.ServiceLauncher.
    """

    def __init__(self, reactor: Any = None, configuration: Configuration | None = None) -> None:
        super().__init__(reactor)
        self.configuration = configuration or _from_environment()
        self.signals = ProcessSignals(self._reactor, self, self._restart)

    def startService(self) -> None:
        """Begin to start the servers; the settings are in the log then, at its debug level."""
        if self.state == "initial":
            log_settings(self.configuration)
            self.signals.startService()
        super().startService()

    def wait(self) -> Deferred[None] | None:
        """Wait until all servers have stopped; see :meth:`Launcher.wait`.

        :raises SignalExit: a signal was what ended them.
        """
        waiting = super().wait()
        if waiting is None and self.signals.signo is not None:
            raise SignalExit(self.signals.signo)
        return waiting

    async def _restart(self) -> None:
        self.configuration = reread(self.configuration, _from_environment)
        servers = list(self)
        for server in reversed(servers):
            await self.removeService(server)
        for server in servers:
            server.setServiceParent(self)


class ProcessSignals(Signals):
    """What a process of one launcher does at signals; see :class:`ServiceLauncher`.

    :param launcher: has stopService; its parts may have hurry.
    :param restart: coroutine function: reads the configuration again and starts anew.
    :ivar signo: the signal that ends it; None if none does.
    """

    def __init__(self, reactor: Any, launcher: ServiceTree, restart: Callable[[], Any]) -> None:
        super().__init__(
            reactor,
            {
                signal.SIGTERM: self._terminated,
                signal.SIGINT: self._interrupted,
                signal.SIGHUP: self._hung_up,
                signal.SIGUSR2: log_dump,
            },
        )
        self.signo: int | None = None
        self._launcher = launcher
        self._restart = restart
        self._restarting: Deferred[None] | None = None

    def _terminated(self) -> None:
        if self.signo is None:
            self._end(signal.SIGTERM)
        else:
            self._end_at_once(signal.SIGTERM)

    def _interrupted(self) -> None:
        if self.signo is None:
            self._end(signal.SIGINT)
        self._end_at_once(signal.SIGINT)

    def _end(self, number: int) -> None:
        self.signo = number
        if self._restarting is not None:
            self._restarting.cancel()
        self.resume(number)

    def _end_at_once(self, number: signal.Signals) -> None:
        _log.warn("{signal}: this process ends at once", signal=number.name)
        # Note [The third signal]
        #
        # From now on the signals do what they do to any process: whatever keeps us from ending, a
        # third one does not. And if nothing comes, we end by the signal ourselves, so that who
        # started us sees why.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        self._former.clear()
        self._reactor.callLater(0, hurry, self._launcher)
        self._reactor.callLater(AT_ONCE, _end_by, number)

    def _hung_up(self) -> None:
        if self._restarting is not None or self.signo is not None:
            _log.warn("SIGHUP: another restart, or the end, is under way")
            return

        def done(result: object) -> None:
            self._restarting = None
            if isinstance(result, Failure):
                _log.error("{error}", error=result.value)
            else:
                _log.info("the services were started anew")

        self._restarting = Deferred.fromCoroutine(self._restart())
        self._restarting.addBoth(done)


def _end_by(number: int) -> None:
    _log.error("this process has not ended in time; it ends by force")
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os.kill(os.getpid(), number)


def hurry(server: Any) -> None:
    """Have a server, and all that is in it, cut short what it does; it was told to stop before."""
    if callable(cut_short := getattr(server, "hurry", None)):
        cut_short()
    elif IServiceCollection.providedBy(server):
        for part in list(server):
            hurry(part)


def reread(before: Configuration, read: Callable[[], Configuration]) -> Configuration:
    """Read the configuration again, and log what has changed.

    :raises ReloadError: it cannot be used.
    """
    try:
        after = read()
    except (NovasvcError, SystemExit) as error:
        raise ReloadError(str(error)) from error
    for row in changes(before, after):
        _log.info("reload: {setting} changes from {before} to {after}", **row)
    return after


def log_settings(configuration: Configuration) -> None:
    """Log all settings, at the debug level, secrets masked."""
    _log.debug("the settings:")
    for row in rows(configuration):
        _log.debug("{Setting} = {Value} ({Origin})", **row)


def log_dump() -> None:
    """Log the stacks of all threads, and what happened last."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        stacks = file.read()
    events = flight.dump_text(flight.installed())
    _log.info("stacks:\n{stacks}\nlast events:\n{events}", stacks=stacks, events=events)


def run_until_ended(launcher: Any, reactor: Any) -> Deferred[None] | None:
    """Wait for the end of a launcher; run the reactor for that, unless it runs.

    :param launcher: has startService, stopService and when_ended.
    :return: None if this ran the reactor, else a Deferred of the end.
    :raises SystemExit: with status 1, if the launcher failed.
    """
    if reactor.running:
        ended: Deferred[None] = launcher.when_ended()
        return ended
    outcome: list[Failure | None] = []
    stopping: list[bool] = []

    def end(result: Failure | None) -> None:
        outcome.append(result)
        if not stopping:
            reactor.stop()

    def stop() -> Deferred[None]:
        stopping.append(True)
        stopped: Deferred[None] = launcher.stopService()
        return stopped

    def begin() -> None:
        reactor.addSystemEventTrigger("before", "shutdown", stop)
        launcher.startService()
        launcher.when_ended().addBoth(end)

    reactor.callWhenRunning(begin)
    reactor.run()
    if outcome and outcome[0] is not None:
        raise SystemExit(1)
    return None


def _from_environment() -> Configuration:
    return load((), os.environ, {})
