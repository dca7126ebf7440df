"""Rows of the tables ``novasvc_observers`` and ``novasvc_observations``: what one transaction reads and writes."""

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from novasvc.registry.errors import ObserverSupersededError
from novasvc.registry.observation import Observation, Observations
from novasvc.registry.sql.schema import observations, observers

_COLUMNS = ("service_id", "host", "binary", "status", "number", "told", "since")
_OF_OBSERVER = observations.c.observer == bindparam("of_observer")
_READ = select(*(observations.c[name] for name in _COLUMNS)).where(_OF_OBSERVER).order_by(observations.c.service_id)
_FENCING = select(observers.c.fencing).where(observers.c.observer == bindparam("of_observer"))
_HOLD = (
    update(observers)
    .where(observers.c.observer == bindparam("of_observer"), observers.c.fencing <= bindparam("new_fencing"))
    .values(fencing=bindparam("new_fencing"))
)
_INSERT_OBSERVER = insert(observers).values(observer=bindparam("of_observer"), fencing=bindparam("new_fencing"))
_DELETE = delete(observations).where(_OF_OBSERVER, observations.c.service_id.in_(bindparam("ids", expanding=True)))
_INSERT = insert(observations)


def read(connection: Connection, observer: str) -> Observations:
    """Read what an observer was told, ordered by service_id."""
    rows = connection.execute(_READ, {"of_observer": observer})
    return [Observation(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def write(connection: Connection, observer: str, fencing: int, changed: Sequence[Observation]) -> None:
    """Write observations; see :meth:`novasvc.interfaces.IServiceRegistry.observe`.

    :raises ObserverSupersededError: a process with a greater fencing number writes them.
    :raises IntegrityError: another process writes the first ones at the same time; retry.
    """
    holder = {"of_observer": observer, "new_fencing": fencing}
    # Locks the row until the commit, so that no other process writes between.
    if not connection.execute(_HOLD, holder).rowcount:
        latest = connection.execute(_FENCING, holder).scalar()
        if latest is not None:
            raise ObserverSupersededError(observer, fencing, latest)
        connection.execute(_INSERT_OBSERVER, holder)
    if not changed:
        return
    connection.execute(_DELETE, {"of_observer": observer, "ids": [each.service_id for each in changed]})
    kept = [
        {"observer": observer, **{name: getattr(each, name) for name in _COLUMNS}}
        for each in changed
        if each.status is not None
    ]
    if kept:
        connection.execute(_INSERT, kept)
