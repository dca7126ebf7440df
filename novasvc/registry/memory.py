"""A registry in memory, under the same contract as the SQL one."""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from novasvc import identifiers
from novasvc.errors import NovasvcError
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.errors import DatabaseConflictError, ServiceNotFoundError
from novasvc.registry.fencing import check_beat, check_current
from novasvc.registry.incarnation import ServiceStart, ServiceState
from novasvc.registry.lease import LeaseRequest, Leases
from novasvc.registry.liveness import is_up
from novasvc.registry.memory_incarnations import MemoryIncarnations, entered
from novasvc.registry.memory_leases import MemoryLeases
from novasvc.registry.memory_operations import MemoryOperations
from novasvc.registry.memory_verdicts import MemoryVerdicts
from novasvc.registry.observation import Observation, Observations
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals, is_id
from novasvc.registry.record import Records, ServiceChanges, ServiceRecord

_T = TypeVar("_T")

_SORT_COLUMNS = {"name": ("binary", "host"), "host": ("host", "binary"), "seen": (), "version": ("version",), "id": ()}
"""The columns that each sort order compares before time stamp and id."""


@implementer(IServiceRegistry)
@attrs.define(eq=False)
class MemoryRegistry:
    """The ``services`` table as a list; the given clock is its database's clock.

    :param clock: its seconds are the time of the stamps.
    :param outage: if set, every method fails with it, as if the database were down.
    :param unwritable: if set, every method that writes fails with it, as if the database were read-only or full.
    :ivar operations: the operations on the fleet; see :class:`novasvc.interfaces.IOperationStore`.
    :param service_down_time: seconds, to tell a long silence by.
    """

    _clock: IReactorTime
    outage: NovasvcError | None = None
    unwritable: NovasvcError | None = None
    service_down_time: float = 60.0
    _by_id: dict[int, ServiceRecord] = attrs.field(factory=dict, init=False)
    _hosts: dict[str, list[int]] = attrs.field(factory=dict, init=False)
    _deleted: list[ServiceRecord] = attrs.field(factory=list, init=False)
    _last_id: int = attrs.field(default=0, init=False)
    _leases: MemoryLeases = attrs.field(init=False)
    _incarnations: MemoryIncarnations = attrs.field(factory=MemoryIncarnations, init=False)
    operations: MemoryOperations = attrs.field(init=False)

    _verdicts: MemoryVerdicts = attrs.field(factory=MemoryVerdicts, init=False)

    def __attrs_post_init__(self) -> None:
        self.operations = MemoryOperations(self._clock, lambda: self.outage)
        self._leases = MemoryLeases(self._clock)

    @property
    def _rows(self) -> Collection[ServiceRecord]:
        return self._by_id.values()

    def open(self) -> Deferred[None]:
        """See :class:`novasvc.interfaces.IServiceRegistry` for this and the other methods."""
        return self._answer(lambda: None)

    def close(self) -> Deferred[None]:
        """Do nothing: the rows stay, as in a database."""
        return succeed(None)

    def register(self, host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """Return the row of (host, binary), created if there is none."""
        return self._answer(lambda: self._aged(self._read_or_create(host, binary, topic, version)))

    def begin(self, start: ServiceStart) -> Deferred[ServiceRecord]:
        """Begin the next incarnation of (host, binary), and create its row if there is none."""

        def begin() -> ServiceRecord:
            self._check_writable()
            found = self._named(start.host, start.binary)
            if not found:
                self._incarnations.check_not_deleted(start)
            row = found[0] if found else self._create(start.host, start.binary, start.topic, start.version)
            incarnation = self._incarnations.begin(start, row, self._now())
            if row.version != start.version:
                row = self._write(row, version=start.version)
            return self._aged(self._replace(row, incarnation=incarnation))

        return self._answer(begin)

    def beat(self, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """Add one to report_count and stamp last_seen_up."""

        def beat() -> None:
            row = self._row(service_id)
            if incarnation is not None:
                latest = row.incarnation
                if latest is None or latest.number != incarnation or row.forced_down:
                    check_beat(row, incarnation)
            now = self._now()
            self._write(row, report_count=row.report_count + 1, last_seen_up=now)
            self._verdicts.note(row, now, self.service_down_time)

        return self._answer(beat)

    def enter(
        self,
        service_id: int,
        incarnation: int,
        state: ServiceState,
        *,
        until: float | None = None,
        reason: str | None = None,
        calls: int = 0,
    ) -> Deferred[None]:
        """Write the state of an incarnation."""

        def enter() -> None:
            row = self._row(service_id)
            current = check_current(row, incarnation)
            self._check_writable()
            self._replace(row, incarnation=entered(current, self._now(), state, until, reason, calls))

        return self._answer(enter)

    def prove_writable(self) -> Deferred[None]:
        """Check that a write would succeed; change nothing."""
        return self._answer(self._check_writable)

    def get(self, service: str) -> Deferred[ServiceRecord]:
        """Read one row by its id in decimal, or its uuid."""

        def find() -> ServiceRecord:
            for row in self._rows:
                if service in {str(row.id), row.uuid}:
                    return self._aged(row)
            raise ServiceNotFoundError(service)

        return self._answer(find)

    def list(self, host: str | None, binary: str | None, topic: str | None) -> Deferred[Records]:
        """Read the live rows, ordered by binary, host, id."""
        wanted = {"host": host, "binary": binary, "topic": topic}

        def select() -> Records:
            rows = [
                self._aged(row)
                for row in self._rows
                if all(value in {None, getattr(row, name)} for name, value in wanted.items())
            ]
            return sorted(rows, key=lambda row: (row.binary, row.host, row.id))

        return self._answer(select)

    def page(self, query: ServiceQuery) -> Deferred[ServicePage]:
        """Read one page of the live rows, filtered and sorted."""

        def sort_key(row: ServiceRecord) -> tuple[Any, ...]:
            return tuple(getattr(row, name) or "" for name in _SORT_COLUMNS[query.sort]) + (
                (row.last_seen_up or row.created_at, row.id) if query.sort == "seen" else (row.id,)
            )

        def select() -> ServicePage:
            rows = sorted(self._matching(query), key=sort_key, reverse=query.descending)
            if query.after is not None:
                named = [row for row in (*self._rows, *self._deleted) if query.after in {str(row.id), row.uuid}]
                if named:
                    marker_key = sort_key(named[0])
                elif query.sort == "id" and is_id(query.after):
                    marker_key = (int(query.after),)
                else:
                    raise ServiceNotFoundError(query.after)
                rows = [
                    row
                    for row in rows
                    if (sort_key(row) < marker_key if query.descending else sort_key(row) > marker_key)
                ]
            return ServicePage(rows[: query.limit], query.limit is not None and len(rows) > query.limit)

        return self._answer(select)

    def count(self, query: ServiceQuery) -> Deferred[ServiceTotals]:
        """Count the live rows that match a query."""

        def count() -> ServiceTotals:
            rows = self._matching(query)
            forced = sum(row.forced_down for row in rows)
            up = sum(is_up(row, query.service_down_time) for row in rows)
            hosts, disabled = len({row.host for row in rows}), sum(row.disabled for row in rows)
            return ServiceTotals(len(rows), hosts, up, len(rows) - up - forced, forced, disabled)

        return self._answer(count)

    def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """Change the columns that an operator may change."""

        def change() -> ServiceRecord:
            row = self._row(service_id)
            wanted = {name: value for name, value in attrs.asdict(changes).items() if value is not None}
            if changes.disabled is not None:
                wanted["disabled_reason"] = changes.disabled_reason if changes.disabled else None
            differs = any(getattr(row, name) != value for name, value in wanted.items())
            return self._aged(self._write(row, **wanted) if differs else row)

        return self._answer(change)

    def delete(self, service_id: int) -> Deferred[None]:
        """Drop the row."""

        def delete() -> None:
            row = self._row(service_id)
            self._check_writable()
            del self._by_id[row.id]
            self._hosts[row.host].remove(row.id)
            self._deleted.append(row)

        return self._answer(delete)

    def outages(self, rule: VerdictRule) -> Deferred[Outages]:
        """Find the outages that concern many services now."""
        return self._answer(lambda: self._verdicts.outages(self._rows, self._now(), rule))

    def observations(self, observer: str) -> Deferred[Observations]:
        """Read what an observer was told of each service."""
        return self._answer(lambda: self._verdicts.observations(observer))

    def observe(self, observer: str, fencing: int, observations: Sequence[Observation]) -> Deferred[None]:
        """Write what an observer was told, or is to be told."""

        def observe() -> None:
            self._check_writable()
            self._verdicts.observe(observer, fencing, observations)

        return self._answer(observe)

    def hold_leases(self, request: LeaseRequest) -> Deferred[Leases]:
        """Renew the leases that the owner has, and take those that are free."""

        def hold() -> Leases:
            self._check_writable()
            return self._leases.hold(request)

        return self._answer(hold)

    def release_leases(self, topic: str, owner: str, tasks: Sequence[str]) -> Deferred[None]:
        """Free the leases of an owner."""

        def release() -> None:
            self._check_writable()
            self._leases.release(topic, owner, tasks)

        return self._answer(release)

    def list_leases(self) -> Deferred[Leases]:
        """Read all leases, ordered by topic and task."""
        return self._answer(self._leases.all)

    def _answer(self, operation: Callable[[], _T]) -> Deferred[_T]:
        def answer() -> _T:
            if self.outage is not None:
                raise self.outage
            return operation()

        return maybeDeferred(answer)

    def _check_writable(self) -> None:
        if self.unwritable is not None:
            raise self.unwritable

    def _matching(self, query: ServiceQuery) -> Records:
        exact = {name: getattr(query, name) for name in ("host", "binary", "topic", "disabled")}

        def matches(row: ServiceRecord) -> bool:
            texts = (row.host, row.binary, row.topic, row.disabled_reason)
            return (
                all(value is None or value == getattr(row, name) for name, value in exact.items())
                and not (query.with_topic and row.topic is None)
                and query.up in {None, is_up(row, query.service_down_time)}
                and (query.zone is None or query.zone == row.zone)
                and (query.tag is None or query.tag in row.tags)
                and (query.text is None or any(query.text.lower() in (text or "").lower() for text in texts))
            )

        return [row for row in map(self._aged, self._rows) if matches(row)]

    def _read_or_create(self, host: str, binary: str, topic: str | None, version: int) -> ServiceRecord:
        for row in self._named(host, binary):
            return row if row.version == version else self._write(row, version=version)
        return self._create(host, binary, topic, version)

    def _create(self, host: str, binary: str, topic: str | None, version: int) -> ServiceRecord:
        if topic is not None and any(row.topic == topic for row in self._of_host(host)):
            problem = f"another service of host {host!r} has the topic {topic!r}"
            raise DatabaseConflictError("memory:", problem)
        self._check_writable()
        self._last_id += 1
        row = self._by_id[self._last_id] = self._new_row(host, binary, topic, version)
        self._hosts.setdefault(host, []).append(row.id)
        return row

    def _of_host(self, host: str) -> Records:
        return [self._by_id[service_id] for service_id in self._hosts.get(host, ())]

    def _named(self, host: str, binary: str) -> Records:
        return [row for row in self._of_host(host) if row.binary == binary]

    def _row(self, service_id: int) -> ServiceRecord:
        if service_id not in self._by_id:
            raise ServiceNotFoundError(str(service_id))
        return self._by_id[service_id]

    def _write(self, row: ServiceRecord, **columns: Any) -> ServiceRecord:
        self._check_writable()
        return self._replace(row, updated_at=self._now(), **columns)

    def _replace(self, row: ServiceRecord, **columns: Any) -> ServiceRecord:
        written = attrs.evolve(row, **columns)
        self._by_id[row.id] = written
        return written

    def _aged(self, row: ServiceRecord) -> ServiceRecord:
        seen = row.last_seen_up or row.created_at or self._now()
        return attrs.evolve(row, age=(self._now() - seen).total_seconds())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC).replace(tzinfo=None)

    def _new_row(self, host: str, binary: str, topic: str | None, version: int) -> ServiceRecord:
        return ServiceRecord(
            id=self._last_id,
            uuid=identifiers.new_uuid(),
            host=host,
            binary=binary,
            topic=topic,
            disabled=False,
            disabled_reason=None,
            forced_down=False,
            report_count=0,
            created_at=self._now(),
            updated_at=None,
            last_seen_up=None,
            version=version,
            age=0.0,
        )
