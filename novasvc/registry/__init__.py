"""The service registry: rows of the ``services`` table, queries, liveness, heartbeats, and the ways to reach it."""
