"""Every provider of the interfaces that workers and launchers look for is verified."""

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from novasvc.api.service import APIService
from novasvc.config import Settings
from novasvc.http.channel import LimitedChannel
from novasvc.interfaces import (
    IDrainable,
    IExitRequester,
    IInspectable,
    IInterruptible,
    IPreloading,
    IRebuildable,
    ISpecification,
    ISpecified,
    IWaitable,
    IWebPage,
)
from novasvc.manager import Manager
from novasvc.node.service import Service
from novasvc.node.stream_server import StreamServer
from novasvc.node.tree import ServiceTree
from novasvc.node.wsgi import WSGIService
from novasvc.run.launcher import Launcher
from novasvc.run.process_launcher import ProcessLauncher
from novasvc.run.services import Deployment
from novasvc.testing import memory_runtime


class ProvidersTests(SynchronousTestCase):
    def test_node(self) -> None:
        """A node reports its work, can be interrupted and rebuilt, and may ask for an exit status."""
        node = Service("h1", "nova-agent", "agent", Manager, runtime=memory_runtime())
        for interface in (IInspectable, IExitRequester, IInterruptible, IPreloading, IRebuildable, ISpecified):
            verifyObject(interface, node)
        verifyObject(ISpecified, node.runtime)
        for specified in (node, node.runtime):
            verifyObject(ISpecification, specified.specification())

    def test_tree(self) -> None:
        """A tree passes interruptions on, and keeps the exit status that a part asked for."""
        for interface in (IExitRequester, IInterruptible, ISpecified):
            verifyObject(interface, ServiceTree())
        verifyObject(ISpecification, ServiceTree().specification())

    def test_launcher(self) -> None:
        """A launcher tells when it has ended."""
        verifyObject(IWaitable, Launcher(Clock()))

    def test_deployment(self) -> None:
        """What a worker runs names the modules to import before the fork."""
        for interface in (IPreloading, ISpecification):
            verifyObject(interface, Deployment(Settings(), ()))

    def test_classes(self) -> None:
        """Servers that need files, ports or signals to be made declare what their classes have."""
        declared: list[tuple[type[Any], tuple[Any, ...]]] = [
            (APIService, (IInterruptible, IWebPage, IPreloading, ISpecified)),
            (LimitedChannel, (IDrainable,)),
            (ProcessLauncher, (IInterruptible, IWaitable)),
            (StreamServer, (IInterruptible, ISpecified)),
            (WSGIService, (IInterruptible, IPreloading, IRebuildable, ISpecified)),
        ]
        for kind, interfaces in declared:
            for interface in interfaces:
                verifyClass(interface, kind)
