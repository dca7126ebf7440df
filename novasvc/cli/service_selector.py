"""Select a registered service by id, UUID, its name, or host and binary."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import attrs
import click

from novasvc.cli import candidates
from novasvc.errors import ProblemError
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.record import ServiceRecord

_ID_OR_UUID = re.compile(r"\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@attrs.frozen
class ServiceSelector:
    """The operator's selection of one service.

    :param id_or_uuid: id or UUID of the row; None to select by host and binary.
    :param host: host name, or None for any; without a binary, also a name such as "nova-compute@c1".
    :param binary: binary name, or None for any.
    """

    id_or_uuid: str | None
    host: str | None
    binary: str | None

    async def find(self, registry: IServiceRegistry) -> ServiceRecord:
        """Read the row of the selected service.

        :raises ServiceNotFoundError: no service matches.
        :raises ProblemError: several services match.
        """
        if self.id_or_uuid is not None:
            record: ServiceRecord = await registry.get(self.id_or_uuid)
            return record
        records: list[ServiceRecord] = await registry.list(self.host, self.binary, None)
        if not records and self.binary is None and self.host is not None and "@" in self.host:
            # A service's name, as lists, logs and the page show it. Hosts may contain "@", too (Cinder: host@backend).
            binary, _, host = self.host.partition("@")
            records = await registry.list(host, binary, None)
        if not records:
            raise ServiceNotFoundError(str(self))
        if len(records) > 1:
            matches = ", ".join(record.name for record in records)
            problem, remedy = f"several services match: {matches}", "select one with --host and --binary"
            raise ProblemError(f"service {self}", problem, remedy)
        return records[0]

    def __str__(self) -> str:
        if self.id_or_uuid is not None:
            return self.id_or_uuid
        if self.host is None:
            return str(self.binary)
        if self.binary:
            return f"{self.binary}@{self.host}"
        return self.host if "@" in self.host else f"on host {self.host}"


def selector_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that select a service; the command gets them as ``selector``."""

    @click.argument("service", required=False, metavar="[ID|UUID|BINARY@HOST|HOST]", shell_complete=candidates.services)
    @click.argument("binary_argument", required=False, metavar="[BINARY]", shell_complete=candidates.binaries)
    @click.option("--host", help="Host of the service.", shell_complete=candidates.service_hosts)
    @click.option("--binary", help="Binary name of the service.", shell_complete=candidates.binaries)
    @wraps(function)
    def with_selection(
        *args: Any,
        service: str | None,
        binary_argument: str | None,
        host: str | None,
        binary: str | None,
        **kwargs: Any,
    ) -> Any:
        return function(*args, selector=_select(service, binary_argument, host, binary), **kwargs)

    return with_selection


def _select(service: str | None, binary_argument: str | None, host: str | None, binary: str | None) -> ServiceSelector:
    context = click.get_current_context()
    if (service and host) or (binary_argument and binary):
        message = "Select the service either by arguments or by --host and --binary."
        raise click.UsageError(message, context)
    if service and not binary_argument and not binary and _ID_OR_UUID.fullmatch(service.lower()):
        return ServiceSelector(service.lower(), None, None)
    if not service and not host and not binary:
        message = "Select a service: by ID, by UUID, as BINARY@HOST, or by --host and --binary."
        raise click.UsageError(message, context)
    return ServiceSelector(None, service or host, binary_argument or binary)
