"""The services that the settings describe, to run in this process or in workers."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from twisted.application.service import IService
from zope.interface import implementer

from novasvc.config import ServiceSettings, Settings
from novasvc.interfaces import IPreloading, ISpecification
from novasvc.node.runtime import Runtime
from novasvc.node.service import Service
from novasvc.node.tree import ServiceTree
from novasvc.node.wsgi import WSGIService
from novasvc.workers.servers import ServerWrapper

if TYPE_CHECKING:
    from novasvc.api.service import APIService


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
        return [part.manager.replace(":", ".").rpartition(".")[0] for part in self.services]

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
