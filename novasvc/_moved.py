"""Modules that have moved: their old names still import, with a DeprecationWarning, until 1.0."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType

MOVED = MappingProxyType(
    {
        "novasvc.agent": "novasvc.host_agent",
        "novasvc.conductor": "novasvc.registry.conductor",
        "novasvc.figures": "novasvc.telemetry.instruments",
        "novasvc.flight": "novasvc.telemetry.flight",
        "novasvc.logfiles": "novasvc.telemetry.logfiles",
        "novasvc.logs": "novasvc.telemetry.logs",
        "novasvc.metrics": "novasvc.telemetry.metrics",
        "novasvc.query": "novasvc.registry.query",
        "novasvc.record": "novasvc.registry.record",
        "novasvc.rpc.contract": "novasvc.rpc.contracts.contract",
        "novasvc.rpc.execution": "novasvc.rpc.server.execution",
        "novasvc.rpc.failure": "novasvc.rpc.failures.failure",
        "novasvc.rpc.notification": "novasvc.rpc.events.notification",
        "novasvc.rpc.notification_listener": "novasvc.rpc.events.notification_listener",
        "novasvc.runtime": "novasvc.node.runtime",
        "novasvc.service.listening": "novasvc.node.stream_server",
        "novasvc.servicegroup": "novasvc.registry.liveness",
        "novasvc.settings": "novasvc.config",
        "novasvc.tap": "novasvc.run.plugin",
        "novasvc.target": "novasvc.rpc.target",
        "novasvc.testing.registry": "novasvc.registry.memory",
        "novasvc.threads": "novasvc.reactor.threads",
    }
)
"""Old name of a module that settings, commands and users' code name -> new name."""


class MovedModules:
    """Imports a module that has moved by its old name; both names are one module.

    It is a finder and a loader. It does not inherit from those of importlib.abc, whose import takes longer than that of
    the whole package.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name; see importlib.abc.MetaPathFinder."""
        if fullname not in MOVED:
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type] # it has the methods of a Loader

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make an empty module, which exec_module replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of this one, as a module may do while it is executed."""
        old = module.__name__
        warnings.warn(f"{old} has moved to {MOVED[old]}", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(MOVED[old])


def install() -> None:
    """Have old names import, after everything else that finds modules."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
