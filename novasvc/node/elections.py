"""The elections of a node's tasks: which process runs those that run once in a node, or once in a fleet."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from novasvc.interfaces import IElection, IServiceRegistry
from novasvc.node.host_election import FileElection, ProcessElection
from novasvc.node.runtime import Runtime
from novasvc.periodic.term import Scope
from novasvc.registry.election import LeaseElection
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.workers.file_lock import FileLock


def make_elections(
    runtime: Runtime, identity: ServiceIdentity, topic: str, registry: IServiceRegistry
) -> Callable[[Scope], IElection | None]:
    """Return the function that makes the elections; see :meth:`novasvc.periodic.TaskRunner.start`.

    :param registry: open.
    """

    def make(scope: Scope) -> IElection | None:
        if scope == "worker":
            return None
        if scope == "fleet":
            return LeaseElection(
                registry,
                topic,
                _holder(runtime, identity),
                runtime.settings.task_lease_time,
                runtime.reactor,
                runtime.random_source,
            )
        if runtime.worker is None:
            return ProcessElection(runtime.reactor, identity.host, topic)
        return FileElection(
            FileLock(lock_directories(runtime, "tasks"), lock_name(identity.host, topic)), runtime.reactor
        )

    return make


def _holder(runtime: Runtime, identity: ServiceIdentity) -> str:
    worker = "" if runtime.worker is None else f" worker {runtime.worker}"
    return f"{identity.host}{worker}"


def lock_directories(runtime: Runtime, purpose: str) -> list[Path]:
    """Return where lock files of a purpose may be, the best place first."""
    # A node does not start without a writable temporary directory.
    temporary = runtime.settings.tempdir or Path(tempfile.gettempdir())
    return [runtime.settings.state_dir / purpose, temporary / f"novasvc-{purpose}-{os.geteuid()}"]


def lock_name(host: str, name: str) -> str:
    """Return the name of the lock file of a host's topic or binary."""
    # A digest, because names of hosts and topics may contain slashes, or be as long as a file's name may be.
    digest = hashlib.sha256(f"{host}\n{name}".encode())
    return f"{digest.hexdigest()[:32]}.lock"
