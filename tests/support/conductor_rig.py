"""A registry in memory, reached through a conductor, in a fleet."""

from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.interfaces import ITransport
from novasvc.manager import Manager
from novasvc.registry.conductor import Conductor
from novasvc.registry.remote import RemoteRegistry
from novasvc.service import Service
from novasvc.testing import FleetMixin


class ConductorCase(FleetMixin, SynchronousTestCase):
    """A test with a registry in memory, reached through a conductor and a broker in memory."""

    fleet_settings: ClassVar[dict[str, Any]] = {"periodic_enable": False}

    def setUp(self) -> None:
        self.clock = self.fleet.clock
        self.registry: Any = self.fleet.registry

    def conductor(self, manager: type[Manager] = Conductor) -> Service:
        return self.fleet.start(manager, host="c1", topic="conductor").service

    def remote(self) -> RemoteRegistry:
        registry: RemoteRegistry = self.fleet.run(Deferred.fromCoroutine(self.fleet.runtime("h1").conductor.acquire()))
        return registry

    def transport(self) -> ITransport:
        transport: ITransport = self.fleet.run(Deferred.fromCoroutine(self.fleet.runtime("h1").broker.acquire()))
        return transport

    def ask(self, asked: Deferred[Any]) -> Deferred[Any]:
        """Do what is due now."""
        self.fleet.advance(0)
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
