"""How rows move: the ``services`` table, over SQLite, PostgreSQL or MySQL.

Nothing is imported here: the migration's child process needs :mod:`novasvc.db.migrate` without
Twisted, and a program that never registers needs none of it.
"""
