"""Create the table ``novasvc_incarnations``.

Revision: 0003, after 0002.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_EXACT = sa.String(255).with_variant(mysql.VARCHAR(255, collation="utf8mb4_bin"), "mysql", "mariadb")


def upgrade() -> None:
    """Migrate a database from 0002 to 0003."""
    op.create_table(
        "novasvc_incarnations",
        sa.Column("service_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("host", _EXACT, nullable=False),
        sa.Column("binary", _EXACT, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(36), nullable=False),
        sa.Column("lock_id", sa.String(255)),
        sa.Column("state", sa.String(36), nullable=False),
        sa.Column("since", _MOMENT, nullable=False),
        sa.Column("until", _MOMENT),
        sa.Column("reason", sa.String(255)),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("machine", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("zone", sa.String(255)),
        sa.Column("tags", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("service_id", name="novasvc_incarnations_pkc"),
        sa.UniqueConstraint("host", "binary", name="uniq_novasvc_incarnations0host0binary"),
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
        if_not_exists=True,
    )
