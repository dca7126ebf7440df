"""A registry in memory, reached through a conductor and a broker in memory, on a Clock."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.manager import Manager
from novasvc.registry.conductor import Conductor
from novasvc.registry.remote import RemoteRegistry
from novasvc.service import Service
from novasvc.testing import memory_runtime


class ConductorCase(SynchronousTestCase):
    """A test with a registry in memory, reached through a conductor and a broker in memory."""

    def setUp(self) -> None:
        self.runtime = memory_runtime(periodic_enable=False)
        self.clock: Clock = self.runtime.reactor
        self.registry: Any = self.done(self.runtime.database.acquire())
        self.services: list[Service] = []
        self.addCleanup(self.stop_all)

    def stop_all(self) -> None:
        for service in reversed(self.services):
            service.stop()
            self.turn()

    def done(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def turn(self) -> None:
        """Deliver messages and replies."""
        self.clock.pump([0] * 12)

    def conductor(self, manager: type[Manager] = Conductor) -> Service:
        service = Service("c1", "novasvc-conductor", "conductor", manager, runtime=self.runtime)
        self.services.append(service)
        self.successResultOf(service.start())
        return service

    def remote(self) -> RemoteRegistry:
        registry: RemoteRegistry = self.done(self.runtime.conductor.acquire())
        return registry

    def ask(self, asked: Deferred[Any]) -> Deferred[Any]:
        self.turn()
        return asked

    def log(self) -> list[str]:
        """Collect log events of level warn and above."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event["log_level"] >= LogLevel.warn:
                lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines
