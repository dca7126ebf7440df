"""The signatures and attributes of nova.service, as Nova's code reads them."""

import inspect
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, ServiceTree
from novasvc.node.runtime import process_runtime
from novasvc.service import (
    Launcher,
    ProcessLauncher,
    ServerWrapper,
    Service,
    ServiceLauncher,
    SignalExit,
    WSGIService,
    serve,
    wait,
)
from novasvc.testing import memory_runtime
from novasvc.workers.errors import NotPreforkableError
from novasvc.workers.specification import ServiceSpecification, pickle_server
from tests.support.pickling import carried
from tests.support.wsgi_rig import WSGICase

SEED = {
    Service: "(host, binary, topic, manager, report_interval=None, periodic_enable=None, periodic_fuzzy_delay=None, "
    "periodic_interval_max=None, db_allowed=True, *args, **kwargs)",
    Service.create: "(host=None, binary=None, topic=None, manager=None, report_interval=None, periodic_enable=None, "
    "periodic_fuzzy_delay=None, periodic_interval_max=None, db_allowed=True)",
    Service.basic_config_check: "(self)",
    Service.kill: "(self)",
    Service.periodic_tasks: "(self, raise_on_error=False)",
    Service.start: "(self)",
    Service.stop: "(self)",
    Service.wait: "(self)",
    WSGIService: "(name, loader=None, use_ssl=False, max_url_len=None)",
    WSGIService.start: "(self)",
    WSGIService.stop: "(self)",
    WSGIService.wait: "(self)",
    Launcher.launch_server: "(self, server)",
    Launcher.run_server: "(server)",
    Launcher.stop: "(self)",
    Launcher.wait: "(self)",
    ServiceLauncher.wait: "(self)",
    ProcessLauncher.launch_server: "(self, server, workers=1)",
    ProcessLauncher.wait: "(self)",
    ServerWrapper: "(server, workers)",
    SignalExit: "(signo, exccode=1)",
    serve: "(server, workers=None)",
    wait: "()",
}
"""As the pages of nova.service have them."""


def bare(function: Any) -> str:
    """Return a signature without annotations."""
    signature = inspect.signature(function)
    parameters = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


class Optional(Manager):
    """Takes an option that has the name of something of the framework's."""

    def __init__(self, host: str, runtime: str = "", **options: Any) -> None:
        super().__init__(host)
        self.given, self.options = runtime, options


class Sub(Service):
    """A service with a constructor of its own."""

    def __init__(self, host: str, *, colour: str = "red", **kwargs: Any) -> None:
        super().__init__(host, "nova-sub", "sub", Manager, **kwargs)
        self.colour = colour


def make_manager(host: str) -> Manager:
    return Manager(host)


class SignatureTests(SynchronousTestCase):
    """What inspect.signature shows."""

    def test_seed(self) -> None:
        """Every signature of nova.service is Nova's."""
        self.assertEqual({function: bare(function) for function in SEED}, SEED)

    def test_subclass(self) -> None:
        """A subclass shows its own constructor's."""
        self.assertEqual(bare(Sub), "(host, *, colour='red', **kwargs)")

    def test_runtime(self) -> None:
        """A runtime is taken by the constructor and by create; what else has this name is the manager's."""
        mine = memory_runtime()
        self.assertIs(Service("h", "b", "t", Manager, runtime=mine).runtime, mine)
        self.assertIs(Service.create(binary="b", manager=Manager, runtime=mine).runtime, mine)
        self.assertIs(Sub("h", runtime=mine).runtime, mine)
        service = Service("h", "b", "t", Optional, runtime="libvirt", colour="red")
        self.assertIs(service.runtime, process_runtime())
        self.assertEqual((service.manager.given, service.manager.options), ("libvirt", {"colour": "red"}))
        self.assertIs(Service("h", "b", "t", Optional, runtime=None).runtime, process_runtime())


class Painted(Sub):
    """Says how it is made."""

    def specification(self) -> ServiceSpecification:
        return ServiceSpecification(type(self), (self.host,), {"colour": self.colour, "runtime": self.runtime})


class ServiceTests(SynchronousTestCase):
    """Attributes of a Service."""

    def test_carried(self) -> None:
        """A worker makes a service of what its constructor was given, and services share their runtime there, too."""
        mine = memory_runtime(host="h7")
        tree = ServiceTree()
        for topic in ("one", "two"):
            node = Service("h1", "b", topic, Optional, 3.5, runtime=mine, colour="red")
            node.setName(topic)
            node.setServiceParent(tree)
        one, two = carried(tree, Clock())
        self.assertEqual((one.name, one.topic, one.host, one.report_interval), ("one", "one", "h1", 3.5))
        self.assertEqual((one.manager.options, one.runtime.settings), ({"colour": "red"}, mine.settings))
        self.assertIsNot(one.runtime, mine)
        self.assertIs(one.runtime, two.runtime)

    def test_subclass_carried(self) -> None:
        """A subclass with a constructor of its own says how it is made."""
        again = carried(Painted("h3", colour="blue", runtime=memory_runtime()), Clock())
        self.assertEqual((type(again), again.host, again.colour), (Painted, "h3", "blue"))

    def test_subclass_not_carried(self) -> None:
        """A subclass that does not say how it is made is refused when it is launched, with what to do."""
        error = self.assertRaises(NotPreforkableError, pickle_server, Sub("h3", runtime=memory_runtime()))
        self.assertEqual(
            str(error),
            "sub cannot run in a worker: Sub has a constructor of its own; "
            "override specification() there to return what the constructor was given",
        )

    def test_repr(self) -> None:
        """A service names host, binary and topic, one of a subclass too, and one whose constructor has failed."""
        mine = memory_runtime()
        service = Service("h1", "nova-x", "x", Manager, runtime=mine)
        self.assertEqual(repr(service), "<Service host='h1' binary='nova-x' topic='x'>")
        self.assertEqual(repr(Sub("h2", runtime=mine)), "<Sub host='h2' binary='nova-sub' topic='sub'>")
        self.assertEqual(repr(Service.__new__(Service)), "<Service host=None binary=None topic=None>")

    def test_manager_class_name(self) -> None:
        """The manager's class, or its factory, is there by its dotted name."""
        mine = memory_runtime()
        for manager, name in (
            ("novasvc.host_agent.HostAgent", "novasvc.host_agent.HostAgent"),
            (Optional, f"{__name__}.Optional"),
            (make_manager, f"{__name__}.make_manager"),
        ):
            service = Service("h", "b", "t", manager, runtime=mine)
            self.assertEqual(service.manager_class_name, name)


class WSGIServiceTests(WSGICase):
    """Attributes of a WSGIService."""

    async def test_attributes(self) -> None:
        """It has its longest URL, and a server that knows its host and port as soon as they are bound."""
        service = self.make(max_url_len=300)
        self.assertEqual((service.max_url_len, service.server.host, service.server.port), (300, None, None))
        service.privilegedStartService()
        self.assertEqual(service.server.host, "127.0.0.1")
        self.assertEqual(service.server.port, service.port)
        self.assertGreater(service.port or 0, 0)
        await service.stop()
