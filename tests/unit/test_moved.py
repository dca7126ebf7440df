"""Tests for the names that users import: those of today, and those that have moved."""

import importlib
import sys
import warnings
from inspect import ismodule

import pytest
from twisted.trial.unittest import SynchronousTestCase

from novasvc._moved import MOVED, MovedModules, install

PUBLIC = {
    "novasvc": ["Manager", "RequestContext", "__version__", "periodic_task", "rpc"],
    "novasvc.errors": [
        "AppError",
        "BrokerBlockedError",
        "BrokerError",
        "BrokerRefusedError",
        "BrokerUnavailableError",
        "DatabaseConflictError",
        "DatabaseCorruptError",
        "DatabaseError",
        "DatabaseFullError",
        "DatabaseLockedError",
        "DatabaseNewerError",
        "DatabaseReadOnlyError",
        "DatabaseRefusedError",
        "DatabaseUnavailableError",
        "DeclarationError",
        "DeclarationMismatchError",
        "DirectoryError",
        "InvalidArgumentsError",
        "InvalidTargetError",
        "ListenError",
        "ManagerError",
        "MessageFormatError",
        "MethodTimeoutError",
        "MigrationNeededError",
        "NoSuchMethodError",
        "NoThreadError",
        "NovasvcError",
        "QuarantinedError",
        "RPCError",
        "RPCTimeoutError",
        "RPCVersionCapError",
        "RedeliveredError",
        "RemoteError",
        "ResultNotSerializableError",
        "ServiceNotFoundError",
        "SettingError",
        "SettingsError",
        "StartError",
        "StateError",
        "TaskTimeoutError",
        "TooManyCallsError",
        "TransportClosedError",
        "TransportFullError",
        "UnconfirmedError",
        "UndeliverableError",
        "UnknownTaskError",
        "UnsupportedVersionError",
    ],
    "novasvc.http": ["AccessLog", "Limits", "Site", "make_site"],
    "novasvc.periodic": ["TaskFigures", "TaskRunner", "periodic_task"],
    "novasvc.rpc": [
        "BaseAPI",
        "Client",
        "Endpoints",
        "Notification",
        "NotificationListener",
        "Notifier",
        "Server",
        "expose",
    ],
    "novasvc.service": [
        "Launcher",
        "ProcessLauncher",
        "ServerWrapper",
        "Service",
        "ServiceLauncher",
        "ServiceTree",
        "SignalExit",
        "WSGIService",
        "serve",
        "wait",
    ],
    "novasvc.settings": [
        "Configuration",
        "Option",
        "ServiceSettings",
        "Settings",
        "load",
        "masked",
        "masked_url",
        "option_table",
    ],
    "novasvc.testing": ["MemoryRegistry", "memory_runtime"],
    "novasvc.transport.amqp": ["AMQPTransport", "BrokerAddress", "BrokerOptions"],
    "novasvc.transport.memory": ["QUEUE_BOUND", "MemoryBroker", "MemoryTransport"],
    # What documents and settings named before the packages had an __all__.
    "novasvc.agent": ["HostAgent"],
    "novasvc.conductor": ["Conductor"],
    "novasvc.figures": ["counter", "gauge", "histogram"],
    "novasvc.logs": ["make_observer"],
    "novasvc.service.listening": ["StreamServer"],
    "novasvc.tap": ["compose", "makeService"],
}
"""The public names at 570828e, by module."""


class PublicNamesTests(SynchronousTestCase):
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_none_lost(self) -> None:
        """Every name that was public before the modules moved can be imported as before."""
        lost = [
            f"{module}.{name}"
            for module, names in PUBLIC.items()
            for name in names
            if not hasattr(importlib.import_module(module), name)
        ]
        self.assertEqual(lost, [])

    def test_seed(self) -> None:
        """The seed's module has its nine names and nothing else."""
        seed = importlib.import_module("novasvc.service")
        self.assertEqual(len(seed.__all__), 9)
        public = {name for name, what in vars(seed).items() if not (name.startswith("_") or ismodule(what))} - {"Any"}
        self.assertEqual(public, set(seed.__all__))
        self.assertRaises(AttributeError, getattr, seed, "Tree")


class MovedModulesTests(SynchronousTestCase):
    def test_same_module(self) -> None:
        """An old name is the very module of the new one, and says once where that is."""
        for old, new in MOVED.items():
            sys.modules.pop(old, None)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                module = importlib.import_module(old)
            self.assertIs(module, importlib.import_module(new))
            self.assertEqual((module.__name__, module.__spec__.name), (new, new))  # type: ignore[union-attr]
            self.assertIn(f"{old} has moved to {new}", [str(warning.message) for warning in caught])

    def test_other_names(self) -> None:
        """Names that never were modules are not found."""
        self.assertRaises(ModuleNotFoundError, importlib.import_module, "novasvc.nothing")

    def test_installed_once(self) -> None:
        """Importing the package again adds no second finder."""
        install()
        self.assertEqual(len([one for one in sys.meta_path if isinstance(one, MovedModules)]), 1)
