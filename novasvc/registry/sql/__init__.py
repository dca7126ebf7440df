"""The ``services`` table in SQLite, PostgreSQL or MySQL, over alchimia and SQLAlchemy."""
