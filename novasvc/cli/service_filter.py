"""The options by which `novasvc service list`, `verdicts` and `confirm-down` select services."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any

import attrs
import click

from novasvc.cli import candidates
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceRecord

_NOVA_ZONES = {"nova", "internal"}


def zone_of(record: ServiceRecord) -> str:
    """Return the zone in which a service was started, or the one that Nova shows for a service without one.

    Source: nova.availability_zones.set_availability_zones.
    """
    return record.zone or ("nova" if record.topic == "compute" else "internal")


@attrs.frozen(kw_only=True)
class ServiceFilter:
    """An operator's selection of services. A filter of None matches every service.

    :param host: a pattern of host names, as a shell has it: "compute-*", "rack[12]-?".
    :param binary: exactly this binary.
    :param topic: exactly this topic.
    :param zone: exactly this zone, as :func:`zone_of` returns it.
    :param tags: a service that has all of them.
    """

    host: str | None = None
    binary: str | None = None
    topic: str | None = None
    zone: str | None = None
    tags: tuple[str, ...] = ()

    def matches(self, record: ServiceRecord) -> bool:
        """Return whether a service is selected."""
        return (
            (self.host is None or fnmatchcase(record.host, self.host))
            and self.binary in {None, record.binary}
            and self.topic in {None, record.topic}
            and self.zone in {None, zone_of(record)}
            and set(self.tags) <= set(record.tags)
        )

    @property
    def query(self) -> ServiceQuery:
        """The part by which a registry can select: not by a pattern, several tags, or a zone that is only shown."""
        return ServiceQuery(
            host=None if self._has_pattern else self.host,
            binary=self.binary,
            topic=self.topic,
            zone=None if self.zone in _NOVA_ZONES else self.zone,
            tag=self.tags[0] if self.tags else None,
        )

    @property
    def is_query(self) -> bool:
        """Whether :attr:`query` is all of it."""
        return not self._has_pattern and not self.tags[1:] and self.zone not in _NOVA_ZONES

    @property
    def _has_pattern(self) -> bool:
        return self.host is not None and not {*"*?["}.isdisjoint(self.host)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select services; the command gets them as ``selection``, a :class:`ServiceFilter`."""

    @click.option(
        "--host",
        metavar="PATTERN",
        help="Only services on hosts that match, such as 'compute-*' or 'rack[12]-?'.",
        shell_complete=candidates.service_hosts,
    )
    @click.option("--binary", help="Only services of this binary name.", shell_complete=candidates.binaries)
    @click.option("--topic", help="Only services of this topic.")
    @click.option("--zone", help="Only services of this zone.")
    @click.option("--tag", "tags", multiple=True, help="Only services with this tag; repeat it for all of several.")
    @wraps(function)
    def with_selection(
        *args: Any,
        host: str | None,
        binary: str | None,
        topic: str | None,
        zone: str | None,
        tags: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        selection = ServiceFilter(host=host, binary=binary, topic=topic, zone=zone, tags=tags)
        return function(*args, selection=selection, **kwargs)

    return with_selection
