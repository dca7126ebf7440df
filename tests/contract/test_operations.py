"""The contract of IOperationStore, in memory, SQLite, PostgreSQL and MariaDB."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection, literal, update
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from novasvc.registry.memory_operations import MemoryOperations
from novasvc.registry.sql.schema import database_ago, operations
from tests.contract.operation_contract import Fixture, make_operation_tests
from tests.contract.registry_servers import on_server
from tests.contract.test_registry_sqlite import sqlite_registry
from tests.servers import MariaDB, PostgreSQL


async def in_memory(test: TestCase) -> tuple[Any, Callable[[float], Awaitable[None]]]:
    clock = Clock()

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    return MemoryOperations(clock), pass_time


def in_database(registry_fixture: Any) -> Fixture:
    async def fixture(test: TestCase) -> tuple[Any, Callable[[float], Awaitable[None]]]:
        registry = await registry_fixture(test)

        async def pass_time(seconds: float) -> None:
            # Not by waiting: the times of all operations are moved back.
            moved = {name: database_ago(literal(seconds)) for name in ("heard_at", "created_at")}
            ended = update(operations).where(operations.c.ended_at.is_not(None))

            def change(connection: Connection) -> None:
                connection.execute(update(operations).values(**moved))
                connection.execute(ended.values(ended_at=database_ago(literal(seconds))))

            await registry._engine.run(change)

        return registry.operations, pass_time

    return fixture


class MemoryOperationTests(make_operation_tests(in_memory)):  # type: ignore[misc]
    """Tests for novasvc.registry.memory_operations."""


class SQLiteOperationTests(make_operation_tests(in_database(sqlite_registry))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.operations in a file."""


class PostgreSQLOperationTests(make_operation_tests(in_database(on_server(PostgreSQL)))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.operations in PostgreSQL."""


class MariaDBOperationTests(make_operation_tests(in_database(on_server(MariaDB)))):  # type: ignore[misc]
    """Tests for novasvc.registry.sql.operations in MariaDB."""
