"""Create the table ``novasvc_leases``.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_EXACT = sa.String(255).with_variant(mysql.VARCHAR(255, collation="utf8mb4_bin"), "mysql", "mariadb")


def upgrade() -> None:
    """Migrate a database from 0001 to 0002."""
    op.create_table(
        "novasvc_leases",
        sa.Column("topic", _EXACT, nullable=False),
        sa.Column("task", _EXACT, nullable=False),
        sa.Column("holder", sa.String(255)),
        sa.Column("owner", sa.String(36)),
        sa.Column("fencing", sa.BigInteger, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("acquired_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("last_run_at", _MOMENT),
        sa.Column("last_due", sa.Double),
        sa.PrimaryKeyConstraint("topic", "task", name="novasvc_leases_pkc"),
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
        if_not_exists=True,
    )
