"""What is wrong in a fleet: services in trouble, grouped by what is wrong and why, worst first."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlencode

import attrs

from novasvc.api.service_status import DRAINING, FORCED, LATE, SEVERITY, STARTING, STOPPED, SUSPECT, UP, ServiceStatus
from novasvc.registry.lease import Lease

MAX_PROBLEMS = 20
"""Problems on a page; fewer than services, because services with the same problem share one."""
MAX_NAMED = 30
"""Services that are named in all, if they are not more; otherwise MOST_OF_FIRST of the first problem, MOST_OF_EACH."""
MOST_OF_FIRST, MOST_OF_EACH = 12, 6
OWN_LINE = 3
"""A reason that nodes tell has a line of its own if at least one in this many reports of the same problem has it.
Others share a line: reasons name workers and count restarts, so in a large fleet many of them coincide by chance."""

_LEASE, _NODE = SEVERITY[SUSPECT], SEVERITY[FORCED]
_KNOWN = SEVERITY[STOPPED]
"""The severity of what an operator knows: a disabled service that is down as well."""
_FINE = {UP, DRAINING, STARTING}
_QUIET = {*_FINE, "disabled", STOPPED}
"""Looks that the headline leaves out: they are as somebody wants them."""
_STATE_PARAMETERS = {FORCED: "forced", LATE: "late"}
"""States whose names in URLs are others."""


@attrs.frozen
class Affected:
    """What has a problem.

    :param name: of a service or lease.
    :param url: of its page.
    :param since: since when, in seconds since 1970; None if that is not known.
    :param detail: what is particular about it, or "".
    :param as_of: when this was known, in seconds since 1970; None for now.
    """

    name: str
    url: str
    since: float | None = None
    detail: str = ""
    as_of: float | None = None


@attrs.frozen
class Problem:
    """One problem, of one or more services.

    :param look: selects its icon and colour; see :attr:`ServiceStatus.look`.
    :param title: what is wrong: "down".
    :param why: why; "" if that is not known.
    :param affected: the first ones that have it.
    :param count: the number of all that have it.
    :param url: of all that have it; "" if there is no such page.
    """

    look: str
    title: str
    why: str
    affected: tuple[Affected, ...]
    count: int
    url: str = ""


@attrs.frozen
class Problems:
    """The problems of a fleet.

    :param shown: the worst MAX_PROBLEMS, worst first.
    :param count: the number of all.
    :param outages: sentences about what concerns many services at once.
    """

    shown: tuple[Problem, ...] = ()
    count: int = 0
    outages: tuple[str, ...] = ()


@attrs.frozen
class NodeReport:
    """What a node says is wrong in it, although it sends heartbeats.

    :param title: what is wrong: "worker crashes".
    :param why: details, or "".
    :param since: in seconds since 1970; None if unknown.
    :param as_of: when the node told it, in seconds since 1970, if that is long ago; None if it is current.
    """

    title: str
    why: str
    since: float | None = None
    as_of: float | None = None


@attrs.frozen
class FreeLease:
    """A lease that no node holds although one should.

    :param since: since when it is free, in seconds since 1970.
    :param as_of: when the leases were read, in seconds since 1970, if that is long ago; None if it is current.
    """

    lease: Lease
    since: float
    as_of: float | None = None


def find_problems(
    services: Iterable[ServiceStatus],
    leases: Iterable[FreeLease] = (),
    reports: Mapping[int, Sequence[NodeReport]] | None = None,
    outages: Sequence[str] = (),
) -> Problems:
    """Find the problems of a fleet.

    :param services: in the order in which they are named.
    :param leases: those that no node holds.
    :param reports: by id of the service.
    :param outages: sentences about what concerns many services at once.
    """
    groups: dict[tuple[int, str, str, str], list[Affected]] = {}
    reports = reports or {}
    alike = Counter((report.title, report.why) for told in reports.values() for report in told)
    titles = Counter(report.title for told in reports.values() for report in told)
    for service in services:
        look, record = service.look, service.record
        address = f"/s/{record.id}"
        if look not in _FINE:
            why, severity, since = service.reason, SEVERITY[look], service.since
            if look == "disabled":
                why, since = record.disabled_reason or "no reason given", service.disabled_since
            elif record.disabled:
                why = f"{why}; disabled: {record.disabled_reason or 'no reason given'}"
                severity = max(severity, _KNOWN)
            detail = ""
            if look == LATE:  # each has its own number of calls
                why, detail = "", why
            groups.setdefault((severity, look, look, why), []).append(Affected(service.name, address, since, detail))
        for report in reports.get(record.id, ()):
            same = alike[report.title, report.why]
            is_common = same > 1 and same * OWN_LINE >= titles[report.title]
            why, detail = (report.why, "") if is_common else ("", report.why)
            affected = Affected(service.name, address, report.since, detail, report.as_of)
            groups.setdefault((_NODE, "warn", report.title, why), []).append(affected)
    for free in leases:
        affected = Affected(f"{free.lease.topic} {free.lease.task}", "/leases", free.since, as_of=free.as_of)
        groups.setdefault((_LEASE, "warn", "lease without holder", "no node runs this task now"), []).append(affected)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), item[0]))
    few = sum(len(having) for _, having in ordered) <= MAX_NAMED
    shown: list[Problem] = []
    for (_, look, title, why), having in ordered[:MAX_PROBLEMS]:
        most = MAX_NAMED if few else MOST_OF_EACH if shown else MOST_OF_FIRST
        shown.append(Problem(look, title, why, tuple(having[:most]), len(having), _url(look, why)))
    return Problems(tuple(shown), len(groups) + len(outages), tuple(outages))


def _url(look: str, why: str) -> str:
    if look == "warn":
        return ""
    state = _STATE_PARAMETERS.get(look, look)
    text = why.partition("disabled: ")[2] or (why if look == "disabled" else "")
    return f"/?{urlencode({'q': text, 'state': state} if text and text != 'no reason given' else {'state': state})}"


def headline(services: Iterable[ServiceStatus], problems: Problems) -> str:
    """Say in one line how the fleet is."""
    counts = dict.fromkeys(SEVERITY, 0)
    total = 0
    for service in services:
        counts[service.look] += 1
        total += 1
    if not total:
        return "No service has registered yet"
    others = [f"{counts[look]:,} {look}" for look in SEVERITY if counts[look] and look in {*_QUIET} - {UP}]
    everything = "the one service is up" if total == counts[UP] == 1 else f"all {total:,} services are up"
    if others:
        everything = ", ".join([*([f"{counts[UP]:,} up"] if counts[UP] else []), *others])
    if not problems.count:
        return f"Nothing is wrong: {everything}"
    found = [f"{counts[look]:,} {look}" for look in SEVERITY if counts[look] and look not in _QUIET]
    found += dict.fromkeys(problem.title for problem in problems.shown if problem.look == "warn")
    return ", ".join(found) or f"Nothing is down: {everything}"
