"""Create the table ``services``, or adopt Nova's.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import context, op

from novasvc.registry.errors import DatabaseRefusedError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A copy of novasvc.registry.sql.schema, which later versions change; a migration must not change.
_COLUMNS = (
    sa.Column("created_at", sa.DateTime),
    sa.Column("updated_at", sa.DateTime),
    sa.Column("deleted_at", sa.DateTime),
    sa.Column("id", sa.Integer, primary_key=True, nullable=False),
    sa.Column("host", sa.String(255)),
    sa.Column("binary", sa.String(255)),
    sa.Column("topic", sa.String(255)),
    sa.Column("report_count", sa.Integer, nullable=False),
    sa.Column("disabled", sa.Boolean),
    sa.Column("deleted", sa.Integer),
    sa.Column("disabled_reason", sa.String(255)),
    sa.Column("last_seen_up", sa.DateTime),
    sa.Column("forced_down", sa.Boolean),
    sa.Column("version", sa.Integer),
    sa.Column("uuid", sa.String(36)),
)
_KEY = ("host", "binary", "deleted")


def upgrade() -> None:
    """Migrate an empty database, or Nova's own, to 0001."""
    if sa.inspect(op.get_bind()).has_table("services"):
        _adopt()
    else:
        op.create_table(
            "services",
            *_COLUMNS,
            sa.UniqueConstraint("host", "topic", "deleted", name="uniq_services0host0topic0deleted"),
            sa.UniqueConstraint(*_KEY, name="uniq_services0host0binary0deleted"),
            mysql_charset="utf8mb4",
            mariadb_charset="utf8mb4",
        )
    # An interrupted migration may have left the table without it; see Note [Interrupted migrations].
    if not any(index["column_names"] == ["uuid"] for index in sa.inspect(op.get_bind()).get_indexes("services")):
        op.create_index("services_uuid_idx", "services", ["uuid"], unique=True)


def _adopt() -> None:
    """Check that the table is Nova's. Without the unique key, two nodes could register the same service."""
    inspector = sa.inspect(op.get_bind())
    present = {column["name"] for column in inspector.get_columns("services")}
    missing = [column.name for column in _COLUMNS if column.name not in present]
    keys: list[set[str | None]] = [set(key["column_names"]) for key in inspector.get_unique_constraints("services")]
    keys += [set(index["column_names"]) for index in inspector.get_indexes("services") if index["unique"]]
    lacks = [f"the column {name}" for name in missing]
    if not missing and set(_KEY) not in keys:
        lacks.append(f"a unique key of {', '.join(_KEY)}")
    if lacks:
        problem = f"its table services is not Nova's: it lacks {', '.join(lacks)}; give another database_url"
        raise DatabaseRefusedError(context.config.attributes["database"], problem)
