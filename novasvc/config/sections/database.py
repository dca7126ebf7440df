"""The database with the services table."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, DATABASE_URL


@attrs.frozen(kw_only=True, slots=False)
class DatabaseSection:
    """The database with the services table."""

    database_url: str = setting(
        "URL of the database with the services table: SQLite, PostgreSQL, MySQL or MariaDB.",
        DATABASE_URL,
        default=attrs.Factory(lambda self: f"sqlite:///{self.state_dir / 'novasvc.sqlite'}", takes_self=True),
        default_text="novasvc.sqlite in state_dir",
        secret=True,
        nova="database/connection",
    )
    db_allowed: bool = setting("Access the database directly; otherwise through the conductor.", BOOLEAN, default=True)
    migrate: bool = setting("Upgrade the database schema at start.", BOOLEAN, default=True)
    enable_new_services: bool = setting(
        "Enable services when they first register; otherwise an operator has to enable them.", BOOLEAN, default=True
    )
