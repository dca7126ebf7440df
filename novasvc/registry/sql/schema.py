"""The tables, as Nova has them, and the schema revisions that this version knows.

The database has no column defaults, as in Nova: every insert writes all columns, see
:meth:`novasvc.registry.sql.services.ServiceRegistry.register`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""The migrations, oldest first. Repeated here, so that a check of the schema does not import Alembic."""

HEAD = REVISIONS[-1]
"""The revision that this version works with."""

VERSION_TABLE = "novasvc_alembic_version"
"""The table with the schema's revision. Not Alembic's default name, so that it can be in Nova's own database."""


metadata = MetaData()

services = Table(
    "services",
    metadata,
    Column("created_at", DateTime),
    Column("updated_at", DateTime),
    Column("deleted_at", DateTime),
    Column("id", Integer, primary_key=True, nullable=False),
    Column("host", String(255)),
    Column("binary", String(255)),
    Column("topic", String(255)),
    Column("report_count", Integer, nullable=False),
    Column("disabled", Boolean),
    Column("deleted", Integer),
    Column("disabled_reason", String(255)),
    Column("last_seen_up", DateTime),
    Column("forced_down", Boolean),
    Column("version", Integer),
    Column("uuid", String(36)),
    UniqueConstraint("host", "topic", "deleted", name="uniq_services0host0topic0deleted"),
    UniqueConstraint("host", "binary", "deleted", name="uniq_services0host0binary0deleted"),
    Index("services_uuid_idx", "uuid", unique=True),
    # Any Unicode text: the server's default character set may be latin1.
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per service. ``deleted`` is 0 in a live row, and the row's own id in a deleted one. Source: Nova's table."""

# MariaDB rounds times to seconds, and compares text without regard to case, unless it is told otherwise.
_MOMENT = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_EXACT = String(255).with_variant(mysql.VARCHAR(255, collation="utf8mb4_bin"), "mysql", "mariadb")

leases = Table(
    "novasvc_leases",
    metadata,
    Column("topic", _EXACT, nullable=False),
    Column("task", _EXACT, nullable=False),
    Column("holder", String(255)),
    Column("owner", String(36)),
    Column("fencing", BigInteger, nullable=False),
    Column("created_at", _MOMENT, nullable=False),
    Column("acquired_at", _MOMENT, nullable=False),
    Column("expires_at", _MOMENT, nullable=False),
    Column("last_run_at", _MOMENT),
    Column("last_due", Double),
    PrimaryKeyConstraint("topic", "task", name="novasvc_leases_pkc"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per task that runs once in a fleet; see :class:`novasvc.registry.lease.Lease`. Not one of Nova's tables."""

incarnations = Table(
    "novasvc_incarnations",
    metadata,
    Column("service_id", Integer, nullable=False, autoincrement=False),
    Column("host", _EXACT, nullable=False),
    Column("binary", _EXACT, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("owner", String(36), nullable=False),
    Column("lock_id", String(255)),
    Column("state", String(36), nullable=False),
    Column("since", _MOMENT, nullable=False),
    Column("until", _MOMENT),
    Column("reason", String(255)),
    Column("calls", Integer, nullable=False),
    Column("machine", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", _MOMENT, nullable=False),
    Column("zone", String(255)),
    Column("tags", Text, nullable=False),
    PrimaryKeyConstraint("service_id", name="novasvc_incarnations_pkc"),
    UniqueConstraint("host", "binary", name="uniq_novasvc_incarnations0host0binary"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per pair of host and binary; see :class:`novasvc.registry.incarnation.Incarnation`. Not one of Nova's tables.

``service_id`` is the live row of the service, or the last one. The row stays when the service is deleted, so that its
numbers are never used again. ``tags`` is a JSON array of strings.
"""

operations = Table(
    "novasvc_operations",
    metadata,
    Column("id", Integer, primary_key=True, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("options", Text, nullable=False),
    Column("owner", String(36)),
    Column("operator", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text),
    Column("created_at", _MOMENT, nullable=False),
    Column("heard_at", _MOMENT, nullable=False),
    Column("ended_at", _MOMENT),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per operation on the fleet; see :class:`novasvc.registry.operation.Operation`. Not one of Nova's tables."""

operation_nodes = Table(
    "novasvc_operation_nodes",
    metadata,
    Column("operation_id", Integer, nullable=False),
    Column("service_id", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("detail", Text),
    Column("incarnation", BigInteger),
    Column("claim", Integer),
    PrimaryKeyConstraint("operation_id", "service_id", name="novasvc_operation_nodes_pkc"),
    UniqueConstraint("claim", name="uniq_novasvc_operation_nodes0claim"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per node of an operation. ``claim``: see Note [Two operators, one node] in ``registry.sql.operations``."""

silences = Table(
    "novasvc_silences",
    metadata,
    # Not (service_id, began): Nova's column has seconds on MySQL, and a clock that is set back repeats them.
    Column("id", Integer, nullable=False),
    Column("service_id", Integer, nullable=False),
    Column("began", _MOMENT, nullable=False),
    Column("ended", _MOMENT, nullable=False),
    PrimaryKeyConstraint("id", name="novasvc_silences_pkc"),
    Index("novasvc_silences_ended_idx", "ended"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per long time without heartbeats that has ended; see :class:`novasvc.registry.outages.Silence`."""

observers = Table(
    "novasvc_observers",
    metadata,
    Column("observer", _EXACT, nullable=False),
    Column("fencing", BigInteger, nullable=False),
    PrimaryKeyConstraint("observer", name="novasvc_observers_pkc"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""One row per observer of the fleet, with the fencing number of the process that tells it last."""

observations = Table(
    "novasvc_observations",
    metadata,
    Column("observer", _EXACT, nullable=False),
    Column("service_id", Integer, nullable=False),
    Column("host", String(255), nullable=False),
    Column("binary", String(255), nullable=False),
    Column("status", String(36), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("told", Boolean, nullable=False),
    Column("since", _MOMENT),
    PrimaryKeyConstraint("observer", "service_id", name="novasvc_observations_pkc"),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)
"""What observers were told of each service; see :class:`novasvc.registry.observation.Observation`."""

revision = Table(VERSION_TABLE, metadata, Column("version_num", String(32), nullable=False))
revision.append_constraint(PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"))
"""One row: the schema's revision. If Alembic comes first, it creates the same table."""


class database_now(FunctionElement[Any]):  # noqa: N801 - it reads as the SQL function that it is
    """The database's clock, UTC without a time zone, in the format of the table's time stamps."""

    type = DateTime()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _now_of_sqlite(_element: Any, _compiler: Any, **_options: Any) -> str:
    # Six digits, because older readers parse ".123" as 123 microseconds.
    return "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"


@compiles(database_now, "postgresql")
def _now_of_postgresql(_element: Any, _compiler: Any, **_options: Any) -> str:
    # Not now(), which is the time when the transaction began, before any wait for a lock.
    return "(clock_timestamp() AT TIME ZONE 'utc')"


@compiles(database_now, "mysql", "mariadb")
def _now_of_mysql(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "utc_timestamp(6)"


class database_ago(FunctionElement[Any]):  # noqa: N801 - see above
    """The database's clock some seconds ago, to compare time stamps with. One argument: the seconds."""

    type = DateTime()
    inherit_cache = True


@compiles(database_ago, "sqlite")
def _ago_of_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', (0 - {_seconds(element, compiler, options)}) || ' seconds') || '000'"


@compiles(database_ago, "postgresql")
def _ago_of_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"(clock_timestamp() AT TIME ZONE 'utc' - make_interval(secs => {_seconds(element, compiler, options)}))"


@compiles(database_ago, "mysql", "mariadb")
def _ago_of_mysql(element: Any, compiler: Any, **options: Any) -> str:
    return f"(utc_timestamp(6) - INTERVAL {_seconds(element, compiler, options)} SECOND)"


def _seconds(element: Any, compiler: Any, options: Any) -> str:
    seconds: str = compiler.process(element.clauses, **options)
    return seconds
