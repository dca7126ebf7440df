"""How rows move: the ``services`` table, over SQLite, PostgreSQL or MySQL."""
