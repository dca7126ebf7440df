"""Which service is meant: by its number, its uuid, or its host and binary."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import attrs
import click

from novasvc.errors import NovasvcError, ServiceNotFoundError
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.record import ServiceRecord

_IDENTITY = re.compile(r"\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@attrs.define
class AmbiguousServiceError(NovasvcError):
    """More than one service fits what the operator said.

    :param said: what fits.
    :param found: names that fit, as "binary@host".
    """

    said: str
    found: list[str]

    def __str__(self) -> str:
        return f"service {self.said} may be any of {', '.join(self.found)}; say which with --host and --binary"


@attrs.frozen
class ServiceSelector:
    """What an operator says of the service that is meant.

    :param identity: the row's number or uuid; None if host and binary say it.
    """

    identity: str | None
    host: str | None
    binary: str | None

    async def find(self, registry: IServiceRegistry) -> ServiceRecord:
        """Read its row.

        :raises ServiceNotFoundError: there is none.
        :raises AmbiguousServiceError: there is more than one.
        """
        if self.identity is not None:
            record: ServiceRecord = await registry.get(self.identity)
            return record
        records: list[ServiceRecord] = await registry.list(self.host, self.binary, None)
        if not records:
            raise ServiceNotFoundError(str(self))
        if len(records) > 1:
            raise AmbiguousServiceError(str(self), [f"{record.binary}@{record.host}" for record in records])
        return records[0]

    def __str__(self) -> str:
        if self.identity is not None:
            return self.identity
        if self.host is None:
            return str(self.binary)
        return f"{self.binary}@{self.host}" if self.binary else f"on {self.host}"


def selector_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the ways to say which service is meant; it gets them as ``selector``."""

    @click.argument("service", required=False, metavar="[ID|UUID|HOST]")
    @click.argument("named", required=False, metavar="[BINARY]")
    @click.option("--host", help="The service's host.")
    @click.option("--binary", help="The service's binary.")
    @wraps(function)
    def with_selection(
        *args: Any, service: str | None, named: str | None, host: str | None, binary: str | None, **kwargs: Any
    ) -> Any:
        return function(*args, selector=_select(service, named, host, binary), **kwargs)

    return with_selection


def _select(service: str | None, named: str | None, host: str | None, binary: str | None) -> ServiceSelector:
    context = click.get_current_context()
    if (service and host) or (named and binary):
        message = "Say which service either by arguments or by --host and --binary."
        raise click.UsageError(message, context)
    if service and not named and not binary and _IDENTITY.fullmatch(service.lower()):
        return ServiceSelector(service.lower(), None, None)
    if not service and not host and not binary:
        message = "Say which service: its ID, its UUID, or --host and --binary."
        raise click.UsageError(message, context)
    return ServiceSelector(None, service or host, named or binary)
