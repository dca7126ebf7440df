"""Create the tables ``novasvc_operations`` and ``novasvc_operation_nodes``.

Revision: 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Migrate a database from 0003 to 0004."""
    op.create_table(
        "novasvc_operations",
        sa.Column("id", sa.Integer, primary_key=True, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("owner", sa.String(36)),
        sa.Column("operator", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("heard_at", _MOMENT, nullable=False),
        sa.Column("ended_at", _MOMENT),
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
        if_not_exists=True,
    )
    op.create_table(
        "novasvc_operation_nodes",
        sa.Column("operation_id", sa.Integer, nullable=False),
        sa.Column("service_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("incarnation", sa.BigInteger),
        sa.Column("claim", sa.Integer),
        sa.PrimaryKeyConstraint("operation_id", "service_id", name="novasvc_operation_nodes_pkc"),
        sa.UniqueConstraint("claim", name="uniq_novasvc_operation_nodes0claim"),
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
        if_not_exists=True,
    )
