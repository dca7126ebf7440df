"""A registry in memory that keeps the contract of the real ones."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from novasvc.errors import DatabaseConflictError, NovasvcError, ServiceNotFoundError
from novasvc.interfaces import IServiceRegistry
from novasvc.record import ServiceChanges, ServiceRecord

_T = TypeVar("_T")


@implementer(IServiceRegistry)
@attrs.define(eq=False)
class MemoryRegistry:
    """The ``services`` table as a list; its "database's clock" is the one it is given.

    :param clock: its seconds are the time of the stamps.
    :param outage: if set, every method fails with it: a database that is away.
    """

    _clock: IReactorTime
    outage: NovasvcError | None = None
    _rows: list[ServiceRecord] = attrs.field(factory=list, init=False)
    _last_id: int = attrs.field(default=0, init=False)

    def open(self) -> Deferred[None]:
        """Reach the list; see :class:`novasvc.interfaces.IServiceRegistry` for this and the others."""
        return self._answer(lambda: None)

    def close(self) -> Deferred[None]:
        """Do nothing: the rows stay, as in a database."""
        return succeed(None)

    def register(self, host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """Return the row of (host, binary), created if there is none."""

        def read_or_create() -> ServiceRecord:
            for row in self._rows:
                if (row.host, row.binary) == (host, binary):
                    return self._aged(row if row.version == version else self._write(row, version=version))
            if topic is not None and any((row.host, row.topic) == (host, topic) for row in self._rows):
                problem = f"another service of host {host!r} has the topic {topic!r}"
                raise DatabaseConflictError("memory:", problem)
            self._last_id += 1
            self._rows.append(self._fresh(host, binary, topic, version))
            return self._aged(self._rows[-1])

        return self._answer(read_or_create)

    def beat(self, service_id: int) -> Deferred[None]:
        """Add one to report_count and stamp last_seen_up."""

        def beat() -> None:
            row = self._row(service_id)
            self._write(row, report_count=row.report_count + 1, last_seen_up=self._now())

        return self._answer(beat)

    def get(self, service: str) -> Deferred[ServiceRecord]:
        """Read one row by its id in decimal, or its uuid."""

        def find() -> ServiceRecord:
            for row in self._rows:
                if service in {str(row.id), row.uuid}:
                    return self._aged(row)
            raise ServiceNotFoundError(service)

        return self._answer(find)

    def list(self, host: str | None, binary: str | None, topic: str | None) -> Deferred[list[ServiceRecord]]:
        """Read the live rows, ordered by binary, host, id."""
        wanted = {"host": host, "binary": binary, "topic": topic}

        def select() -> list[ServiceRecord]:
            rows = [
                self._aged(row)
                for row in self._rows
                if all(value in {None, getattr(row, name)} for name, value in wanted.items())
            ]
            return sorted(rows, key=lambda row: (row.binary, row.host, row.id))

        return self._answer(select)

    def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """Change what an operator may change."""

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
        return self._answer(lambda: self._rows.remove(self._row(service_id)))

    def _answer(self, operation: Callable[[], _T]) -> Deferred[_T]:
        def answer() -> _T:
            if self.outage is not None:
                raise self.outage
            return operation()

        return maybeDeferred(answer)

    def _row(self, service_id: int) -> ServiceRecord:
        for row in self._rows:
            if row.id == service_id:
                return row
        raise ServiceNotFoundError(str(service_id))

    def _write(self, row: ServiceRecord, **columns: Any) -> ServiceRecord:
        written = attrs.evolve(row, updated_at=self._now(), **columns)
        self._rows[self._rows.index(row)] = written
        return written

    def _aged(self, row: ServiceRecord) -> ServiceRecord:
        seen = row.last_seen_up or row.created_at or self._now()
        return attrs.evolve(row, age=(self._now() - seen).total_seconds())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC).replace(tzinfo=None)

    def _fresh(self, host: str, binary: str, topic: str | None, version: int) -> ServiceRecord:
        return ServiceRecord(
            id=self._last_id,
            uuid=str(uuid.uuid4()),
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
