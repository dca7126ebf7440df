"""The map of the fleet: a small square for each service, grouped by zone and binary."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from novasvc.api.service_status import SEVERITY, ServiceStatus

CODES = {
    "up": "", "failed": "x", "down": "d", "suspect": "s", "forced down": "f", "stopped": "t", "disabled": "o",
    "draining too long": "l", "draining": "g", "starting": "b",
}  # fmt: skip
"""The looks of a service (:attr:`ServiceStatus.look`) -> the class of its square."""

_SIZES = (120, 600, 2500)
"""Numbers of services up to which squares have the sizes 1 to 3; with more, size 4."""
_WIDE = 400
"""A group of more services has the whole width."""
_BARE = re.compile(r"[A-Za-z0-9_.:-]+")
"""Values of attributes that need no quotes (HTML Standard, "Unquoted attribute value syntax")."""

# Note [Bytes of the map]
#
# A map of 10,000 services is most of the page, so a square has only what a person needs: its link, and a title, which
# is its accessible name too (HTML-AAM 4.1.6). /s/ID is shorter than /node/UUID by 34 octets. The heading of its group
# says the rest: binary and zone. Squares are cached, as most of them stay the same from one read to the next.


class FleetMap:
    """Draws maps; squares of services that have not changed are drawn once."""

    def __init__(self) -> None:
        self._squares: dict[int, tuple[int, str]] = {}

    def draw(self, services: Sequence[ServiceStatus]) -> Markup:
        """Return the map as HTML: a section for each zone and binary.

        :param services: in the order of their squares.
        """
        groups: dict[tuple[str, str], list[ServiceStatus]] = {}
        for service in services:
            groups.setdefault((service.zone, service.record.binary), []).append(service)
        parts = []
        for (zone, binary), members in sorted(groups.items()):
            squares = "".join([self._square(service) for service in members])
            parts.append(f"{_heading(zone, binary, members)}<div class=squares>{squares}</div></section>")
        size = next((size for size, most in enumerate(_SIZES, 1) if len(services) <= most), len(_SIZES) + 1)
        return Markup(f'<div class="groups size{size}">{"".join(parts)}</div>')  # noqa: S704 - escaped above

    def forget(self, present: Iterable[int]) -> None:
        """Drop the squares of services that do not exist any more.

        :param present: ids of the services that exist.
        """
        self._squares = {number: self._squares[number] for number in present if number in self._squares}

    def _square(self, service: ServiceStatus) -> str:
        number = service.record.id
        drawn = self._squares.get(number)
        if drawn is None or drawn[0] != service.turned:
            code = CODES[service.look]
            kind = f" class={code}" if code else ""
            drawn = service.turned, f"<a href=/s/{number} title={_value(square_title(service))}{kind}></a>"
            self._squares[number] = drawn
        return drawn[1]


def square_title(service: ServiceStatus) -> str:
    """Return the title of a square: the host, and its state unless it is up."""
    record = service.record
    if service.look == "up":
        return record.host
    reason = record.disabled_reason if service.look == "disabled" else service.reason
    return f"{record.host}: {service.look}{f', {reason}' if reason else ''}"


def looks_of(services: Iterable[ServiceStatus]) -> list[str]:
    """Return the looks that occur, worst first, for the legend."""
    return sorted({service.look for service in services}, key=SEVERITY.__getitem__)


def _heading(zone: str, binary: str, members: Sequence[ServiceStatus]) -> Markup:
    counts = Counter(service.look for service in members)
    worse = [f"{counts[look]:,} {look}" for look in sorted(counts, key=SEVERITY.__getitem__) if look != "up"]
    said = f"{len(members):,}" + "".join(f", {words}" for words in worse)
    where = Markup("<span class=zone>{}</span> ").format(zone) if zone else ""
    wide = Markup(" class=wide") if len(members) > _WIDE else ""
    return Markup("<section{}><h3>{}{} <span class=hint>{}</span></h3>").format(wide, where, binary, said)


def _value(text: str) -> str:
    return text if _BARE.fullmatch(text) else f'"{escape(text)}"'
