"""Create the tables ``novasvc_silences``, ``novasvc_observers`` and ``novasvc_observations``.

Revision: 0005, after 0004.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_EXACT = sa.String(255).with_variant(mysql.VARCHAR(255, collation="utf8mb4_bin"), "mysql", "mariadb")
_OPTIONS: dict[str, Any] = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4", "if_not_exists": True}


def upgrade() -> None:
    """Migrate a database from 0004 to 0005."""
    op.create_table(
        "novasvc_silences",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("service_id", sa.Integer, nullable=False),
        sa.Column("began", _MOMENT, nullable=False),
        sa.Column("ended", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="novasvc_silences_pkc"),
        **_OPTIONS,
    )
    if not sa.inspect(op.get_bind()).get_indexes("novasvc_silences"):
        op.create_index("novasvc_silences_ended_idx", "novasvc_silences", ["ended"])
    op.create_table(
        "novasvc_observers",
        sa.Column("observer", _EXACT, nullable=False),
        sa.Column("fencing", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("observer", name="novasvc_observers_pkc"),
        **_OPTIONS,
    )
    op.create_table(
        "novasvc_observations",
        sa.Column("observer", _EXACT, nullable=False),
        sa.Column("service_id", sa.Integer, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("binary", sa.String(255), nullable=False),
        sa.Column("status", sa.String(36), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("told", sa.Boolean, nullable=False),
        sa.Column("since", _MOMENT),
        sa.PrimaryKeyConstraint("observer", "service_id", name="novasvc_observations_pkc"),
        **_OPTIONS,
    )
